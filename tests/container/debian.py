"""A base image without a registry: a minimal Debian, made by debootstrap(8) from the mirror that this machine uses."""

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

FRESH_SECONDS = 7 * 24 * 3600
"""How long one that was made before is good enough."""


def release() -> str:
    """The code name of the Debian that runs here."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def mirror(release: str) -> str:
    """Where apt takes that release from: apt-get(8), indextargets."""
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        suite, component, address = line.split()
        if (suite, component) == (release, "main"):
            return address
    raise LookupError(f"apt's sources have no component main of {release}")


def base_archive(cache: Path) -> Path:
    """A tar file with the base system; it is kept in `cache` for a week.  The caller holds the cache's lock."""
    name = release()
    archive = cache / f"{name}.tar"
    if archive.exists() and time.time() - archive.stat().st_mtime < FRESH_SECONDS:
        return archive
    with tempfile.TemporaryDirectory(dir=cache, prefix="base-") as folder:
        log = cache / "debootstrap.log"
        with log.open("w") as said:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", name, folder, mirror(name)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, check=False, timeout=900,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"debootstrap {name} failed:\n{log.read_text()[-3000:]}")
        os.chmod(folder, 0o755)
        # an image is written once and thrown away: what dpkg does against power cuts takes a third of its build
        Path(folder, "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        made = archive.with_suffix(".new")
        exclude = [
            f"--exclude=./{path}" for path in ("var/cache/apt/*", "var/lib/apt/lists/*", "proc/*", "sys/*", "dev/*")
        ]
        subprocess.run(["tar", "-cf", made, "-C", folder, *exclude, "."], check=True, timeout=300)
    made.rename(archive)
    return archive

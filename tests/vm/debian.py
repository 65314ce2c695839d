"""Packages of any Debian suite, from the mirror that this machine's apt uses, without touching its /etc/apt."""

import os
import shutil
import subprocess
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PATIENCE = 600.0
"""Seconds for one download."""


class PrepareError(Exception):
    """Something that is needed cannot be made.  The text says what, and what to do."""


def run(command: list[str], *, seconds: float = PATIENCE, **options: object) -> str:
    """Run a command and return what it prints.  Raises PrepareError with all of it where it fails."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    environment["PATH"] = "/usr/sbin:/sbin:" + environment["PATH"]
    environment.update(options.pop("env", {}))  # type: ignore[call-overload]  # a dict of strings, or nothing
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
        **options,  # type: ignore[call-overload]  # only `cwd`
    )
    if done.returncode:
        raise PrepareError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-4000:]}")
    return str(done.stdout)


def mirror() -> str:
    """The address of the Debian mirror that apt is set up for here."""
    uris = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).split()
    for uri in uris:
        if "security" not in uri:
            return uri.rstrip("/")
    raise PrepareError("apt has no Debian mirror: put one into /etc/apt and run apt-get update")


class Suite:
    """The packages of one suite.  Lists and downloads are kept below `cache`."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        self._place = cache / "apt" / name
        self._debs = cache / "debs" / name
        self._options: list[str] = []

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        if not self._options:
            self._options = self._prepared()
        return run([tool, *self._options, *arguments], cwd=cwd)

    def _prepared(self) -> list[str]:
        place = self._place
        for folder in ("etc", "state/lists/partial", "cache/archives/partial"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        base = mirror()
        lines = [f"deb [signed-by={KEYRING}] {base} {self.name} main\n"]
        if self.name != "sid":
            lines.append(f"deb [signed-by={KEYRING}] {base}-security {self.name}-security main\n")
        (place / "etc" / "sources.list").write_text("".join(lines))
        settings = {
            "Dir::Etc::sourcelist": place / "etc" / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": place / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": place / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        options = ["-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
        if not (place / "updated").exists():
            run(["apt-get", *options, "update"])
            (place / "updated").touch()
        return options

    def depends(self, package: str) -> list[str]:
        """The names of the packages that one depends on directly."""
        lines = self._apt("apt-cache", "depends", package).splitlines()
        return [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("Depends:")]

    def unpack(self, package: str, into: Path) -> None:
        """Download a package, unless it was before, and unpack its files below `into`."""
        self._debs.mkdir(parents=True, exist_ok=True)
        found = sorted(self._debs.glob(f"{package}_*.deb"))
        if not found:
            self._apt("apt-get", "download", package, cwd=self._debs)
            found = sorted(self._debs.glob(f"{package}_*.deb"))
        into.mkdir(parents=True, exist_ok=True)
        run(["dpkg-deb", "-x", str(found[-1]), str(into)])


def need(packages: dict[str, str]) -> None:
    """Raise PrepareError unless every program is installed; the values are the packages that bring them."""
    path = "/usr/sbin:/sbin:" + os.environ["PATH"]
    missing = [package for program, package in packages.items() if shutil.which(program, path=path) is None]
    if missing:
        raise PrepareError(f"needed: apt-get install --no-install-recommends {' '.join(missing)}")

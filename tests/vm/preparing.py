"""Makes what a guest is booted from, once, and keeps it: host-side programs, root filesystem, kernels, wheels.

Each part notes what it was made from and is made anew when that changes.  It needs root, and what `need` names.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm import initramfs
from tests.vm.debian import PrepareError, Suite, mirror, need, run
from tests.vm.places import HERE, KERNELS, REPOSITORY, SUITE, cache, locked

PACKAGES = (
    *("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "libfuse3-dev", "pkg-config", "make", "fuse3"),
    *("kmod", "procps", "fio", "attr", "acl", "rsync", "git", "sqlite3", "libfuse3-3", "systemd", "iproute2", "mount"),
)
"""What the guest has beside Debian's minimum: for fusepipe python3 and libfuse3-3, the rest for building and tests."""
PROGRAMS = {
    "debootstrap": "debootstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "zstd": "zstd",
    "gcc": "gcc",
}
"""What the host needs, and the packages that bring it."""
TEST_WHEELS = ("pytest", "pytest-timeout", "pytest-benchmark", "hypothesis", "pip", "setuptools", "wheel")
BUILD_WHEELS = ("setuptools", "setuptools_scm", "wheel", "cffi", "cython")
RUN_WHEELS = ("click", "msgpack", "outcome", "structlog", "trio")
SOURCES = ("pyfuse3", "sdnotify")
"""Packages that have no wheels: these are built."""
GUEST_PYTHON = "3.11"
"""The Python of `SUITE`."""
KEPT = 8
"""Of fusepipe's older tars; other work trees may be using them."""
SPACE = 256 << 20
"""Bytes that stay free on a guest's second disk."""
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")


def say(text: str) -> None:
    """Tell who waits what is being done."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def prepare(kernels: Iterable[str] = KERNELS) -> None:
    """Make everything that is missing.  Raises PrepareError."""
    if os.geteuid():
        raise PrepareError("a guest can be prepared by root only: debootstrap makes device nodes")
    need(PROGRAMS)
    with locked() as place:
        (place / "bin").mkdir(exist_ok=True)
        _once("vhost-device-vsock", "sid", _vsock)
        _once("virtiofsd", "sid with its libraries", _virtiofsd)
        _once("busybox", SUITE, _busybox)
        _once("openrc", SUITE, _openrc)
        _once("tsc", (HERE / "tsc.c").read_text(), _tsc)
        made_from = " ".join((SUITE, *PACKAGES))
        _once("rootfs", made_from, _rootfs)
        wheels = " ".join((*TEST_WHEELS, *BUILD_WHEELS, *RUN_WHEELS, made_from))
        _once("wheels", wheels, _wheels)
        _once("image", wheels, _image)
        script = (HERE / "guest" / "initramfs.sh").read_text() + (HERE / "initramfs.py").read_text()
        for kernel in kernels:
            _once(f"kernel-{kernel}", "cloud", lambda kernel=kernel: _kernel(kernel))  # type: ignore[misc]
            _once(f"initramfs-{kernel}", script, lambda kernel=kernel: _initramfs(kernel))  # type: ignore[misc]


def _once(name: str, made_from: str, make: Callable[[], None]) -> None:
    """Call `make`, unless it was done before with the same `made_from`."""
    stamp = cache() / f"{name}.stamp"
    if stamp.exists() and stamp.read_text() == made_from:
        return
    say(f"making {name}")
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(made_from)


# ---- programs of the host -------------------------------------------------------------------------------------------


def _vsock() -> None:
    place = cache()
    Suite("sid", place).unpack("vhost-device-vsock", place / "x" / "vsock")
    shutil.copy2(place / "x/vsock/usr/bin/vhost-device-vsock", place / "bin")


def _virtiofsd() -> None:
    """With sid's C library: the host's may be older than what it was built for."""
    place = cache()
    tree = place / "x" / "virtiofsd"
    sid = Suite("sid", place)
    for package in ("virtiofsd", "libc6", "libgcc-s1", "libcap-ng0", "libseccomp2"):
        sid.unpack(package, tree)
    loader = next(tree.rglob("ld-linux-x86-64.so.2"))
    paths = ":".join(str(next(tree.rglob(name)).parent) for name in ("libc.so.6", "libseccomp.so.2"))
    program = next(path for path in tree.rglob("virtiofsd") if path.is_file())
    launcher = place / "bin" / "virtiofsd"
    launcher.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{paths}" "{program}" "$@"\n')
    launcher.chmod(0o755)


def _busybox() -> None:
    place = cache()
    Suite(SUITE, place).unpack("busybox-static", place / "x" / "busybox")
    shutil.copy2(next((place / "x/busybox").rglob("bin/busybox")), place / "bin")


def _tsc() -> None:
    run(["gcc", "-O2", "-o", str(cache() / "bin" / "tsc"), str(HERE / "tsc.c")])


def openrc() -> Path:
    """A tree with OpenRC, for `payload`; Debian's packages, which cannot be installed beside systemd."""
    return cache() / "x" / "openrc"


def _openrc() -> None:
    """Unpacked, and everything where a merged /usr has it."""
    tree = openrc()
    shutil.rmtree(tree, ignore_errors=True)
    debian = Suite(SUITE, cache())
    for package in ("openrc", "librc1", "libeinfo1"):
        debian.unpack(package, tree)
    for name in ("bin", "lib", "sbin"):
        shutil.copytree(tree / name, tree / "usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(tree / name)


# ---- the root filesystem --------------------------------------------------------------------------------------------


def _rootfs() -> None:
    root = cache() / "rootfs"
    if root.exists():
        run(["rm", "-rf", "--one-file-system", str(root)])
    run(["debootstrap", "--variant=minbase", SUITE, str(root), mirror()], seconds=1200)
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    install = f"apt-get -qq install --no-install-recommends {' '.join(PACKAGES)}"
    again = "apt-get -qq -f install --no-install-recommends"
    in_guest_tree(f"apt-get -qq update; {install} || {{ {again} && {install}; }}")
    run(["sh", "-c", f"rm -rf {root}/var/cache/apt/archives/*.deb {root}/var/lib/apt/lists/*"])
    (root / "etc/hostname").write_text("vm\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm\n")
    (root / "etc/fstab").write_text("")
    with (root / "etc/fuse.conf").open("a") as settings:
        settings.write("user_allow_other\n")
    for folder in ("host", "data", "virtiofs"):
        (root / folder).mkdir()
    # Emulated, what nobody needs here takes longer than the tests.
    for unit in ("systemd-timesyncd.service", "systemd-networkd.service", "apt-daily.timer", "e2scrub_reap.service"):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _wheels() -> None:
    """Downloaded by this machine's pip, with its settings, for the guest's Python; pyfuse3 is built in its tree."""
    place = cache()
    wheels, root = place / "wheels", place / "rootfs"
    shutil.rmtree(wheels, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "-q", "download", "-d", str(wheels)]
    binary = ["--only-binary=:all:", "--implementation", "cp", "--python-version", GUEST_PYTHON]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    run([*pip, *binary, *platforms, *TEST_WHEELS, *BUILD_WHEELS, *RUN_WHEELS])
    run([*pip, "--no-deps", f"--no-binary={','.join(SOURCES)}", *SOURCES])
    shutil.copytree(wheels, root / "wheels", dirs_exist_ok=True)
    venv = "/opt/venv/bin/python -m pip -q"
    source = " ".join(f"/wheels/{name}-*.tar.gz" for name in SOURCES)
    in_guest_tree(
        "rm -rf /opt/venv && python3 -m venv /opt/venv && "
        f"{venv} install --upgrade {' '.join((*TEST_WHEELS, *BUILD_WHEELS))} && "
        f"{venv} wheel --no-deps --no-build-isolation -w /wheels {source} && rm {source}"
    )


def in_guest_tree(script: str, **environment: str) -> str:
    """Run a shell script in the guest's root filesystem, on this machine; pip sees the wheels that are there only."""
    values = {
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/wheels",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **environment,
    }
    words = [f"{name}={value}" for name, value in values.items()]
    clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", *words]
    return run(["chroot", str(cache() / "rootfs"), *clean, "sh", "-ec", script], seconds=1200)


def _image() -> None:
    place = cache()
    root = place / "rootfs"
    used = sum(path.lstat().st_size // 4096 + 1 for path in root.rglob("*")) * 4096
    image = place / "rootfs.tmp"
    image.unlink(missing_ok=True)
    _make_filesystem(image, root, used * 5 // 4 + (700 << 20))
    image.rename(place / "rootfs.ext4")


def _make_filesystem(image: Path, content: Path, size: int) -> None:
    """An ext4 image of `size` bytes with a directory's content."""
    features = ["-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-m", "0"]
    run(["mke2fs", "-q", "-F", "-t", "ext4", *features, "-b", "4096", "-d", str(content), str(image), f"{size >> 10}k"])


# ---- kernels --------------------------------------------------------------------------------------------------------


def _kernel(suite: str) -> None:
    place = cache()
    debian = Suite(suite, place)
    tree = place / "x" / f"kernel-{suite}"
    shutil.rmtree(tree, ignore_errors=True)
    image = next(name for name in debian.depends("linux-image-cloud-amd64") if name.startswith("linux-image-"))
    parts = ("linux-modules-", "linux-binary-", "linux-base-")
    for package in [image, *(name for name in debian.depends(image) if name.startswith(parts))]:
        debian.unpack(package, tree)
    folder = place / "kernels" / suite
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(next(path for path in tree.rglob("vmlinuz*") if path.is_file()), folder / "vmlinuz")


def _initramfs(suite: str) -> None:
    place = cache()
    modules = next(
        path for path in (place / "x" / f"kernel-{suite}").rglob("lib/modules/*") if (path / "kernel").is_dir()
    )
    out = place / "kernels" / suite / "initrd"
    initramfs.write(modules, place / "rootfs", place / "bin/busybox", HERE / "guest/initramfs.sh", out)


# ---- fusepipe, and what a boot brings along -------------------------------------------------------------------------


def guest_tar() -> Path:
    """fusepipe for the guest, made by scripts/guest-tar with the guest's Python; kept until the source changes."""
    sources = [REPOSITORY / name for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")]
    sources += sorted(
        path for path in (REPOSITORY / "fusepipe").rglob("*") if path.suffix in (".py", ".c", ".h", ".pyi")
    )
    sources += sorted(path for path in (REPOSITORY / "guest").rglob("*") if path.is_file())
    sources.append(REPOSITORY / "scripts/guest-tar")
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_size}\n".encode() + path.read_bytes())
    with locked() as place:
        made = place / "guest" / f"fusepipe-{digest.hexdigest()[:16]}.tar.gz"
        if made.exists():
            return made
        say("building fusepipe for the guest")
        root = place / "rootfs"
        with tempfile.TemporaryDirectory(dir=root / "tmp") as folder:
            source = Path(folder) / "source"
            for path in sources:
                (source / path.relative_to(REPOSITORY)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, source / path.relative_to(REPOSITORY))
            inside = f"/tmp/{Path(folder).name}"
            in_guest_tree(f"{inside}/source/scripts/guest-tar {inside}/out.tar.gz", PYTHON="/opt/venv/bin/python")
            made.parent.mkdir(exist_ok=True)
            for old in sorted(made.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                old.unlink()
            shutil.copyfile(Path(folder) / "out.tar.gz", made)
        return made


def payload(
    folder: Path, overlay: dict[str, str], *, trees: Iterable[Path] = (), links: dict[str, str] | None = None
) -> Path:
    """The guest's second disk: fusepipe, the repository's tests, the agent, and files that are laid over its root.

    `overlay` maps paths of the guest to their text, which can be executed where it begins with `#!`; `links` maps paths
    to what symbolic links there say; `trees` are directories whose content is laid over the guest's root as well.
    """
    tree = folder / "payload"
    tree.mkdir()
    for name in ("agent.py", "environment", "init.sh"):
        shutil.copy2(HERE / "guest" / name, tree / name.removesuffix(".sh"))
    (tree / "init").chmod(0o755)
    units = tree / "overlay" / "etc/systemd/system"
    (units / "sysinit.target.wants").mkdir(parents=True)
    shutil.copy2(HERE / "guest/agent.service", units)
    (units / "sysinit.target.wants/agent.service").symlink_to("../agent.service")
    (tree / "overlay" / "opt").mkdir()
    (tree / "overlay" / "usr/sbin").mkdir(parents=True)
    (tree / "overlay" / "usr/sbin/mount.fusepipe").symlink_to("/opt/fusepipe/bin/mount.fusepipe")
    run(["tar", "-xzf", str(guest_tar()), "-C", str(tree / "overlay" / "opt")])
    ignored = shutil.ignore_patterns("__pycache__", ".mypy_cache", "*.so")
    for name in ("tests", "bench", "protocol"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignored)
    shutil.copy2(REPOSITORY / "pyproject.toml", tree)
    for source in (REPOSITORY / "bench/parbench.c", HERE / "guest/transfers.c"):
        run(["gcc", "-O2", "-static", "-pthread", "-o", str(tree / source.stem), str(source)])
    for other in trees:
        shutil.copytree(other, tree / "overlay", symlinks=True, dirs_exist_ok=True)
    for path, text in overlay.items():
        target = tree / "overlay" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    for path, text in (links or {}).items():
        target = tree / "overlay" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(text)
    used = int(run(["du", "-s", "--block-size=1", "--apparent-size", str(tree)]).split()[0])
    image = folder / "payload.ext4"
    _make_filesystem(image, tree, used * 3 // 2 + SPACE)
    shutil.rmtree(tree)
    return image


def accelerator() -> str:
    """`kvm` where this machine's processor shows virtualization and /dev/kvm can be used, else `tcg`, QEMU's emulation.

    $FUSEPIPE_VM_ACCEL decides otherwise.
    """
    if chosen := os.environ.get("FUSEPIPE_VM_ACCEL"):
        return chosen
    flags = subprocess.run(["grep", "-qwE", "vmx|svm", "/proc/cpuinfo"], check=False, timeout=10).returncode == 0
    return "kvm" if flags and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"

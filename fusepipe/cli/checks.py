"""What a machine needs to mount and to serve, each looked at by one function.  `doctor` shows what they find.

Nothing here changes the machine; the trial mount is in a temporary directory, and gone when its check returns.
"""

import contextlib
import fcntl
import os
import platform
import resource
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Final

import fusepipe
from fusepipe.cli.version import libfuse_version
from fusepipe.transport.addresses import VMADDR_CID_ANY

FUSE_DEVICE: Final = "/dev/fuse"
VSOCK_DEVICE: Final = "/dev/vsock"
FUSE_CONF: Final = "/etc/fuse.conf"

KERNEL_MIN: Final = (5, 10)
"""FUSE_HANDLE_KILLPRIV_V2 and the kernel of Debian 11; older ones were never tried."""

NOFILE_WANTED: Final = 65536
"""Open files: beyond this many, the server's cache of open inodes hardly misses."""

IOCTL_VM_SOCKETS_GET_LOCAL_CID: Final = 0x7B9
"""linux/vm_sockets.h."""

TRIAL_SECONDS: Final = 20
"""How long the trial mount may take for each of its steps."""

PYTHON_ALONE: Final = "native threads cannot serve the mount"
"""What a mount's log says where it has to do without them."""

CAPABILITIES: Final = {
    0: ("CAP_CHOWN", "give new files to their creators"),
    1: ("CAP_DAC_OVERRIDE", "reach files of all users"),
    2: ("CAP_DAC_READ_SEARCH", "keep inodes as file handles instead of open files"),
    3: ("CAP_FOWNER", "change modes and times of other users' files"),
    4: ("CAP_FSETID", "keep set-group-id bits"),
    6: ("CAP_SETGID", "create files as the caller"),
    7: ("CAP_SETUID", "create files as the caller"),
    21: ("CAP_SYS_ADMIN", "mount"),
    27: ("CAP_MKNOD", "create device nodes"),
}
"""What root needs and why: capabilities(7)."""


WITHOUT_FILTER: Final = (
    "mounts show node ids as inode numbers, and have no fallocate, SEEK_HOLE, copy_file_range, chattr, O_TMPFILE and "
    "birth times"
)
"""What is missing where the device filter does not take hold; docs/operations.md says what programs see then."""


class Status(Enum):
    """What a check found."""

    OK = "ok"
    LIMITED = "limited"
    """Mounting and serving work, with less."""
    MISSING = "missing"
    """Nothing can be mounted before this is mended."""


@dataclass(frozen=True)
class Finding:
    """The answer of one check: what is so, and what to install or change where that is not enough."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def python() -> Finding:
    """Which Python runs this."""
    return Finding("python", Status.OK, f"{platform.python_version()} at {sys.executable}")


def kernel() -> Finding:
    """Whether the kernel is new enough."""
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < KERNEL_MIN:
        wanted = ".".join(map(str, KERNEL_MIN))
        return Finding("kernel", Status.LIMITED, f"{release} is older than {wanted}", f"use Linux {wanted} or newer")
    return Finding("kernel", Status.OK, release)


def fuse_device(path: str = FUSE_DEVICE) -> Finding:
    """Whether the FUSE device is there and may be opened."""
    name = FUSE_DEVICE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        remedy = "load the module (modprobe fuse); start a container with --device /dev/fuse"
        return Finding(name, Status.MISSING, "not there", remedy)
    except OSError as error:
        remedy = f"let this user open it (chmod 666 {path}); in a container allow the device and mounting"
        return Finding(name, Status.MISSING, f"cannot be opened: {error.strerror}", remedy)
    is_device = stat.S_ISCHR(os.fstat(fd).st_mode)
    os.close(fd)
    if not is_device:
        remedy = f"make it: rm {path} && mknod -m 666 {path} c 10 229"
        return Finding(name, Status.MISSING, "is no device", remedy)
    return Finding(name, Status.OK, "can be opened")


def fusermount() -> Finding:
    """Whether users can mount: libfuse calls fusermount3 for them, which is set-uid root."""
    name = "fusermount3"
    as_root = os.geteuid() == 0
    worst = Status.LIMITED if as_root else Status.MISSING
    path = shutil.which(name)
    if path is None:
        return Finding(name, worst, "not installed; only root can mount", "install the package fuse3")
    info = os.stat(path)
    if not (info.st_mode & stat.S_ISUID and info.st_uid == 0):
        remedy = f"chown root {path} && chmod u+s {path}"
        return Finding(name, worst, f"{path} is not set-uid root; only root can mount", remedy)
    return Finding(name, Status.OK, path)


def user_allow_other(path: str = FUSE_CONF) -> Finding:
    """Whether users may let others into their mounts: user_allow_other in fuse.conf, mount.fuse3(8)."""
    name = "user_allow_other"
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path(path).read_text(errors="replace").splitlines()
    if name in (line.strip() for line in lines):
        return Finding(name, Status.OK, f"is set in {path}")
    if os.geteuid() == 0:
        return Finding(name, Status.OK, "is not set, and root does not need it")
    return Finding(
        name, Status.LIMITED, f"is not set in {path}: --allow-other is refused", f"add a line {name} to {path}"
    )


def pyfuse3() -> Finding:
    """Whether pyfuse3 can be loaded, and libfuse with it."""
    name = "pyfuse3"
    try:
        import_module("fusepipe.device")  # before pyfuse3, or the filter cannot take hold
        version: str = import_module("pyfuse3").__version__
    except ImportError as error:
        return Finding(name, Status.MISSING, f"cannot be loaded: {error}", "install libfuse3-3, and pyfuse3 with pip")
    return Finding(name, Status.OK, version)


def libfuse() -> Finding:
    """Which libfuse is in use."""
    version = libfuse_version()
    if version is None:
        return Finding("libfuse", Status.MISSING, "not installed", "install libfuse3-3 (Debian 13: libfuse3-4)")
    return Finding("libfuse", Status.OK, version)


def device_filter() -> Finding:
    """Whether the filter on /dev/fuse can take hold in this process; the trial mount shows whether it does."""
    name = "device filter"
    try:
        from fusepipe.device import unavailable

        reason = unavailable()
    except ImportError as error:
        reason = str(error)
    if reason:
        remedy = "build fusepipe with the libfuse that pyfuse3 was built with (scripts/setup in its sources does)"
        return Finding(name, Status.LIMITED, f"{reason}; {WITHOUT_FILTER}", remedy)
    return Finding(name, Status.OK, "is loaded")


def server() -> Finding:
    """Whether the server's compiled half can be loaded."""
    try:
        import_module("fusepipe.syscalls")
    except ImportError as error:
        remedy = "install fusepipe again, with gcc, python3-dev and libfuse3-dev"
        return Finding("server", Status.MISSING, f"cannot be loaded: {error}", remedy)
    return Finding("server", Status.OK, "its compiled half is loaded")


def vsock() -> Finding:
    """Whether vsock: addresses can be used: the address family, and a device with a CID: vsock(7)."""
    name = "vsock"
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        remedy = "load the module vsock; vsock: addresses need it, unix: and firecracker: do not"
        return Finding(name, Status.LIMITED, f"the kernel has no AF_VSOCK: {error.strerror}", remedy)
    try:
        with open(VSOCK_DEVICE, "rb") as device:
            (cid,) = struct.unpack("I", fcntl.ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4)))
    except OSError as error:
        remedy = "in a guest give the VM a vsock device; on a host load vhost_vsock; unix: addresses need neither"
        return Finding(name, Status.LIMITED, f"{VSOCK_DEVICE}: {error.strerror}", remedy)
    if cid == VMADDR_CID_ANY:
        remedy = "in a guest give the VM a vsock device; on a host load vhost_vsock; unix: addresses need neither"
        return Finding(name, Status.LIMITED, "no device: this machine has no CID", remedy)
    return Finding(name, Status.OK, f"this machine's CID is {cid}")


def open_files() -> Finding:
    """Whether the limit of open files leaves the server room for inodes: getrlimit(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < NOFILE_WANTED:
        remedy = f"raise the hard limit to {NOFILE_WANTED} (LimitNOFILE= in a unit, ulimit -Hn in a shell)"
        return Finding("open files", Status.LIMITED, f"at most {hard}: the server keeps few inodes open", remedy)
    return Finding("open files", Status.OK, "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")


def privileges() -> Finding:
    """Which of the capabilities that a server or a mount uses this process has."""
    name = "privileges"
    if os.geteuid() != 0:
        return Finding(
            name,
            Status.LIMITED,
            f"user {os.geteuid()}: new files belong to this user, and inodes are kept as open files",
            "run as root to serve the files of several users",
        )
    effective = _effective_capabilities()
    lacking = {text: why for bit, (text, why) in CAPABILITIES.items() if not effective & 1 << bit}
    if not lacking:
        return Finding(name, Status.OK, "root, with every capability that is used")
    worst = Status.MISSING if "CAP_SYS_ADMIN" in lacking else Status.LIMITED
    found = "root, without " + ", ".join(f"{text} ({why})" for text, why in lacking.items())
    return Finding(name, worst, found, f"give the container or unit {' '.join(lacking)}")


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def sandbox() -> Finding:
    """Which walls a session process can have around itself here, tried by one in a temporary directory."""
    name = "sandbox"
    import trio

    from fusepipe.server import ServerError, ServerOptions, Volume, try_sandbox

    with tempfile.TemporaryDirectory(prefix="fusepipe-doctor-") as folder:
        try:
            report = trio.run(try_sandbox, Volume("doctor", folder), ServerOptions(sandbox="prefer"))
        except (ServerError, OSError) as error:
            return Finding(name, Status.LIMITED, f"cannot be tried: {error}", "mend what is said of the server above")
    held = ", ".join(report.held)
    if not report.missing:
        return Finding(name, Status.OK, held)
    lacking = "; ".join(map(str, report.missing))
    refused = "--sandbox require" + (", the default for root," if os.geteuid() == 0 else "")
    found = f"{held or 'nothing'}; without {lacking}: {refused} is refused"
    return Finding(name, Status.LIMITED, found, "; ".join(dict.fromkeys(missing.remedy for missing in report.missing)))


def trial_mount() -> Finding:
    """Whether a mount really works here: an empty directory is bound, looked at, and unmounted, in another process."""
    name = "trial mount"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusepipe-doctor-")))
        source, mountpoint, errors = folder / "source", folder / "mount", folder / "errors"
        for made in (source, mountpoint):
            made.mkdir()
        (source / "file").touch()
        arguments = [
            sys.executable,
            "-P",
            "-m",
            "fusepipe",
            "bind",
            "--sandbox",
            "prefer",
            "--log-level",
            "warning",
            str(source),
            str(mountpoint),
        ]
        with errors.open("wb") as stderr:
            mount = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=_environment()
            )
        stack.callback(_end, mount, str(mountpoint))
        assert mount.stdout is not None
        stack.enter_context(mount.stdout)
        ready, _, _ = select.select([mount.stdout], [], [], TRIAL_SECONDS)
        if not ready or not mount.stdout.readline():
            said = errors.read_text(errors="replace").strip().splitlines()
            found = said[-1].removeprefix("fusepipe: ") if said else f"it is not ready after {TRIAL_SECONDS} s"
            return Finding(name, Status.MISSING, found, "mend what is said above and here")
        seen = _look(name, source / "file", mountpoint / "file")
        slow = [line for line in errors.read_text(errors="replace").splitlines() if PYTHON_ALONE in line]
        if seen.status is Status.OK and slow:
            return Finding(name, Status.LIMITED, f"works, but slower: {slow[0]}", "see --native in docs/cli.md")
        return seen


def _environment() -> dict[str, str]:
    """An environment in which Python finds the fusepipe that runs now, be it installed or not."""
    ours = str(Path(fusepipe.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))}


def _look(name: str, original: Path, mounted: Path) -> Finding:
    """Look at a file on the trial mount from a process of its own, since a mount that hangs takes along who looks."""
    question = [sys.executable, "-I", "-c", "import os, sys; print(os.stat(sys.argv[1]).st_ino)", str(mounted)]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(name, Status.MISSING, "it does not answer", "see the log of fusepipe bind --log-level debug")
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        return Finding(name, Status.MISSING, f"it fails: {' '.join(last)}", "see fusepipe bind --log-level debug")
    if int(answer.stdout) != original.stat().st_ino:
        found = f"works; the device filter does not take hold: {WITHOUT_FILTER}"
        return Finding(name, Status.LIMITED, found, "use libfuse 3.14 to 3.17 with pyfuse3 3.4 or newer")
    return Finding(name, Status.OK, "works, with the host's inode numbers")


def _end(mount: subprocess.Popen[bytes], mountpoint: str) -> None:
    """End the trial mount, by force if need be."""
    mount.terminate()
    try:
        mount.wait(TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        mount.kill()
        mount.wait()
    if os.path.ismount(mountpoint):
        from fusepipe.client import unmount

        unmount(mountpoint, lazy=True)


CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    python,
    kernel,
    fuse_device,
    fusermount,
    user_allow_other,
    libfuse,
    pyfuse3,
    device_filter,
    server,
    privileges,
    open_files,
    vsock,
    sandbox,
    trial_mount,
)
"""All checks, in the order in which they are shown."""


def findings() -> Iterator[Finding]:
    """Run every check, one after the other."""
    for check in CHECKS:
        yield check()

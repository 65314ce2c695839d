"""Writes an initramfs: a static busybox, the script that is /init, and the kernel modules that the tests use."""

import gzip
import lzma
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.vm.debian import PrepareError, run

BOOT = (
    *("virtio_pci", "virtio_blk", "virtio_console", "crc32c_intel", "crc32c_generic", "crc32c", "ext4", "fuse"),
    *("virtiofs", "vmw_vsock_virtio_transport", "vsock_loopback"),
)
"""Loaded at once, in this order; what a kernel has built in is passed over."""
LATER = ("vsock_diag", "overlay", "loop", "autofs4")
"""There for modprobe."""


class Module(NamedTuple):
    """A kernel module: its path below the modules' directory (uncompressed), and what it is made of."""

    path: str
    data: bytes


class Modules:
    """The modules of one kernel, with those that each of them depends on before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {_plain(path.name): path for path in folder.glob("kernel/**/*.ko*")}
        self.chosen: dict[str, Module] = {}

    def add(self, name: str) -> None:
        """Choose a module and what it needs; one that is built in, or does not exist here, is none."""
        if name in self.chosen or name not in self._files:
            return
        path = self._files[name]
        data = _decompressed(path)
        needed = re.findall(rb"\0depends=([^\0]*)\0", data) + re.findall(rb"\0softdep=pre: ([^\0]*)\0", data)
        for other in re.split(r"[ ,]", b",".join(needed).decode()):
            self.add(other.replace("-", "_"))
        relative = re.sub(r"(\.ko)\.\w+$", r"\1", str(path.relative_to(self.folder)))
        self.chosen[name] = Module(relative, data)


def _plain(name: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", name).replace("-", "_")


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return subprocess.run(["zstd", "-dcq", str(path)], check=True, capture_output=True, timeout=60).stdout
    raise PrepareError(f"{path} is packed in a way that is not known here")


def write(modules_folder: Path, rootfs: Path, busybox: Path, init: Path, out: Path) -> None:
    """Write the initramfs for the kernel of `modules_folder`; `rootfs` lends its depmod."""
    modules = Modules(modules_folder)
    for name in BOOT:
        modules.add(name)
    boot = list(modules.chosen.values())
    for name in LATER:
        modules.add(name)
    base = Path("lib/modules") / modules_folder.name
    files = {Path("init"): init.read_bytes(), Path("bin/busybox"): busybox.read_bytes()}
    files[Path("boot-modules")] = "".join(f"/{base / module.path}\n" for module in boot).encode()
    with tempfile.TemporaryDirectory(dir=rootfs / "tmp") as folder:
        tree = Path(folder) / base
        for module in modules.chosen.values():
            (tree / module.path).parent.mkdir(parents=True, exist_ok=True)
            (tree / module.path).write_bytes(module.data)
        (tree / "modules.order").write_text("".join(f"{module.path}\n" for module in modules.chosen.values()))
        for name in ("modules.builtin", "modules.builtin.modinfo"):
            if (modules_folder / name).exists():
                (tree / name).write_bytes((modules_folder / name).read_bytes())
        run(["chroot", str(rootfs), "depmod", "-b", f"/tmp/{Path(folder).name}", modules_folder.name])
        files |= {path.relative_to(folder): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    written = out.with_name(f"{out.name}.tmp")
    written.write_bytes(b"".join(_archive(files)))
    written.rename(out)  # a guest of another work tree may be reading the old one


def _archive(files: dict[Path, bytes]) -> Iterable[bytes]:
    """A newc cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = {parent for path in files for parent in path.parents} - {Path(".")}
    folders |= {Path(name) for name in ("dev", "proc", "sys", "new")}
    entries: list[tuple[Path, int, bytes, tuple[int, int]]] = [
        (path, stat.S_IFDIR | 0o755, b"", (0, 0)) for path in sorted(folders)
    ]
    entries.append((Path("dev/console"), stat.S_IFCHR | 0o600, b"", (5, 1)))
    entries.append((Path("bin/sh"), stat.S_IFLNK | 0o777, b"busybox", (0, 0)))
    entries += [(path, stat.S_IFREG | 0o755, data, (0, 0)) for path, data in sorted(files.items())]
    for number, (path, mode, data, device) in enumerate(entries, 1):
        yield _entry(number, str(path), mode, data, device)
    yield _entry(0, "TRAILER!!!", 0, b"", (0, 0))


def _entry(number: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

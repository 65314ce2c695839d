"""A copy of these sources whose C modules are built with a sanitizer, and programs that run in it.

The modules are kept in .cache/sanitizers/, by what they were made from.  A program of the copy writes what a sanitizer
finds into files of its own, whatever becomes of its stderr and its exit code: `Instrumented.reports` has all of it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "sanitizers"
SUPPRESSIONS = Path(__file__).with_name("thread.supp")
MODULES = ("syscalls", "device")
COPIED = ("fusepipe", "protocol", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Sanitizer:
    """One build: flags of the compiler, libraries that a program needs before all others, and their options."""

    flags: str
    libraries: tuple[str, ...]
    options: Mapping[str, str]
    """Variable of the environment -> options, but for where reports go."""
    marks: tuple[bytes, ...]
    """What a module that was built with it refers to."""


SANITIZERS = {
    "address": Sanitizer(
        # Beside the address sanitizer the other one would report to stderr alone, which programs may have closed: so
        # undefined behaviour is a trap, and what reports that is the address sanitizer.
        "-fsanitize=address,undefined -fsanitize-undefined-trap-on-error",
        ("libasan.so",),
        # Leaks: Python never gives back what it holds at its end, so what is left then says nothing.
        {"ASAN_OPTIONS": "detect_leaks=0:handle_sigill=2"},
        (b"__asan_init", b"__asan_report"),
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("libtsan.so",),
        # Deadlocks: the detector takes all locks of all slots for one kind; their order stands beside each lock.
        # Sends: it notes what sendmsg(2) has read only after the call, when the reply may have come and the memory may
        # be used for the next request.
        {"TSAN_OPTIONS": f"detect_deadlocks=0:intercept_send=0:suppressions={SUPPRESSIONS}"},
        (b"__tsan_init",),
    ),
}


class Instrumented:
    """The copy, in a folder of the caller's."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.sanitizer = SANITIZERS[name]
        self.folder = folder / "copy"
        self._reports = folder / "reports"
        self._reports.mkdir()
        self._reports.chmod(0o1777)  # tests run programs as other users
        modules = self._modules()
        self.folder.mkdir()
        for entry in COPIED:
            source = ROOT / entry
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "sanitizers")
                shutil.copytree(source, self.folder / entry, ignore=ignored)
            else:
                shutil.copy(source, self.folder / entry)
        for module in modules:
            shutil.copy(module, self.folder / "fusepipe" / module.parent.name)

    def _modules(self) -> list[Path]:
        """The compiled modules; they are made where nobody has made them yet."""
        kept = CACHE / f"{self.name}-{self._fingerprint()}"
        if not kept.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            for old in CACHE.glob(f"{self.name}-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                shutil.copytree(ROOT / "fusepipe", Path(scratch) / "fusepipe", ignore=shutil.ignore_patterns("*.so"))
                with ThreadPoolExecutor() as pool:
                    list(pool.map(lambda module: self._build(Path(scratch), module), MODULES))
                made = Path(scratch) / "made"
                for module in MODULES:
                    (made / module).mkdir(parents=True)
                    (built,) = (Path(scratch) / "fusepipe" / module).glob("*.so")
                    built.rename(made / module / built.name)
                made.rename(kept)
        return sorted(kept.glob("*/*.so"))

    def _build(self, scratch: Path, module: str) -> None:
        subprocess.run(
            [sys.executable, f"fusepipe/{module}/_build.py"],
            cwd=scratch,
            env={**os.environ, "CFLAGS": self._flags},
            check=True,
        )

    @property
    def _flags(self) -> str:
        return f"{self.sanitizer.flags} -g -O1 -fno-omit-frame-pointer"

    def _fingerprint(self) -> str:
        made_from = hashlib.sha256(f"{self._flags} {sys.version} {platform.libc_ver()}".encode())
        made_from.update(subprocess.run(["cc", "--version"], capture_output=True, check=True).stdout)
        for folder in (*MODULES, "wire"):
            for path in sorted((ROOT / "fusepipe" / folder).iterdir()):
                if (path.suffix in (".c", ".h") and not path.name.startswith("_")) or path.name == "_build.py":
                    made_from.update(path.name.encode() + b"\0" + path.read_bytes())
        return made_from.hexdigest()[:16]

    def environment(self) -> dict[str, str]:
        """What a program needs to run in the copy and to report what is found."""
        options = {
            variable: f"{given}:log_path={self._reports / variable}"
            for variable, given in self.sanitizer.options.items()
        }
        return {
            **os.environ,
            **options,
            "CFLAGS": self._flags,  # for tests that compile parts of the modules themselves
            "LD_PRELOAD": " ".join(map(library, self.sanitizer.libraries)),
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, *arguments: str) -> list[str]:
        """A command that runs Python with these arguments, in the copy.

        The thread sanitizer wants memory where it expects it, so addresses are not chosen at random.
        """
        return ["setarch", "-R", sys.executable, *arguments]

    def run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the copy, to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def reports(self) -> str:
        """What the sanitizers have found in any program so far; from now on it counts as read."""
        found = []
        for path in sorted(self._reports.iterdir()):
            found.append(f"{path.name}\n{path.read_text(errors='replace')}")
            path.unlink()
        return "\n".join(found)


def library(name: str) -> str:
    """Path of a library of the compiler's."""
    done = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not os.path.isabs(path):
        raise FileNotFoundError(f"the compiler has no {name}; Debian's package gcc brings it")
    return os.path.realpath(path)

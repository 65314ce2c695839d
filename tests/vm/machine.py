"""A guest that runs: QEMU, the host's side of its vsock device, and commands in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.vm.debian import run
from tests.vm.places import cache
from tests.vm.preparing import accelerator

BOOT_SECONDS = 240.0
"""Until the agent answers; 5 seconds on an idle machine under emulation, 40 with systemd."""
BOOTS = 3
"""Once in some hundred boots under multi-threaded emulation a kernel stumbles over code that it patches meanwhile."""
SOCKET_SECONDS = 120.0
"""Until a program of the host listens on its socket."""
STOP_SECONDS = 20.0
GUEST_CID = 3
STARTED = "vm: init"
"""On the console when the root disk is there and PID 1 is about to run."""
SYSTEMD = "/lib/systemd/systemd"
"""An init that guests have."""


class GuestError(AssertionError):
    """The guest, or a command in it, did not do what it should."""


@dataclass(frozen=True)
class Outcome:
    """How a command in the guest ended: its status (-N: signal N, None: it took too long), and what it printed."""

    command: str
    status: int | None
    output: str

    def checked(self) -> str:
        """The output; raises GuestError where the command failed."""
        if self.status != 0:
            how = "took too long" if self.status is None else f"failed with {self.status}"
            raise GuestError(f"in the guest `{self.command}` {how}:\n{self.output}")
        return self.output


class Machine:
    """One guest.  `with Machine(...) as machine:` boots it and ends everything that belongs to it.

    `folder` is for sockets and the console's file; its path must be short, as Unix sockets' are (unix(7)).
    Thread-safe where it says so: `run` and `begin` may be called from several threads.
    """

    def __init__(
        self,
        kernel: str,
        folder: Path,
        payload: Path,
        *,
        processors: int = 2,
        memory: int = 1024,
        virtiofs: Path | None = None,
        init: str | None = None,
        agent: bool = True,
    ) -> None:
        """`memory` is in MiB; `virtiofs` is a directory that virtiofsd gives to the guest under the tag `host`.

        `init` is the guest's PID 1, None a script that runs the agent alone.  Without `agent` nothing in the guest runs
        commands: `with` returns as soon as the machine runs, and `wait` waits until it has powered itself off.
        """
        self.kernel = kernel
        self.vsock = folder / "v.sock"
        """The socket of the vsock device as Firecracker has it: guests' connections arrive at `PATH_PORT`."""
        self._folder = folder
        self._payload = payload
        self.processors = processors
        self._memory = memory
        self.virtiofs = virtiofs
        self._init = init
        self._with_agent = agent
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._agent: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()  # guards the next two and sending to the agent; a leaf
        self._waiting: dict[int, Future[Outcome]] = {}
        self._last = 0
        self._commands: dict[int, str] = {}

    # ---- commands ---------------------------------------------------------------------------------------------------

    def run(self, *command: str, seconds: float = 300.0) -> str:
        """Run a command to its end (one word is a line for the shell) and return what it printed.

        Raises GuestError where it fails or takes longer.  Thread-safe.
        """
        return self.begin(*command, seconds=seconds).result(timeout=seconds + 60).checked()

    def begin(self, *command: str, seconds: float = 300.0) -> Future[Outcome]:
        """Start a command; after `seconds` of the guest's time it is killed.  Thread-safe."""
        words = [*command] if len(command) > 1 else ["bash", "-c", f". /host/environment; {command[0]}"]
        assert self._agent is not None
        with self._lock:
            self._last += 1
            future: Future[Outcome] = Future()
            self._waiting[self._last] = future
            self._commands[self._last] = " ".join(command)
            order = {"id": self._last, "command": words, "seconds": seconds}
            self._agent.sendall(json.dumps(order).encode() + b"\n")
        return future

    def _receive(self, agent: socket.socket) -> None:
        """Hand out what the agent says until its connection ends."""
        rest = b""
        with contextlib.suppress(OSError):
            while data := agent.recv(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._outcome(json.loads(line))
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(GuestError(f"the guest has ended; its console:\n{self.console()[-4000:]}"))

    def _outcome(self, said: dict[str, Any]) -> None:
        with self._lock:
            future = self._waiting.pop(said["id"], None)
            command = self._commands.pop(said["id"], "")
        if future is not None:
            future.set_result(Outcome(command, said["status"], said["output"]))

    # ---- the machine ------------------------------------------------------------------------------------------------

    def console(self) -> str:
        """What the guest's kernel and services printed on the serial line so far."""
        try:
            return (self._folder / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def logs(self) -> str:
        """What the programs on the host said that make the machine."""
        texts = [
            f"--- {name}\n{(self._folder / f'{name}.log').read_text(errors='replace')}" for name in self._processes
        ]
        return "\n".join(texts)

    def pause(self) -> None:
        """Stop the processors and the clocks of the guest."""
        self._tell("stop")

    def resume(self) -> None:
        """Let it go on."""
        self._tell("cont")

    def wait(self, seconds: float) -> None:
        """Wait until the guest has powered itself off.  Raises GuestError where it has not after `seconds`."""
        try:
            self._processes["qemu"].wait(seconds)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest still runs after {seconds:g} s:\n{self.console()[-4000:]}") from None

    def _tell(self, command: str) -> None:
        """One command of QEMU's machine protocol (QMP)."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(30)
            monitor.connect(str(self._folder / "qmp"))
            with monitor.makefile("rw") as lines:
                lines.readline()  # its greeting
                for word in ("qmp_capabilities", command):
                    lines.write(json.dumps({"execute": word}) + "\n")
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        if "error" in answer:
                            raise GuestError(f"QEMU: {word}: {answer}")

    # ---- beginning and end ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            for attempt in range(BOOTS):
                try:
                    self._boot()
                    break
                except GuestError:
                    if attempt == BOOTS - 1 or "vm: up" in self.console():
                        raise
                    self._end()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._agent is not None:
            with contextlib.suppress(OSError):
                self._agent.sendall(b'{"command": []}\n')  # power off
            with contextlib.suppress(GuestError):
                self.wait(STOP_SECONDS)
        self._end()

    def _boot(self) -> None:
        place = cache()
        vhost = self._folder / "vsock.vhost"
        device = ["--guest-cid", str(GUEST_CID), "--socket", str(vhost), "--uds-path", str(self.vsock)]
        self._start("vhost-device-vsock", [str(place / "bin/vhost-device-vsock"), *device])
        self._wait_for(vhost, "vhost-device-vsock")
        if self.virtiofs is not None:
            shared = self._folder / "fs.vhost"
            options = ["--socket-path", str(shared), "--shared-dir", str(self.virtiofs), "--sandbox", "none"]
            self._start("virtiofsd", [str(place / "bin/virtiofsd"), *options, "--cache", "auto"])
            self._wait_for(shared, "virtiofsd")
        self._start("qemu", self._command())
        port = self._folder / "agent"
        self._wait_for(port, "qemu")
        if not self._with_agent:
            self._wait_for_init()
            return
        self._agent = socket.socket(socket.AF_UNIX)
        self._agent.connect(str(port))
        up: Future[Outcome] = Future()
        self._waiting[0] = up
        self._reader = threading.Thread(target=self._receive, args=(self._agent,), name="agent")
        self._reader.start()
        try:
            up.result(timeout=BOOT_SECONDS)
        except TimeoutError:
            raise GuestError(f"the guest is not up after {BOOT_SECONDS:g} s:\n{self.console()[-4000:]}") from None

    def _command(self) -> list[str]:
        place = cache()
        fast = accelerator()
        how = ["-accel", "kvm", "-cpu", "host"] if fast == "kvm" else ["-accel", "tcg,thread=multi", "-cpu", "max"]
        words = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", "random.trust_cpu=on", "nokaslr"]
        if fast == "tcg":
            counter = run([str(place / "bin" / "tsc")], seconds=30).strip()  # see tsc.c
            words += ["tsc=reliable", f"tsc_early_khz={counter}", "no_timer_check"]
        if self._init is not None:
            words.append(f"vm.init={self._init}")
        if self._init == SYSTEMD:
            words.append("systemd.show_status=0")
        kernel = place / "kernels" / self.kernel
        memory = f"memory-backend-memfd,id=mem,size={self._memory}M,share=on"
        disks = {"root": (place / "rootfs.ext4", "snapshot=on,"), "payload": (self._payload, "snapshot=on,")}
        command = ["qemu-system-x86_64", *how, "-smp", str(self.processors), "-m", str(self._memory)]
        command += ["-object", memory, "-machine", "q35,memory-backend=mem,vmport=off,smm=off,usb=off"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc"]
        command += ["-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd"), "-append", " ".join(words)]
        command += ["-chardev", f"file,id=console,path={self._folder / 'console'}", "-serial", "chardev:console"]
        command += ["-qmp", f"unix:{self._folder / 'qmp'},server=on,wait=off"]
        for name, (image, options) in disks.items():
            drive = f"file={image},if=none,id={name},format=raw,{options}cache=unsafe,file.locking=off"
            command += ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]
        command += ["-chardev", f"socket,id=agent,path={self._folder / 'agent'},server=on,wait=off"]
        command += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"]
        command += ["-chardev", f"socket,id=vsock,path={self._folder / 'vsock.vhost'}"]
        command += ["-device", "vhost-user-vsock-pci,chardev=vsock"]
        if self.virtiofs is not None:
            command += ["-chardev", f"socket,id=fs,path={self._folder / 'fs.vhost'}"]
            command += ["-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024"]
        return command

    def _start(self, name: str, command: list[str]) -> None:
        """Start a program that ends with this process, whatever ends this process."""
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._folder)},
            )

    def _wait_for(self, path: Path, name: str) -> None:
        """Wait until a program listens on its socket."""
        end = time.monotonic() + SOCKET_SECONDS
        while not _listens(path):
            if self._processes[name].poll() is not None or time.monotonic() > end:
                raise GuestError(f"{name} does not listen on {path}:\n{self.logs()}")
            time.sleep(0.02)

    def _wait_for_init(self) -> None:
        """Wait until the guest's own PID 1 is started; what it does is no concern of the machine."""
        end = time.monotonic() + BOOT_SECONDS
        while STARTED not in self.console():
            if self._processes["qemu"].poll() is not None or time.monotonic() > end:
                raise GuestError(f"the guest does not start its init:\n{self.console()[-4000:]}")
            time.sleep(0.1)

    def _end(self) -> None:
        """End every program and remove what they leave."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait(STOP_SECONDS)
        self._processes.clear()
        if self._agent is not None:
            with contextlib.suppress(OSError):
                self._agent.shutdown(socket.SHUT_RDWR)
            self._agent.close()
            self._agent = None
        if self._reader is not None:
            self._reader.join(STOP_SECONDS)
            self._reader = None
        for name in ("v.sock", "vsock.vhost", "fs.vhost", "agent", "qmp"):
            (self._folder / name).unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    """Whether somebody listens on a Unix socket; asking it by a connection would use up the one that some accept.

    /proc/net/unix (unix(7)) has its flags in the fourth column, among them __SO_ACCEPTCON (include/linux/net.h).
    """
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[-1] == str(path) and int(fields[3], 16) & 0x10000:
            return True
    return False

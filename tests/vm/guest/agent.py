"""Runs commands in the guest for the host, over the virtio-serial port named `agent`.

One JSON object a line.  From the host: `id`, `command` (a list), `seconds`.  To the host: `id`, `status` (-N: signal N,
None: it took too long and was killed) and `output` (both streams).  Commands run at the same time.  An empty command
powers the machine off.
"""

import glob
import json
import os
import signal
import subprocess
import threading
import time
from typing import Any


def port() -> str:
    """The port's device; the kernel makes it a moment after the start."""
    while True:
        for name in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(name) as found:
                if found.read().strip() == "agent":
                    return "/dev/" + name.split("/")[-2]
        time.sleep(0.05)


class Agent:
    """Answers in whatever order commands end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()  # guards writing to the port; a leaf

    def say(self, **values: Any) -> None:
        data = json.dumps(values).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    def run(self, number: int, command: list[str], seconds: float) -> None:
        status: int | None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/host",
            )
        except OSError as error:
            self.say(id=number, status=127, output=str(error))
            return
        status, output = self._outcome(process, seconds)
        self.say(id=number, status=status, output=output.decode("utf-8", "replace"))

    def _outcome(self, process: "subprocess.Popen[bytes]", seconds: float) -> tuple[int | None, bytes]:
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        try:
            return None, process.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired as stuck:
            return None, (stuck.stdout or b"") + b"\n(it cannot be killed)"

    def serve(self) -> None:
        self.say(id=0, status=0, output="up")
        with os.fdopen(os.dup(self._fd), "rb", buffering=0) as requests:
            rest = b""
            while True:
                data = requests.read(65536)
                if not data:  # the host has not connected, or is gone for a moment
                    time.sleep(0.05)
                    continue
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if not order["command"]:
                        return
                    arguments = (order["id"], order["command"], order["seconds"])
                    threading.Thread(target=self.run, args=arguments, daemon=True).start()


if __name__ == "__main__":
    with open("/dev/console", "w") as console:
        console.write("vm: up\n")
    Agent(os.open(port(), os.O_RDWR | os.O_CLOEXEC)).serve()
    with open("/proc/sysrq-trigger", "w") as power:
        power.write("o")  # at once: nothing of this machine is kept

"""Threads that are started when they are needed and wait for the next job when they are not."""

import threading
from collections.abc import Callable
from time import monotonic

from fusepipe import log

Job = Callable[[], None]


class Threads:
    """Runs jobs, each in a thread of its own; whoever became idle last gets the next one, since its caches are warm.

    There is no limit here: whoever hands out jobs bounds them.  All methods may be called from any thread.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], None], logger: log.Logger) -> None:
        """`name` appears in the names of the threads; `on_error` gets what a job raised, in that job's thread."""
        self._name = name
        self._on_error = on_error
        self._logger = logger
        self._lock = threading.Lock()  # a leaf: nothing is acquired under it
        self._idle: list[_Thread] = []
        self._all: list[_Thread] = []
        self._stopped = False
        self._short = False

    def run(self, job: Job) -> bool:
        """Run `job` in an idle thread or a new one.

        False, and the job is dropped, after `stop` and where the system gives no more threads (a limit on processes).
        """
        with self._lock:
            if self._stopped:
                return False
            thread = self._idle.pop() if self._idle else None
            if thread is None:
                thread = _Thread(self, f"{self._name} {len(self._all) + 1}")
                thread.job = job
                try:
                    # Under the lock, so that `stop` sees every thread that has been started.
                    thread.start()
                except RuntimeError as error:
                    if not self._short:
                        self._logger.warning(
                            "no more threads can be started; requests wait for each other", error=error
                        )
                    self._short = True
                    return False
                self._all.append(thread)
                return True
        thread.job = job
        thread.gate.release()
        return True

    def stop(self, patience: float) -> bool:
        """Let idle threads end, and those that work when they have done so; wait for them `patience` seconds.

        Returns whether all have ended.  To be called from a thread that is none of these.
        """
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
        for thread in idle:
            thread.gate.release()
        end = monotonic() + patience
        for thread in self._all:
            thread.join(max(0.0, end - monotonic()))
        return not any(thread.is_alive() for thread in self._all)

    def __len__(self) -> int:
        """How many threads have been started."""
        return len(self._all)

    def _rest(self, thread: "_Thread") -> bool:
        """A thread has done its job: whether it is to wait for another."""
        with self._lock:
            if not self._stopped:
                self._idle.append(thread)
            return not self._stopped


class _Thread(threading.Thread):
    """One thread; its gate is released when `job` is set, or without a job when it is to end."""

    def __init__(self, owner: Threads, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.gate = threading.Lock()
        self.gate.acquire()
        self.job: Job | None = None
        self._owner = owner

    def run(self) -> None:
        while self.job is not None:
            job, self.job = self.job, None
            try:
                job()
            except BaseException as error:
                self._owner._on_error(error)
            del job  # what it refers to must not live on while the thread is idle
            if not self._owner._rest(self):
                return
            # Ends with the next job or with `stop`.
            self.gate.acquire()

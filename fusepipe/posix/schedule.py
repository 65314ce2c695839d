"""Which file runs when: many at once, those that may not alone at the end."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from fusepipe.posix.checkout import TestFile
from fusepipe.posix.groups import Stop
from fusepipe.posix.results import FileResult, Outcome

RunOne = Callable[[TestFile], FileResult]
Ended = Callable[[FileResult], None]


def run_all(tests: Sequence[TestFile], jobs: int, run_one: RunOne, ended: Ended, stop: Stop) -> None:
    """Run every file, at most `jobs` at once, until all are done or `stop` is set.

    Files with many assertions begin first, so that at the end no long one runs by itself.  `run_one` is called in
    threads, `ended` in this one.  When a file bails out the rest is not run.
    """

    def run(test: TestFile) -> FileResult | None:
        if stop:
            return None
        result = run_one(test)
        if result.outcome is Outcome.BAILED_OUT:
            stop.set()
        return result

    def take(result: FileResult | None) -> None:
        if result is not None:
            ended(result)

    together = sorted((test for test in tests if test.alone is None), key=lambda test: -test.weight)
    with ThreadPoolExecutor(jobs, thread_name_prefix="job") as pool:
        try:
            for future in as_completed([pool.submit(run, test) for test in together]):
                take(future.result())
            for test in tests:
                if test.alone is not None:
                    take(pool.submit(run, test).result())
        except BaseException:
            stop.set()
            raise

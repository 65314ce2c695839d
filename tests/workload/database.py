"""An SQLite database written by two processes at once, in both journal modes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.workload.jobs import Context, JobError, check

WRITER = """
import sqlite3, sys
path, who, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = sqlite3.connect(path, timeout=120, isolation_level=None)
for i in range(rows):
    connection.execute("BEGIN IMMEDIATE")
    (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM entries").fetchone()
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (last + 1, who, f"{who} {i} " * 40))
    if i % 10 == 9:
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        (last,) = connection.execute("SELECT max(number) FROM entries").fetchone()
        connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (last + 1, who, f"{who} {i} again"))
    connection.execute("COMMIT")
    if i % 7 == 0:
        (count, largest) = connection.execute("SELECT count(*), max(number) FROM entries").fetchone()
        assert count == largest, (count, largest)
connection.close()
"""


def _write(job: Context, path: Path, journal: str) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    (mode,) = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()
    check(mode == journal, f"SQLite refused journal mode {journal}: it is {mode}")
    connection.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, who TEXT, text TEXT)")
    connection.execute("CREATE INDEX by_who ON entries (who, number)")
    connection.commit()
    connection.close()
    rows = job.size.database_rows
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), who, str(rows)], stderr=subprocess.PIPE, text=True)
        for who in ("first", "second")
    ]
    try:
        for writer in writers:
            _, errors = writer.communicate(timeout=job.size.step_seconds)
            check(writer.returncode == 0, f"a writer in journal mode {journal} failed:\n{errors}")
    except subprocess.TimeoutExpired:
        raise JobError(f"a writer in journal mode {journal} did not end") from None
    finally:
        for writer in writers:
            if writer.poll() is None:
                writer.kill()
                writer.communicate()
    connection = sqlite3.connect(path)
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    counts = dict(connection.execute("SELECT who, count(*) FROM entries GROUP BY who").fetchall())
    connection.close()
    check(integrity == "ok", f"integrity_check in journal mode {journal}: {integrity}")
    check(counts == {"first": rows, "second": rows}, f"rows in journal mode {journal}: {counts}")


def run(job: Context) -> dict[str, object]:
    """Two processes insert, roll back and count in one database; then its integrity is checked."""
    for journal in ("delete", "wal"):
        _write(job, job.work / f"{journal}.sqlite", journal)
        job.say(f"two writers, journal mode {journal}: {2 * job.size.database_rows} rows, integrity ok")
    return {"rows": 4 * job.size.database_rows}

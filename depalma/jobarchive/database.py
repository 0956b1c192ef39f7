"""The tables of the archive. Each connection is used by one thread at a time; nothing here knows a loop.

Errors are sqlite3's own; `is_damage` tells a damaged file from a disk that is full or a file that may not be read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from depalma.errors import DepalmaError
from depalma.jobarchive.record import Record
from depalma.jobarchive.search import Wanted, conditions

#: `PRAGMA user_version`; raised when an older release could not read what this one writes.
FORMAT = 1
#: A condition that so many jobs fulfil at most is looked up by its index, and the rest is tried on those.
FEW = 10_000
#: Otherwise so many ids are looked at in one query, from the newest down.
IDS_AT_ONCE = 100_000
_VARIABLES = 500

_TABLES = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, user TEXT NOT NULL, state TEXT NOT NULL,
    submitted REAL NOT NULL, started REAL, finished REAL NOT NULL, tasks INTEGER NOT NULL
);
CREATE INDEX jobs_name ON jobs (name);
CREATE INDEX jobs_user ON jobs (user);
CREATE INDEX jobs_state ON jobs (state);
CREATE INDEX jobs_finished ON jobs (finished);
CREATE TABLE tags (tag TEXT NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (tag, job)) WITHOUT ROWID;
CREATE INDEX tags_job ON tags (job);
CREATE TABLE records (id INTEGER PRIMARY KEY, head BLOB NOT NULL, detail BLOB NOT NULL);
CREATE TABLE facts (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "jobs.id, name, user, state, submitted, started, finished, tasks, head"


class NewerFormat(DepalmaError):
    """The file was written by a newer release."""


class Dropped(Struct, frozen=True):
    """What was removed by policy: nothing that ended before `before` is sure to be there, nor ids up to `job`."""

    job: int = 0
    before: float = 0.0
    why: str = ""


class Page(Struct, frozen=True):
    """Jobs, newest first, all of those with ids from `looked_to` on (0: all there are)."""

    records: list[Record]
    looked_to: int


def is_damage(error: BaseException) -> bool:
    """Returns whether the error says that the file is not what was written."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return isinstance(error, sqlite3.DatabaseError) and name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


class Database:
    """One connection. Errors of every method: sqlite3.Error."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Errors: NewerFormat, sqlite3.Error."""
        self.path = path
        # A thread at a time uses it, not always the same one.
        self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            self._open(read_only)
        except BaseException:
            self._db.close()
            raise

    def _open(self, read_only: bool) -> None:
        run = self._db.execute
        if read_only:
            run("PRAGMA query_only = ON")
            return
        (version,) = run("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise NewerFormat(f"{self.path} has format {version}; this release writes format {FORMAT}")
        if version == 0:
            run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA journal_size_limit = 16777216")
        if version == 0:
            # All or nothing: a half-made file would be taken for a whole one.
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # ------------------------------------------------------------ writing

    def write(self, records: Iterable[Record]) -> None:
        """Puts records in, on disk when it returns; one that is there already is replaced."""
        rows = list(records)
        columns = [
            (row.id, row.name, row.user, row.state, row.submitted_at, row.started_at, row.finished_at, row.tasks)
            for row in rows
        ]
        with self._change() as db:
            db.executemany("DELETE FROM tags WHERE job = ?", [(row.id,) for row in rows])
            db.executemany("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", columns)
            db.executemany(
                "INSERT OR IGNORE INTO tags VALUES (?, ?)", [(tag, row.id) for row in rows for tag in row.tags]
            )
            db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", [(r.id, r.head, r.detail) for r in rows])

    def remove(self, job: int) -> None:
        """Takes a job out."""
        with self._change() as db:
            _remove(db, [job])

    def trim(self, ended_before: float, limit_bytes: int, why: tuple[str, str], at_most: int = 2_000) -> bool:
        """Removes what ended before, and the oldest beyond so many bytes; returns whether there is more to remove.

        `why`: what is noted as the reason for either.
        """
        old = self._oldest(at_most, ended_before)
        reason = why[0]
        if not old and self.used_bytes() > limit_bytes:
            old, reason = self._oldest(max(1, min(at_most, self.count() // 10)), 1e18), why[1]
        if not old:
            return False
        ids = [job for job, _ in old]
        with self._change() as db:
            _remove(db, ids)
            self._note(db, Dropped(max(ids), old[-1][1], reason))
        self._db.execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return True

    def note_dropped(self, went: Dropped) -> None:
        """Notes jobs that were too old to be written at all."""
        with self._change() as db:
            self._note(db, went)

    def _note(self, db: sqlite3.Connection, went: Dropped) -> None:
        known = self.dropped()
        facts = (("job", max(known.job, went.job)), ("before", max(known.before, went.before)), ("why", went.why))
        db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)

    def _oldest(self, count: int, ended_before: float) -> list[tuple[int, float]]:
        sql = "SELECT id, finished FROM jobs WHERE finished < ? ORDER BY finished LIMIT ?"
        return self._db.execute(sql, (ended_before, count)).fetchall()

    # ------------------------------------------------------------ reading

    def dropped(self) -> Dropped:
        """Returns what was removed by policy so far."""
        facts = dict(self._db.execute("SELECT key, value FROM facts").fetchall())
        return Dropped(int(facts.get("job", 0)), float(facts.get("before", 0.0)), str(facts.get("why", "")))

    def count(self) -> int:
        """Returns how many jobs there are; costs a walk over an index."""
        return int(self._db.execute("SELECT count(*) FROM jobs").fetchone()[0])

    def used_bytes(self) -> int:
        """Returns the size of what is in use of the file."""
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def ended(self, jobs: Sequence[int]) -> dict[int, float]:
        """Returns when those of the jobs that are here ended."""
        found: dict[int, float] = {}
        for start in range(0, len(jobs), _VARIABLES):
            some = jobs[start : start + _VARIABLES]
            marks = ",".join("?" * len(some))
            found.update(self._db.execute(f"SELECT id, finished FROM jobs WHERE id IN ({marks})", some).fetchall())
        return found

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """Returns the ranges of ids from `first` to `last` that are not here."""
        sql = """
            SELECT before + 1, id - 1 FROM (
                SELECT id, lag(id, 1, :first - 1) OVER (ORDER BY id) AS before
                FROM (SELECT id FROM jobs WHERE id BETWEEN :first AND :last UNION ALL SELECT :last + 1)
            ) WHERE id > before + 1
        """
        return self._db.execute(sql, {"first": first, "last": last}).fetchall()

    def detail(self, job: int) -> bytes | None:
        """Returns the detail of a job."""
        found = self._db.execute("SELECT detail FROM records WHERE id = ?", (job,)).fetchone()
        return None if found is None else bytes(found[0])

    def records(self, first: int, last: int, limit: int, limit_bytes: int) -> list[Record]:
        """Returns whole records of these ids in rising order; fewer when they are large, at least one if there is."""
        sql = f"SELECT {_COLUMNS}, detail FROM jobs JOIN records USING (id) WHERE id BETWEEN ? AND ? "
        found: list[Record] = []
        size = 0
        for row in self._db.execute(sql + "ORDER BY id LIMIT ?", (first, last, limit)):
            tags = tuple(tag for (tag,) in self._db.execute("SELECT tag FROM tags WHERE job = ?", (row[0],)))
            record = _record(row, tags, row[9])
            found.append(record)
            size += len(record.detail)
            if size >= limit_bytes:
                break
        return found

    def search(self, wanted: Wanted, before: int, limit: int) -> Page:
        """Returns up to `limit` of the jobs with ids below `before`, newest first, without their details.

        One call looks at a bounded number of jobs: where the page says how far it came, ask again from there.
        """
        sql, values, low = self._query(wanted, before)
        ids = [row[0] for row in self._db.execute(f"{sql} DESC LIMIT ?", (*values, limit))]
        return Page(self._heads(ids), ids[-1] if len(ids) == limit else low if low > 1 else 0)

    def _query(self, wanted: Wanted, before: int) -> tuple[str, list[object], int]:
        """Returns what to select, its values, and the lowest id that it looks at."""
        checks = conditions(wanted)
        few = next((check for check in checks if check.index and self._is_few(check.sql, check.values)), None)
        by_tag = wanted.tag is not None and few is None
        if few is not None:
            source, low = f"jobs INDEXED BY {few.index}", 0
        elif by_tag:
            source = "tags CROSS JOIN jobs NOT INDEXED ON jobs.id = tags.job"
            low = 0 if self._is_few("tag = ?", (wanted.tag,), "tags") else self._window(before)
        else:
            source, low = "jobs NOT INDEXED", self._window(before)
        job = "tags.job" if by_tag else "jobs.id"
        where = [f"{job} < ?", f"{job} >= ?"]
        values: list[object] = [before, low]
        if wanted.tag is not None:
            where.append("tag = ?" if by_tag else "EXISTS (SELECT 1 FROM tags WHERE tag = ? AND job = jobs.id)")
            values.append(wanted.tag)
        for check in checks:
            where.append(check.sql)
            values += check.values
        return f"SELECT {job} FROM {source} WHERE {' AND '.join(where)} ORDER BY {job}", values, low

    def _window(self, before: int) -> int:
        top = self._db.execute("SELECT max(id) FROM jobs WHERE id < ?", (before,)).fetchone()[0] or 0
        return max(0, int(top) - IDS_AT_ONCE + 1)

    def _is_few(self, sql: str, values: Sequence[object], table: str = "jobs") -> bool:
        counted = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {sql} LIMIT {FEW + 1})"
        return int(self._db.execute(counted, values).fetchone()[0]) <= FEW

    def _heads(self, ids: Sequence[int]) -> list[Record]:
        sql = f"SELECT {_COLUMNS} FROM jobs JOIN records USING (id) WHERE id = ?"
        return [_record(row, (), b"") for job in ids for row in self._db.execute(sql, (job,))]


def _record(row: tuple[Any, ...], tags: tuple[str, ...], detail: bytes) -> Record:
    job, name, user, state, submitted, started, finished, tasks, head = row[:9]
    return Record(job, name, user, state, submitted, started, finished, tasks, tags, head, detail)


def _remove(db: sqlite3.Connection, jobs: Sequence[int]) -> None:
    ids = [(job,) for job in jobs]
    for sql in ("tags WHERE job = ?", "records WHERE id = ?", "jobs WHERE id = ?"):
        db.executemany(f"DELETE FROM {sql}", ids)

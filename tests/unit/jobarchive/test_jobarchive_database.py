"""What the tables find is what a plain look at every job finds, whichever index is taken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import pytest

from depalma.jobarchive import database as tables
from depalma.jobarchive.database import Database, Dropped
from depalma.jobarchive.ranges import count, shown, without
from depalma.jobarchive.record import Head, Record
from depalma.jobarchive.search import Wanted

STATES = ("succeeded", "failed", "cancelled")
NAMES = ("train-1", "train-2", "build", "a[1]", "*", "", "é-x", "Train-1")
TAGS = ("a", "b", "line\nbreak")


def record(job: int, chance: random.Random, *, finished: float | None = None) -> Record:
    state, tags = chance.choice(STATES), tuple(sorted(set(chance.choices(TAGS, k=chance.randrange(3)))))
    head = Head("command", 0, tags, "", 0, (1, 0, 0, 0, 0), 0, "", "true", 1.0, 0, 0, ())
    ended = chance.uniform(100, 1000) if finished is None else finished
    return Record(
        job, chance.choice(NAMES), chance.choice(["ann", "bob"]), state, ended - 10, ended - 5, ended, 1, tags,
        msgspec.msgpack.encode(head), b"x" * 50,
    )  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "jobs.sqlite")
    yield made
    made.close()


def wanted(chance: random.Random) -> Wanted:
    def perhaps(value: object) -> object:
        return value if chance.random() < 0.4 else None

    patterns = (*NAMES, "train-*", "t*1", "*", "?rain-[12]", "[!t]*", "*-*", "nothing", "a[[]1]", "train-[!1]")
    return Wanted(
        states=frozenset(chance.sample(STATES, 2)) if chance.random() < 0.4 else frozenset(),
        tag=perhaps(chance.choice(TAGS)),  # type: ignore[arg-type]
        user=perhaps(chance.choice(["ann", "bob", "eve"])),  # type: ignore[arg-type]
        name=perhaps(chance.choice(patterns)),  # type: ignore[arg-type]
        ended_since=perhaps(chance.uniform(0, 1100)),  # type: ignore[arg-type]
        ended_before=perhaps(chance.uniform(0, 1100)),  # type: ignore[arg-type]
        submitted_before=perhaps(chance.uniform(0, 1100)),  # type: ignore[arg-type]
    )


def fits(wanted: Wanted, each: Record) -> bool:
    name = wanted.name
    return (
        (not wanted.states or each.state in wanted.states)
        and (wanted.tag is None or wanted.tag in each.tags)
        and (wanted.user is None or each.user == wanted.user)
        and (name is None or each.name == name or fnmatchcase(each.name, name))
        and (wanted.ended_since is None or each.finished_at >= wanted.ended_since)
        and (wanted.ended_before is None or each.finished_at < wanted.ended_before)
        and (wanted.submitted_before is None or each.submitted_at < wanted.submitted_before)
    )


@pytest.mark.parametrize("last", ["\ud7ff", "\U0010ffff", "\x7f", "z"])
def test_a_name_may_begin_with_any_character(database: Database, last: str) -> None:
    row = msgspec.structs.replace(record(1, random.Random(1)), name=f"a{last}b")
    database.write([row])
    assert [each.id for each in database.search(Wanted(name=f"a{last}*"), 10, 10).records] == [1]
    assert not database.search(Wanted(name=f"b{last}*"), 10, 10).records


@pytest.mark.parametrize(("few", "at_once"), [(0, 7), (0, 1000), (20, 25), (10_000, 100_000)])
def test_every_plan_finds_the_same_page_by_page(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int, at_once: int
) -> None:
    monkeypatch.setattr(tables, "FEW", few)
    monkeypatch.setattr(tables, "IDS_AT_ONCE", at_once)
    chance = random.Random(few + at_once)
    rows = [record(job, chance) for job in sorted(chance.sample(range(1, 300), 120))]
    database.write(rows)
    for _ in range(150):
        asked = wanted(chance)
        found: list[int] = []
        before, calls = 2**53, 0
        while before:
            page = database.search(asked, before, 10)
            assert len(page.records) <= 10
            assert page.looked_to < before
            found += [each.id for each in page.records]
            before, calls = page.looked_to, calls + 1
        assert found == [each.id for each in rows[::-1] if fits(asked, each)], asked
        assert calls <= 2 + 300 // at_once + len(found) // 10


def test_a_record_comes_back_as_it_was_and_is_replaced_by_a_newer_one(database: Database) -> None:
    chance = random.Random(1)
    rows = [record(job, chance) for job in range(1, 30)]
    database.write(rows)
    back = database.records(5, 20, 100, 2**30)
    assert [each.id for each in back] == list(range(5, 21))
    assert {each.id: set(each.tags) for each in back} == {each.id: set(each.tags) for each in rows[4:20]}
    assert [msgspec.structs.replace(each, tags=()) for each in back] == [
        msgspec.structs.replace(each, tags=()) for each in rows[4:20]
    ]
    assert len(database.records(1, 99, 3, 2**30)) == 3
    assert len(database.records(1, 99, 100, 1)) == 1, "one at least, however large"
    newer = record(7, chance, finished=5000.0)
    database.write([newer])
    assert database.ended([7, 8, 99]) == {7: 5000.0, 8: rows[7].finished_at}
    assert database.count() == 29


def test_a_failed_write_leaves_nothing(database: Database) -> None:
    chance = random.Random(1)

    def rows() -> Iterator[Record]:
        yield record(1, chance)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        database.write(rows())
    assert database.count() == 0
    database.write([record(2, chance)])
    assert database.count() == 1


def test_gaps(database: Database) -> None:
    chance = random.Random(1)
    assert database.gaps(1, 9) == [(1, 9)]
    database.write([record(job, chance) for job in (1, 2, 5, 9, 20)])
    assert database.gaps(1, 9) == [(3, 4), (6, 8)]
    assert database.gaps(2, 25) == [(3, 4), (6, 8), (10, 19), (21, 25)]
    assert database.gaps(5, 5) == []


def test_trimming_says_what_went(database: Database) -> None:
    chance = random.Random(1)
    database.write([record(job, chance, finished=float(job)) for job in range(1, 11)])
    assert database.dropped() == Dropped()
    assert database.trim(4.0, 2**30, ("days", "bytes"))
    assert not database.trim(4.0, 2**30, ("days", "bytes"))
    assert database.dropped() == Dropped(3, 3.0, "days")
    assert database.trim(4.0, 1, ("days", "bytes"), at_most=2)
    assert database.dropped() == Dropped(4, 4.0, "bytes")
    assert database.gaps(1, 10) == [(1, 4)]
    assert database.search(Wanted(tag="a"), 5, 10).records == []


def test_ranges_without_ids() -> None:
    chance = random.Random(3)
    for _ in range(100):
        taken = sorted(chance.sample(range(1, 60), chance.randrange(50)))
        ranges = [(3, 20), (21, 30), (40, 40), (50, 70)]
        left = without(ranges, taken)
        ids = [job for first, last in left for job in range(first, last + 1)]
        assert ids == [job for first, last in ranges for job in range(first, last + 1) if job not in taken]
        assert count(left) == len(ids)
    assert without([(1, 10**12)], range(5, 10**9)) == [(1, 4), (10**9, 10**12)]
    assert shown([(1, 3), (7, 7)]) == "1-3, 7"
    assert shown([(n, n) for n in range(9)], limit=2) == "0, 1, …"

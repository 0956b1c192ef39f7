"""The small parts of the state by themselves: ordered keys, completions, ready jobs."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depalma.model import Payload, slots_of
from depalma.state.completions import Completions
from depalma.state.event_log import EventLog
from depalma.state.ordered import OrderedKeys
from depalma.state.stories import KEEP_ATTEMPTS, KEEP_TAILS, PastAttempt, Story
from depalma.tails import OutputTail

NOTE = (1, "h1", 0, None, "", 3, "digest", "because")


@given(st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), max_size=200))
def test_ordered_keys_are_a_sorted_set(steps):
    """Against the obvious model."""
    keys, model = OrderedKeys(), set()
    for add, key in steps:
        if add and key not in model:
            keys.add(key)
            model.add(key)
        elif not add and key in model:
            keys.remove(key)
            model.remove(key)
        elif not add:
            with pytest.raises(KeyError):
                keys.remove(key)
        assert len(keys) == len(model)
    assert list(keys) == sorted(model)
    for key in range(-51, 52):
        assert keys.rank(key) == sum(other < key for other in model)


def test_ordered_keys_over_many_chunks():
    """Splitting and emptying chunks, with a fixed seed."""
    rng = random.Random(3)
    keys, model = OrderedKeys(), set()
    for _ in range(30_000):
        key = rng.randrange(20_000)
        if key in model:
            keys.remove(key)
            model.remove(key)
        else:
            keys.add(key)
            model.add(key)
    ordered = sorted(model)
    assert list(keys) == ordered
    assert all(keys.rank(key) == place for place, key in enumerate(ordered) if place % 500 == 0)

    for key in ordered:
        keys.remove(key)
    assert list(keys) == []
    assert keys.rank(5) == 0


@pytest.mark.parametrize(
    ("cpus", "slots"), [(0.001, 1 / 64), (0.5, 0.5), (0.1, 7 / 64), (1.0, 1), (1.5, 1.5), (4.0, 4)]
)
def test_slots_of_cpus(cpus, slots):
    """Rounded up to a 64th, so that sums are exact."""
    assert slots_of(cpus) == slots


def completions(order: list[int], first: int = 0) -> Completions:
    made = Completions(first)
    for place, index in enumerate(order):
        made.add(index, NOTE, float(place) if place % 2 else None, 100.0 + place, Payload(inline=b"%d" % index))
    return made


def test_completions_give_back_what_was_added():
    """In any order of index, from any first index."""
    order = list(range(10, 300))
    random.Random(5).shuffle(order)
    made = completions(order, first=10)

    assert list(made) == order
    assert made[3:7] == order[3:7]
    for place, index in enumerate(order):
        record = made.find(index, "succeeded")
        assert record.finished_at == 100.0 + place
        assert record.started_at == (float(place) if place % 2 else None)
        assert record.result == Payload(inline=b"%d" % index)
        assert (record.host, record.code_index, record.reason) == ("h1", 3, "because")
    assert made.find(9, "succeeded") is None
    assert made.find(500, "succeeded") is None


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
def test_a_range_of_cancelled_tasks_stands_in_the_order(before, count, after, size):
    """Wherever it came."""
    made = completions(list(range(before)))
    made.add_range(before, count, 7.0)
    for index in range(before + count, before + count + after):
        made.add(index, NOTE, None, 1.0, None)
    expected = list(range(before + count + after))

    assert list(made) == [made[i] for i in range(len(made))] == made[:] == expected
    assert made[::-2] == expected[::-2]
    restored = Completions(0)
    for image in made.images(size):
        restored.extend(image, {})
    assert list(restored) == expected
    for index in expected:
        assert restored.find(index, "failed") == made.find(index, "failed") is not None
    with pytest.raises(IndexError):
        made[len(expected)]


def test_a_second_range_is_an_error_of_ours():
    """A job is cancelled once."""
    made = completions([])
    made.add_range(0, 2, 1.0)

    with pytest.raises(ValueError, match="at most one range"):
        made.add_range(2, 2, 1.0)


def test_columns_are_little_endian_everywhere(monkeypatch):
    """A snapshot may move to another kind of machine."""
    made = completions([0, 1])
    (plain,) = made.images(10)
    assert plain.tasks == (0).to_bytes(8, "little") + (1).to_bytes(8, "little")

    monkeypatch.setattr(sys, "byteorder", "little" if sys.byteorder == "big" else "big")
    (swapped,) = made.images(10)
    assert swapped.tasks == (0).to_bytes(8, "big") + (1).to_bytes(8, "big")
    restored = Completions(0)
    restored.extend(swapped, {})
    assert list(restored) == [0, 1]


def test_the_event_log_keeps_whole_records():
    """At least as many events as it promises."""
    log = EventLog()
    for _ in range(10):
        log.add("task.finished", 1.0, refs=tuple((1, i, 1) for i in range(20_000)))

    assert 50_000 <= sum(record.count for record in log.records) <= 70_000
    assert log.next_index == 200_001


@given(st.lists(st.sampled_from([None, OutputTail(b"end"), OutputTail(digest="a" * 64, item=3)])), st.integers(1, 4))
def test_tails_stay_with_their_tasks(tails, size):
    """Also through a snapshot; a job without any has no column for them."""
    made = Completions(0)
    for index, tail in enumerate(tails):
        made.add(index, NOTE, None, 1.0, None, tail)
    restored = Completions(0)
    for image in made.images(size):
        restored.extend(image, {})

    for done in (made, restored):
        assert [done.find(index, "failed").tail for index in range(len(tails))] == tails
        assert list(filter(None, done.blobs())) == [tail.digest for tail in tails if tail and tail.digest]
    assert list(made.images(size)) == list(restored.images(size))
    if not any(tails):
        assert all(image.tails == [] for image in made.images(size))


def test_tails_in_one_blob_share_its_digest():
    """Or the name would cost a task as much as a short output."""
    made = Completions(0)
    for index in range(2):
        made.add(index, NOTE, None, 1.0, None, OutputTail(digest="".join(["b"] * 64), item=index))

    first, second = (made.find(index, "failed").tail for index in range(2))
    assert first.digest is second.digest


def test_a_story_keeps_the_output_of_its_latest_attempts_only():
    """Of a task that is tried for ever, or it would fill the masters' disks."""
    story = Story(0, 0, [])
    for number in range(1, KEEP_ATTEMPTS + 4):
        story.add(
            PastAttempt(number, "h1", "failed", 1.0, 2.0, "", OutputTail(b"%d" % number) if number != 20 else None)
        )

    assert [past.number for past in story.attempts] == list(range(4, KEEP_ATTEMPTS + 4))
    assert [past.tail and past.tail.inline for past in story.attempts[-KEEP_TAILS:]] == [
        b"19",
        None,
        b"21",
        b"22",
        b"23",
    ]
    assert all("only that of the last attempt" in past.tail.lost for past in story.attempts[:-KEEP_TAILS])

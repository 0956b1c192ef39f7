"""Snapshots: complete, equal for equal states, readable by later versions, and never guessed at."""

from __future__ import annotations

import random
from base64 import b64decode
from pathlib import Path

import msgspec
import pytest

from depalma.state import commands as c
from depalma.state.image import FORMAT, BadSnapshot
from depalma.state.machine import Machine, digest_of

FORMAT_1 = Path(__file__).parent / "format1.snapshot"


def test_a_restored_machine_continues_equally(make_bench, make_fuzzer):
    """Every hundred commands; the bench then compares all answers and hashes with the restored one."""
    bench = make_bench()
    fuzzer = make_fuzzer(bench, random.Random(99))
    for _ in range(10):
        for _ in range(100):
            bench.do(fuzzer.step())
        bench.check_snapshot()


def test_restoring_wakes_up_everybody(bench):
    """Whoever waited cannot know what happened meanwhile."""
    bench.host()
    bench.submit()
    restored = Machine()
    restored.restore(bench.machine.snapshot())
    changes = restored.drain_changes()

    assert (changes.jobs, changes.hosts, changes.code) == ({1}, {"h1"}, True)


def test_the_state_hash_tells_histories_apart(bench):
    """Also when the states are equal, and when only an answer differs."""
    one, two = Machine(), Machine()
    assert one.state_hash == two.state_hash == ""
    one.apply(c.encode(c.CloseJob("", 1, 1.0)), 1)
    two.apply(c.encode(c.CloseJob("", 2, 1.0)), 1)

    assert digest_of(one.state) == digest_of(two.state)
    assert one.state_hash != two.state_hash


@pytest.mark.parametrize("damage", ["empty", "cut", "format", "kind", "text"])
def test_a_bad_snapshot_is_refused_and_changes_nothing(bench, damage):
    """With a message that says what is wrong."""
    bench.host()
    bench.submit(3)
    data = bench.machine.snapshot()
    value = msgspec.msgpack.decode(data)
    bad = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "format": msgspec.msgpack.encode([FORMAT + 1, "something new"]),
        "kind": msgspec.msgpack.encode({"a": 1}),
        "text": msgspec.msgpack.encode([FORMAT, "not a number", *value[2:]]),
    }[damage]
    before = digest_of(bench.state)

    with pytest.raises(BadSnapshot, match=f"format {FORMAT + 1}" if damage == "format" else "damaged"):
        bench.machine.restore(bad)
    assert digest_of(bench.state) == before


def test_a_snapshot_of_format_1_stays_readable():
    """Made once, never renewed: what is added to the format must have a default."""
    machine = Machine()
    machine.restore(b64decode(FORMAT_1.read_text()))
    state = machine.state
    state.check_invariants()

    assert state.version == 24
    assert machine.state_hash == "cf52f85176ba5fcd0f3ac35c60dca642"
    assert {job.id: job.state() for job in state.jobs.values()} == {
        1: "failed", 2: "running", 3: "cancelled", 4: "held", 5: "queued",
    }  # fmt: skip
    assert state.jobs[1].outcome(1).error == "Boom"
    assert state.jobs[2].running[0].host == "h1"
    assert {host.name: host.state for host in state.hosts.values()} == {"h1": "up", "h2": "lost"}
    assert state.tree_digest(2) == "69b0e1362e316d589e745ecae9d4ef34021953f2b6d8a66884b0d92629d0784f"
    assert state.answers.find("submit", "r1").value == 1
    assert state.events.next_index == 30
    assert isinstance(machine.apply(c.encode(c.CloseJob("", 5, 1.0)), 1), c.Applied)

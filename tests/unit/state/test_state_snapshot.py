"""Snapshots: complete, equal for equal states, readable by later versions, and never guessed at."""

from __future__ import annotations

import random
from base64 import b64decode
from pathlib import Path

import msgspec
import pytest

from depalma import items
from depalma.model import Payload
from depalma.state import commands as c
from depalma.state import image
from depalma.state.image import FORMAT, BadSnapshot
from depalma.state.machine import Machine, digest_of

FORMAT_1 = Path(__file__).parent / "format1.snapshot"
FORMAT_2 = Path(__file__).parent / "format2.snapshot"
#: Format 2 as it was before hosts could lag, and entries be anything but modules and folders.
FORMAT_2_CODE = Path(__file__).parent / "format2-code.snapshot"


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
    restored.restore(list(bench.machine.snapshot()))
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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("empty", "damaged"),
        ("cut", "damaged"),
        ("piece", "pieces is wrong"),
        ("end", "end is missing"),
        ("more", "pieces is wrong"),
        ("format", f"format {FORMAT + 1}; this release reads formats 1 to {FORMAT}: upgrade"),
        ("kind", "damaged"),
        ("text", "damaged"),
        ("host", "damaged"),
    ],
)
def test_a_bad_snapshot_is_refused_and_changes_nothing(bench, damage, words):
    """With a message that says what is wrong."""
    bench.host()
    bench.submit(3)
    pieces = list(bench.machine.snapshot())
    value = msgspec.msgpack.decode(pieces[0])
    bad = {
        "empty": [],
        "cut": [pieces[0], pieces[1][: len(pieces[1]) // 2], *pieces[2:]],
        "piece": [*pieces[:1], *pieces[2:]],
        "end": pieces[:-1],
        "more": [*pieces, pieces[-2]],
        "format": [msgspec.msgpack.encode([FORMAT + 1, "something new"]), *pieces[1:]],
        "kind": [msgspec.msgpack.encode({"a": 1})],
        "text": [msgspec.msgpack.encode([FORMAT, "not a number", *value[2:]]), *pieces[1:]],
        "host": [pieces[0], msgspec.msgpack.encode(["done", 99, [b"", b"", b"", b"", [], [], 0, 0, 0, 0.0]])],
    }[damage]
    before = digest_of(bench.state)

    with pytest.raises(BadSnapshot, match=words):
        bench.machine.restore(bad)
    assert digest_of(bench.state) == before


def test_an_error_of_the_file_comes_through_and_changes_nothing(bench):
    """What reads the pieces may find damage at any of them."""
    bench.submit(3)
    before = digest_of(bench.state)

    def pieces():
        yield from list(bench.machine.snapshot())[:2]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        bench.machine.restore(pieces())
    assert digest_of(bench.state) == before


def test_a_large_job_is_cut_into_pieces(bench, monkeypatch):
    """Rows, notes, stories and chunks beyond the limit follow in pieces of their own."""
    monkeypatch.setattr(image, "ROWS", 7)
    monkeypatch.setattr(image, "PIECE_BYTES", 100)
    bench.host(slots=100)
    job = bench.submit(40, retries=1, kind="function", argv=(), function="m:f", open=True)
    refs = [(1, task, 1) for task in range(40)]
    bench.assign(*refs)
    for ref in refs[:30]:
        error = f"error {ref[1]}" if ref[1] % 3 else ""
        bench.finish(ref, outcome="failed" if ref[1] % 2 else "succeeded", error=error)
    bench.assign(*[(1, task, 2) for task in range(1, 30, 2)])
    bench.finish(*[(1, task, 2) for task in range(1, 28, 2)], outcome="failed", error="again")
    for _ in range(20):
        bench.ok(c.AddTasks("", 1, Payload(inline=items.pack([b"x"])), 1, bench.tick()))
    for number in range(30):
        bench.submit(request=f"request {number}")
    pieces = list(bench.machine.snapshot())
    kinds = [msgspec.msgpack.decode(piece)[0] for piece in pieces[1:]]

    assert len(pieces) > 30
    assert {"jobs", "done", "stories", "chunks", "younger", "events", "end"} <= set(kinds)
    bench.check_snapshot()
    restored = bench.twin.state.jobs[1]
    assert [restored.outcome(task) for task in range(40)] == [job.outcome(task) for task in range(40)]
    assert restored.argument_of(59) == job.argument_of(59)


def test_a_snapshot_of_format_1_stays_readable():
    """Made once, never renewed: what is added to the format must have a default."""
    machine = Machine()
    machine.restore([b64decode(FORMAT_1.read_text())])
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


def test_the_first_snapshots_of_format_2_stay_readable():
    """Made before hosts could be drained or removed: every one of them is of the cluster file, and none is drained."""
    machine = Machine()
    machine.restore(msgspec.msgpack.decode(b64decode(FORMAT_2.read_text())))
    state = machine.state
    state.check_invariants()

    assert machine.state_hash == "196999bea91db38ce87d0a68207538b8"
    assert {host.name: host.shown_state for host in state.hosts.values()} == {"h1": "up", "h2": "lost"}
    assert all(host.from_file and host.drain is None and not host.removing for host in state.hosts.values())
    assert state.removed == set()
    assert isinstance(machine.apply(c.encode(c.DrainHost("", "h1", None, 11.0)), 1), c.Applied)
    assert state.hosts["h1"].shown_state == "draining"
    assert isinstance(machine.apply(c.encode(c.RemoveHost("", "h2", False, 12.0)), 1), c.Applied)
    restored = Machine()
    restored.restore(list(machine.snapshot()))
    assert digest_of(restored.state) == digest_of(state)
    assert restored.state.removed == {"h2"}


def test_a_snapshot_from_before_hosts_could_lag_is_read():
    """What it did not have yet is as if it had never happened; the log goes on."""
    machine = Machine()
    machine.restore(msgspec.msgpack.decode(b64decode(FORMAT_2_CODE.read_text())))
    state = machine.state
    state.check_invariants()

    assert (state.version, machine.state_hash) == (10, "4de14d4f4ec49de9066e40e7d964b707")
    assert state.tree_digest(3) == "ade8f3aab600d95a6065196f4091c3d8fb1b272c799e7adeb0613962d9af56c6"
    host = state.hosts["h1"]
    assert (host.code_index, host.acknowledgements, host.lag, host.runs) == (2, {1: "sig 1", 2: "sig 2"}, None, {})
    back = c.AppendCode("", "", "", "", 0, "ann", 20.0, rollback_of=1)
    assert machine.apply(c.encode(back), 11) == c.Applied(4, 11)
    assert state.tree_digest(4) == state.tree_digest(1)

"""Random commands, plausible and absurd: nothing raises, refusals change nothing, replicas agree."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from depalma.state import commands, requeueing
from depalma.state.machine import Machine, UnknownCommand, digest_of
from depalma.state.restoring import blobs_of_job
from depalma.state.task_states import QUEUED

#: How many commands `test_random_commands` makes; the state machine of test_state_hypothesis.py makes a quarter more.
COMMANDS = int(os.environ.get("DEPALMA_FUZZ_COMMANDS", "10000"))
#: Another one for other commands; each run with the same number is the same.
SEED = int(os.environ.get("DEPALMA_FUZZ_SEED", "0"))
RUN = 400


@pytest.mark.parametrize("seed", range(SEED, SEED + max(1, COMMANDS // RUN)))
def test_random_commands(seed, make_bench, make_fuzzer):
    """The bench checks every rule after every command; here the replica is also rebuilt from snapshots on the way."""
    bench = make_bench()
    fuzzer = make_fuzzer(bench, random.Random(seed))
    outcomes = Counter()

    for step in range(RUN):
        outcome = bench.do(fuzzer.step())
        outcomes[type(outcome).__name__] += 1
        if step % 97 == 0:
            bench.check_snapshot()

    assert outcomes["Applied"] > 100, "the fuzzer is too wild to reach anything"
    assert outcomes["Rejected"] > 20, "the fuzzer is too tame"


@pytest.mark.parametrize("seed", range(SEED + 900, SEED + 904))
def test_random_commands_where_much_comes_back(seed, make_bench, make_fuzzer, monkeypatch):
    """A cursor that goes back again and again leaves the order as it is; the invariants know what stands where."""
    monkeypatch.setattr(requeueing, "MOST", 1)
    bench = make_bench()
    fuzzer = make_fuzzer(bench, random.Random(seed))
    for step in range(RUN):
        bench.do(fuzzer.step())
        for job in bench.state.jobs.values():
            positions = list(job.queued_positions())
            assert positions == [place for place, code in enumerate(job.states) if code == QUEUED]
            assert len(job.requeued) <= 1
        if step % 97 == 0:
            bench.check_snapshot()


def test_what_names_another_blob_has_changed(make_bench, make_fuzzer):
    """Masters look at nothing else for blobs that they have to fetch."""
    differed = 0
    for seed in range(500, 505):
        bench = make_bench()
        fuzzer = make_fuzzer(bench, random.Random(seed))
        named = {}
        for _ in range(300):
            bench.machine.drain_changes()
            bench.do(fuzzer.step())
            before, named = named, {number: set(blobs_of_job(job)) for number, job in bench.state.jobs.items()}
            differing = {number for number in named if named[number] != before.get(number)}
            differed += sum(number in before for number in differing)
            assert differing <= bench.state.changes.jobs

    assert differed >= 3, "no job came to name another blob"


@pytest.mark.long
def test_damaged_bytes_are_refused_alike(make_bench, make_fuzzer):
    """Damaged commands are refused, or stop the replica as unknown; two replicas do the same, and nothing else."""
    rng = random.Random(7)
    bench = make_bench()
    fuzzer = make_fuzzer(bench, rng)
    one, two = Machine(), Machine()
    refused = unknown = 0

    for _ in range(3000):
        data = bytearray(commands.encode(fuzzer.step()))
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data) + 1)])])
        try:
            outcome = one.apply(data, 1)
        except UnknownCommand:
            with pytest.raises(UnknownCommand):
                two.apply(data, 1)
            unknown += 1
            continue
        assert two.apply(data, 1) == outcome
        refused += isinstance(outcome, commands.Rejected) and outcome.code == "bad_command"
        one.state.check_invariants()

    assert one.state_hash == two.state_hash
    assert digest_of(one.state) == digest_of(two.state)
    assert refused > 100
    assert unknown > 10


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x00", b"\x90", b"\x91\x05", b"\x80", b"\x91\xa9job.close", b"\xff" * 40]
)
def test_bytes_that_are_no_command(data):
    """They count as a version and change nothing else."""
    machine = Machine()
    before = digest_of(machine.state, version=False)

    outcome = machine.apply(data, 5)

    assert isinstance(outcome, commands.Rejected)
    assert outcome.code == "bad_command"
    assert machine.state.version == 1
    assert digest_of(machine.state, version=False) == before


@pytest.mark.parametrize("depth", [101, 500, 900, 950, 970, 980, 990, 1000, 100_000])
@pytest.mark.parametrize("frames", [0, 30])
def test_commands_that_are_nested_too_deeply(depth, frames):
    """How deep a value may be depends on how deep the caller is; the answer must not, or replicas differ."""
    kind = b"\xa9job.close"
    data = b"\x93" + kind + b"\x91" * depth + b"\x90" + b"\x00"

    def at_depth(left):
        return at_depth(left - 1) if left else Machine().apply(data, 5)

    assert at_depth(frames) == commands.Rejected("bad_command", "not a command: nested too deeply")


def test_a_kind_from_the_future_stops_the_replica():
    """To skip it would make this replica differ for ever."""
    machine = Machine()

    with pytest.raises(UnknownCommand, match=r"entry 9.*job\.dance"):
        machine.apply(msgspec.msgpack.encode(["job.dance", 1]), 9)


SAME_EVERYWHERE = """
import random, sys
sys.path.insert(0, sys.argv[1])
from conftest import Bench, Fuzzer
bench = Bench()
fuzzer = Fuzzer(bench, random.Random(11))
for _ in range(300):
    bench.do(fuzzer.step())
print(bench.machine.state_hash, b''.join(bench.machine.snapshot()).hex())
"""


@pytest.mark.long
def test_nothing_depends_on_the_hashes_of_a_process():
    """Masters are processes with hash seeds of their own."""
    here = str(Path(__file__).parent)
    seen = {
        subprocess.run(
            [sys.executable, "-c", SAME_EVERYWHERE, here],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(seen) == 1
    assert len(seen.pop()) > 1000

"""The product's own state machine under the simulated cluster: clients, agents and a leader's duties in bad weather."""

from __future__ import annotations

import pytest

from depalma.state.machine import Machine
from depalma.state.requests import Answers
from depalma.testing import Violation
from depalma.testing.job_load import JobLoad
from depalma.testing.simulation import Simulation

#: runs of a second or two each, on machines that do other things too
pytestmark = pytest.mark.timeout(600)


def stormy(seed: int) -> tuple[Simulation, JobLoad, Machine]:
    simulation = Simulation(seed, jobs=True)
    simulation.go()
    assert isinstance(simulation.load, JobLoad)
    machine = simulation.cluster.nodes["m1"].machine
    assert isinstance(machine, Machine)
    return simulation, simulation.load, machine


def test_storms_are_judged_by_enough_evidence() -> None:
    """Leaders die, power fails, disks break, networks part, agents die or are cut off; every invariant holds, and
    retries and open-ended operations are among what is judged."""
    kinds: set[str] = set()
    states: set[str] = set()
    acknowledged = reads = unknown = asked_again = begun = 0
    for seed in range(4):
        _, load, machine = stormy(seed)
        kinds |= {one.kind for one in load.history.operations if one.known}
        states |= {job.state() for job in machine.state.jobs.values()}
        acknowledged += load.acknowledged
        reads += load.reads
        unknown += load.unknown
        asked_again += load.asked_again
        begun += load.hosts.witness.begun

    assert kinds == {"submit", "add", "read", "cancel", "close"}
    assert {"succeeded", "failed", "cancelled"} <= states
    assert acknowledged > 1_000
    assert reads > 500
    assert unknown > 10
    assert asked_again > 100
    assert begun > 200


def test_a_machine_that_forgets_its_answers_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries would then make second jobs (I10), or be answered differently (I7)."""
    monkeypatch.setattr(Answers, "find", lambda self, kind, request: None)
    with pytest.raises(Violation, match=r"I10|I7"):
        list(map(stormy, range(20)))


def test_a_stale_read_contradicts_the_history() -> None:
    """The linearizability checker sees what clients saw: one read that shows what was before a change is too much."""
    _, load, _ = stormy(2)
    reads = [one for one in load.history.operations if one.kind == "read" and one.known]
    by_key: dict[str, list[int]] = {}
    for read in reads:
        by_key.setdefault(read.key, []).append(read.output[0])
    read = next(read for read in reversed(reads) if read.output[0] > min(by_key[read.key]))
    read.output = (min(by_key[read.key]), *read.output[1:])

    with pytest.raises(Violation, match=f"I7: {read.key}: no order explains its history"):
        load.judge()


def test_a_lost_write_is_found_out() -> None:
    _, load, machine = stormy(3)
    lost = next(job for job in machine.state.jobs.values() if job.spec.name and job.spec.hold)
    for node in load.cluster.nodes.values():
        del node.machine.state.jobs[lost.id]

    with pytest.raises(Violation, match=f"I1: .*{lost.spec.name} .*no such job"):
        load.judge()

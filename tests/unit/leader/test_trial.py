"""What would become of a job: said by the dispatcher itself, and the state is as before."""

from __future__ import annotations

from depalma.dispatcher import HostRoom
from depalma.leader.trial import trial
from depalma.model import HostFacts, JobSpec
from depalma.orderviews import TrialView
from depalma.state import commands as c
from depalma.state.machine import Machine, digest_of

FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.1")


class Lab:
    """Two hosts of two slots, and what is tried on them."""

    def __init__(self) -> None:
        self.machine = Machine()
        for name in ("h1", "h2"):
            self.do(c.AddHost("", name, (), {}, 0, 2, 0, 1.0))
            self.do(c.HostUp(name, f"{name}-1", FACTS, 1.0))

    def do(self, command: c.AnyCommand) -> object:
        outcome = self.machine.apply(c.encode(command), 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    def run(self, host: str, count: int, **spec: object) -> None:
        job = self.do(c.SubmitJob("", JobSpec(kind="command", argv=("x",), count=count, **spec), 10.0))  # type: ignore[arg-type]
        assert isinstance(job, int)
        self.do(c.AssignTasks(1, host, f"{host}-1", tuple((job, task, 1) for task in range(count)), 10.0))

    def trial(self, **spec: object) -> TrialView:
        state = self.machine.state
        rooms = {name: HostRoom(f"{name}-1", 2) for name in state.hosts}
        before, numbers = digest_of(state), state.shares.next_number
        view = trial(state, rooms, {}, JobSpec(kind="command", argv=("x",), **spec), 20.0)  # type: ignore[arg-type]
        assert digest_of(state) == before
        assert state.shares.next_number == numbers
        state.check_invariants()
        return view


def test_where_it_would_run_at_once() -> None:
    """Host by host, as far as there is room."""
    view = Lab().trial(count=3, user="ann")
    assert (view.starting, view.waiting, view.starts_by, view.lines) == ({"h1": 2, "h2": 1}, 0, 20.0, [])


def test_what_waits_is_told_why() -> None:
    """The rest of it, or all of it."""
    view = Lab().trial(count=5)
    assert (view.starting, view.waiting) == ({"h1": 2, "h2": 2}, 1)
    assert "h1: fits, 2 of 2 slots are free" in view.lines
    view = Lab().trial(gpus=1)
    assert (view.starting, view.starts_by) == ({}, None)
    assert "h1: has 0 GPUs, a task needs 1" in view.lines


def test_when_it_would_start() -> None:
    """By the time limits of what runs; nobody can say where there is none, or where others come first."""
    lab = Lab()
    lab.run("h1", 2, timeout_s=100.0, grace_s=0.0)
    lab.run("h2", 2)
    view = lab.trial()
    assert (view.starting, view.starts_by) == ({}, 10.0 + 100.0 + 2.0)
    assert lab.trial(on_host="h2").starts_by is None
    lab.do(c.SubmitJob("", JobSpec(kind="command", argv=("x",)), 15.0))
    assert lab.trial().starts_by is None


def test_a_limit_is_named() -> None:
    """And a held job would not start at all."""
    lab = Lab()
    lab.do(c.SetLimit("", "user", "ann", 0, 15.0))
    assert "limit of user ann: 0 at once, 0 are on hosts" in lab.trial(user="ann").lines
    assert "held until it is released" in lab.trial(hold=True).lines

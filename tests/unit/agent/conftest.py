"""A core on a test's own clock, with its invariants checked after every event."""

from __future__ import annotations

from typing import Any

import pytest

from depalma.agent.core import AgentCore
from depalma.agent.events import (
    AnyEvent,
    BeatSent,
    Connected,
    Ended,
    KeepReports,
    Launch,
    SendTasks,
)
from depalma.model import AttemptRef, HostFacts, JobSpec, Report
from depalma.protocol import (
    Assign,
    Assignment,
    JobTemplate,
    Welcome,
)

COMMAND = JobSpec(kind="command", argv=("true",), grace_s=3.0)
FUNCTION = JobSpec(kind="function", function="m:f", grace_s=4.0)
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=1, gpus=0, version="0", python="3.11", address="h")


class Rig:
    """A core with a clock that the test turns, already connected to a leader of term 1 unless told otherwise."""

    def __init__(self, *, slots: int = 2, connect: bool = True) -> None:
        self.now = 100.0
        self.core = AgentCore(slots=slots, python="3.11", incarnation="i1")
        if connect:
            self.connect()

    def __call__(self, event: AnyEvent, after_s: float = 0.0) -> list[Any]:
        self.now += after_s
        actions = self.core.handle(event, self.now)
        self.check()
        return actions

    def connect(self, term: int = 1, lease_s: float = 10.0) -> list[Any]:
        self(Connected(self.now))
        return self(Welcome(term, "m1", lease_s, 1.0, ("http://m1",)))

    def assign(self, *refs: AttemptRef, spec: JobSpec = COMMAND, term: int = 1, **fields: Any) -> list[Any]:
        template = {"code_index": 0, "tree_digest": "", **fields}
        jobs = tuple(JobTemplate(job, spec, **template) for job in sorted({ref[0] for ref in refs}))
        return self(Assign(1, term, jobs, tuple(Assignment(*ref, 1) for ref in refs)))

    def end(self, *refs: AttemptRef, outcome: str = "succeeded", took_s: float = 0.001, **fields: Any) -> list[Any]:
        reports = (Report(*ref, outcome=outcome, started_at=0.0, finished_at=took_s, **fields) for ref in refs)
        return self(Ended(tuple(reports)))

    def beat(self, sequence: int = 1, after_s: float = 0.0) -> list[Any]:
        return self(BeatSent(sequence, self.now + after_s), after_s)

    def check(self) -> None:
        """The invariants: every attempt is in one place, every slot is free or used once."""
        core, lanes = self.core, self.core.lanes
        waiting = [a.ref for a in lanes.waiting]
        sent = [a.ref for w in lanes.lanes.values() for a in w.queue]
        preparing = [ref for ref, a in core.attempts.items() if a.state == "preparing"]
        placed = [*waiting, *sent, *preparing, *core.uploading]
        assert sorted(placed) == sorted(core.attempts), "an attempt is lost or in two places"
        assert not set(core.attempts) & set(core.pending), "an attempt is alive and reported"
        used = [lane.slot for lane in lanes.lanes.values() if lane.slot >= 0]
        assert len({*used, *lanes.free}) == len(used) + len(lanes.free), "a slot is used twice"
        assert all(slot < lanes.slots for slot in lanes.free)
        assert len(lanes.free) == max(0, lanes.slots - len(used)), "a slot is lost, or there are too many"
        assert lanes.load == sum(lane.weight for lane in lanes.lanes.values() if lane.slot >= 0), "load"
        for worker in lanes.lanes.values():
            assert (worker.slot >= 0) == bool(worker.queue) or worker.stopping
        for job in core.jobs.values():
            assert job.live == sum(a.job is job for a in core.attempts.values())
        assert not core.ready_reports

    @staticmethod
    def one(actions: list[Any], kind: type) -> Any:
        found = [action for action in actions if type(action) is kind]
        assert len(found) == 1, f"one {kind.__name__} expected in {actions}"
        return found[0]

    @staticmethod
    def none(actions: list[Any], *kinds: type) -> None:
        assert not [action for action in actions if type(action) in kinds], actions

    @staticmethod
    def launched(actions: list[Any]) -> list[AttemptRef]:
        return [a.ref for action in actions if type(action) is Launch for a in action.attempts]

    @staticmethod
    def sent(actions: list[Any]) -> dict[int, list[AttemptRef]]:
        return {a.worker: [x.ref for x in a.attempts] for a in actions if type(a) is SendTasks}

    @staticmethod
    def outcomes(actions: list[Any]) -> dict[AttemptRef, str]:
        return {
            (report.job, report.task, report.attempt): report.outcome
            for action in actions
            if type(action) is KeepReports
            for report in action.reports
        }


@pytest.fixture
def rig_of() -> type[Rig]:
    """Makes rigs: `rig_of(slots=2)`."""
    return Rig

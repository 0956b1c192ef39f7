"""The agent's core when the cluster says otherwise than its file: other slots, work that is to go elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from depalma.agent.events import KeepReports, Launch, StopCommand, Tick
from depalma.model import JobSpec
from depalma.protocol import Kill, Welcome


def slots(number: int) -> Welcome:
    return Welcome(1, "m1", 10.0, 1.0, ("http://m1",), number)


def part(cpus: float) -> JobSpec:
    return JobSpec(kind="command", argv=("x",), cpus=cpus)


def test_more_slots_start_what_waits(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    rig.assign(*[(1, task, 1) for task in range(5)])
    launched = [action for action in rig(slots(4)) if isinstance(action, Launch)]

    assert len(launched) == 2
    assert len({lane.slot for lane in rig.core.lanes.lanes.values()}) == 4


def test_fewer_slots_take_effect_as_tasks_end(rig_of: Any) -> None:
    """What runs goes on; the next starts when less than the new number runs."""
    rig = rig_of(slots=2)
    rig(slots(4))
    rig.assign(*[(1, task, 1) for task in range(6)])
    rig(slots(1))

    for task in (3, 0, 1):
        rig.none(rig.end((1, task, 1), took_s=5.0), Launch)
    rig.one(rig.end((1, 2, 1), took_s=5.0), Launch)
    rig.none(rig(Tick()), Launch)
    rig.one(rig.end((1, 4, 1), took_s=5.0), Launch)
    rig.end((1, 5, 1), took_s=5.0)
    assert rig.core.lanes.free == [0]


def test_slots_that_the_cluster_says_nothing_about_are_the_agents_own(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    rig(slots(5))
    rig(slots(0))

    assert rig.core.lanes.slots == 2
    assert rig.core.free_slots == 2


def test_a_moved_task_is_told_to_stop_and_reported_as_moved_even_if_it_ends_well(rig_of: Any) -> None:
    """A command that takes the warning in its stride has not finished its work."""
    rig = rig_of(slots=2)
    rig.assign((1, 0, 1))
    rig.none(rig(Kill(1, 1, ((1, 0, 1),), "returned", "drained")), StopCommand, KeepReports)
    stop = rig.one(rig(Kill(2, 1, ((1, 0, 1),), "moved", "drained: update")), StopCommand)
    assert stop.grace_s == 3.0

    (report,) = rig.one(rig.end((1, 0, 1)), KeepReports).reports

    assert (report.outcome, report.error, report.started_at) == ("moved", "drained: update", 0.0)


def test_tasks_that_need_less_than_a_cpu_share_slots(rig_of: Any) -> None:
    """Each has a slot number of its own, and so a scratch folder; a whole one starts when there is a whole slot."""
    rig = rig_of(slots=2)
    rig.assign(*[(1, task, 1) for task in range(6)], spec=part(0.4))
    assert len({lane.slot for lane in rig.core.lanes.lanes.values()}) == 4
    assert rig.core.free_slots == 0
    rig.none(rig.assign((2, 0, 1)), Launch)

    for task in range(4):
        rig.end((1, task, 1), took_s=5.0)
    assert {attempt.ref for lane in rig.core.lanes.lanes.values() for attempt in lane.queue} == {
        (1, 4, 1), (1, 5, 1), (2, 0, 1),
    }  # fmt: skip
    for ref in ((1, 4, 1), (1, 5, 1), (2, 0, 1)):
        rig.end(ref, took_s=5.0)
    assert (sorted(rig.core.lanes.free), rig.core.lanes.load, rig.core.free_slots) == ([0, 1], 0.0, 2)


def test_what_is_handed_ahead_takes_as_much_as_what_it_waits_for(rig_of: Any) -> None:
    """A lane that holds half a slot is given no task that needs a whole one."""
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), spec=part(0.5))
    rig.end((1, 0, 1), took_s=0.001)
    rig.assign((1, 1, 1), (1, 2, 1), (1, 3, 1), spec=part(0.5))
    rig.assign((2, 0, 1))
    (waiting,) = rig.core.lanes.waiting
    assert waiting.ref == (2, 0, 1)


@pytest.mark.parametrize(("gang", "behind"), [(0, 3), (2, 0)])
def test_a_member_of_a_gang_never_waits_behind_another_one(rig_of: Any, gang: int, behind: int) -> None:
    """However short they are known to be, each has a slot of its own; other tasks are handed over in batches."""
    rig = rig_of(slots=1)
    spec = JobSpec(kind="command", argv=("x",), count=20, gang=gang)
    rig.assign((1, 0, 1), spec=spec)
    rig.end((1, 0, 1), took_s=0.001)
    actions = rig.assign(*[(1, task, 1) for task in range(1, 5)], spec=spec)

    assert [len(action.attempts) for action in actions if isinstance(action, Launch)] == [1 + behind]
    assert len(rig.core.lanes.waiting) == 3 - behind

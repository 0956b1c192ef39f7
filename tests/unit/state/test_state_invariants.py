"""The invariants notice: each kind of damage to the state is found and named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from depalma.state import commands as c
from depalma.state.gangs import GangRun, check_gangs
from depalma.state.invariants import BrokenInvariant
from depalma.state.stories import Story
from depalma.state.task_states import FAILED, QUEUED, RUNNING, SUCCEEDED


@dataclass
class Parts:
    """A state with something of everything: job 1 has all states, job 2 is queued, job 3 has ended."""

    state: object
    job: object
    queued: object
    ended: object
    host: object


@pytest.fixture
def parts(make_bench):
    bench = make_bench()
    host = bench.host("h1", slots=8)
    bench.host("h2")
    bench.lose("h2")
    job = bench.submit(8, retries=1, max_running=5)
    queued, ended = bench.submit(2), bench.submit(1)
    bench.assign((1, 0, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1), (3, 0, 1))
    bench.start((1, 0, 1))
    bench.finish((1, 1, 1), (3, 0, 1))
    bench.finish((1, 2, 1), outcome="failed")
    bench.ok(c.AddCode("", "pkg", "module", "a" * 64, 1, "ann", bench.tick()))
    bench.state.check_invariants()
    return Parts(bench.state, job, queued, ended, host)


def _swap_keys(p):
    first, *rest = p.state.jobs.items()
    p.state.jobs = dict([*rest, first])


DAMAGES = {
    "a byte of a queued task": lambda p: p.job.states.__setitem__(5, SUCCEEDED),
    "a byte of a live task": lambda p: p.job.states.__setitem__(0, QUEUED),
    "a live task without its start": lambda p: p.job.states.__setitem__(3, RUNNING),
    "a byte of a finished task": lambda p: p.job.states.__setitem__(1, FAILED),
    "a tally": lambda p: p.job.tally.__setitem__(SUCCEEDED, 2),
    "a missing attempt": lambda p: p.job.running.pop(0),
    "an attempt's number": lambda p: setattr(p.job.running[0], "number", 7),
    "an attempt's fence": lambda p: setattr(p.job.running[0], "fence", 10**6),
    "an attempt's host": lambda p: setattr(p.job.running[0], "host", "h2"),
    "an attempt's unknown host": lambda p: setattr(p.job.running[0], "host", "h9"),
    "an attempt's incarnation": lambda p: setattr(p.job.running[0], "incarnation", "x"),
    "the cursor": lambda p: setattr(p.job, "cursor", 6),
    "the cursor's end": lambda p: setattr(p.job, "cursor", 99),
    "a requeued task that is not": lambda p: p.job.requeued.append(7),
    "a requeued task that was dropped": lambda p: p.job.requeued.clear(),
    "a requeued task twice": lambda p: p.job.requeued.append(2),
    "a story of nobody": lambda p: p.job.stories.__setitem__(99, Story(1, 0, [])),
    "more failures than attempts": lambda p: setattr(p.job.stories[2], "failures", 5),
    "an end too early": lambda p: setattr(p.job, "finished_at", 1.0),
    "an end that is missing": lambda p: setattr(p.ended, "finished_at", None),
    "a cancelled job that waits": lambda p: setattr(p.queued, "cancelled", True),
    "a limit that is broken": lambda p: setattr(p.job, "spec", type(p.job.spec)(kind="command", max_running=1)),
    "a job that is not ready": lambda p: setattr(p.queued, "held", True),
    "a ready flag": lambda p: setattr(p.queued, "ready", False),
    "a ready job out of the index": lambda p: p.state.ready.__init__(p.state.limits, p.state.shares, p.state.quotas),
    "a ready job out of its line": lambda p: p.queued.line.jobs.remove(p.queued.id),
    "a line in the wrong place": lambda p: p.queued.line.stand.level.order.append((-1.0, 1)),
    "a line by another job": lambda p: setattr(p.queued.line, "head", p.queued.id + 1000),
    "a line that its user does not have": lambda p: p.queued.line.stand.heads.clear(),
    "a lane with a host that does not fit": lambda p: setattr(p.queued.line.lane, "fits", 0),
    "tasks of a user": lambda p: setattr(p.state.shares.account(p.job.spec.user), "tasks", 9),
    "slots of a user": lambda p: setattr(p.state.shares.account(p.job.spec.user), "slots", 9),
    "tasks of a limit": lambda p: p.state.limits.tasks.__setitem__(("tag", "x"), 1),
    "what is used of a quota": lambda p: p.state.quotas.used.__setitem__(("user", "x"), {"slots": 1}),
    "a gang of a job without": lambda p: setattr(p.job, "gangs", {0: GangRun(("h1",), 1)}),
    "what is taken": lambda p: p.host.taken.__setitem__("gpus", 1),
    "a GPU": lambda p: p.host.taken.__setitem__(1, 50),
    "a job under another id": lambda p: setattr(p.queued, "id", 9),
    "jobs out of order": _swap_keys,
    "an id to come": lambda p: setattr(p.state, "next_job", 2),
    "a job's code index": lambda p: setattr(p.job, "code_index", 9),
    "a completion twice": lambda p: p.job.done._tasks.append(1),
    "an attempt that the host forgot": lambda p: p.host.attempts.pop((1, 0, 1)),
    "an attempt that is two": lambda p: p.host.attempts.__setitem__((1, 0, 1), p.job.running[3]),
    "attempts by job": lambda p: p.host.by_job.__setitem__(1, 9),
    "used slots": lambda p: setattr(p.host, "used", 1),
    "a lost host with attempts": lambda p: setattr(p.host, "state", "lost"),
    "a host that is down as somebody": lambda p: setattr(p.state.hosts["h2"], "state", "down"),
    "an incarnation that is over": lambda p: p.host.over.append("h1-1"),
    "a host's code index": lambda p: setattr(p.host, "code_index", 5),
    "a code entry's number": lambda p: p.state.code.append(p.state.code[0]),
    "a gap in the events": lambda p: setattr(p.state.events, "next_index", 999),
}


GANG_DAMAGES = {
    "a member that waits alone": lambda job: job.states.__setitem__(2, SUCCEEDED),
    "a run that is missing": lambda job: job.gangs.pop(0),
    "members that are counted": lambda job: setattr(job.gangs[0], "live", 1),
    "a host of nobody": lambda job: setattr(job.gangs[0], "hosts", ("h1",)),
    "members that came one by one": lambda job: setattr(job.running[0], "fence", 1),
    "a member that waits for no end": lambda job: setattr(job.gangs[1], "again", False),
}


@pytest.mark.parametrize("damage", GANG_DAMAGES)
def test_damage_to_a_gang_is_found(make_bench, damage):
    """By the check of gangs itself: the others are not asked."""
    bench = make_bench()
    bench.host("h1", slots=4)
    job = bench.submit(6, gang=2, retries=1)
    bench.dispatch()
    bench.finish((1, 2, 1), outcome="failed")
    check_gangs(job, must)
    if damage == "a member that waits alone":
        bench.finish((1, 3, 1))
    GANG_DAMAGES[damage](job)

    with pytest.raises(AssertionError):
        check_gangs(job, must)


def must(holds, message):
    assert holds, message


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(parts, damage):
    """Or the fuzz and simulation tests that run the check would prove nothing."""
    DAMAGES[damage](parts)

    with pytest.raises(BrokenInvariant):
        parts.state.check_invariants()

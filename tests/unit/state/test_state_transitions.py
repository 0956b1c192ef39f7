"""Every pair of task states: the legal ones happen, by the command the table names, and no other ever does."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import pytest

import depalma.state
from depalma import items
from depalma.model import Dependency, HostFacts, JobSpec, Payload, Report, TaskState
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.task_states import TRANSITIONS, transitions_markdown

REACHABLE = (
    "held",
    "blocked",
    "queued",
    "assigned",
    "running",
    "suspended",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
    "lost",
)
REF = (1, 0, 1)
COMMAND = {"kind": "command", "argv": ("true",), "count": 2}


LIVE = ("held", "blocked", "queued", "assigned", "running")


def bring(bench, word: str, cancelled: bool, **spec: object) -> None:
    """Brings task 1.0 into a state; task 1.1 keeps its job alive."""
    bench.host("h1")
    if word == "blocked" or (word == "held" and cancelled):
        source = JobSpec(kind="command", argv=("x",), count=2)
        after = (Dependency(-2, "ok", each=True),)
        bench.ok(jc.SubmitGraph("", (JobSpec(**COMMAND, hold=word == "held", after=after), source), bench.tick()))
        bench.assign((2, 0, 1), (2, 1, 1))
        return
    bench.submit(2, hold=word == "held", open=True, start_within_s=100.0, **spec)
    if word in ("held", "queued"):
        return
    bench.assign(REF, (1, 1, 1))
    if word in ("running", "lost"):
        bench.start(REF)
    if cancelled:
        bench.cancel(1)
    if word in ("succeeded", "failed", "timed_out", "cancelled"):
        bench.finish(REF, outcome=word)
    if word == "lost":
        bench.lose()


def battery() -> dict[str, c.AnyCommand]:
    """Every command, aimed at task 1.0, with right and wrong attempts."""
    host, life, at = "h1", "h1-1", 5000.0
    made: dict[str, c.AnyCommand] = {
        "submit": c.SubmitJob("", c.JobSpec(kind="command", argv=("x",)), at),
        "add": c.AddTasks("", 1, Payload(inline=items.pack([b"a"])), 1, at),
        "close": c.CloseJob("", 1, at),
        "cancel": c.CancelJobs("", (1,), at),
        "forget": c.ForgetJobs((1,), at),
        "start": c.StartTasks(host, life, ((*REF, at),), at),
        "start late": c.StartTasks(host, life, ((1, 0, 2, at),), at),
        "suspect": c.HostSuspect(host, life, "x", at),
        "recovered": c.HostRecovered(host, life, at),
        "host lost": c.HostLost(host, life, "x", at),
        "up": c.HostUp(host, life, HostFacts(2, 2, 1, 0, "", "", ""), at),
        "up anew": c.HostUp(host, "h1-2", HostFacts(2, 2, 1, 0, "", "", ""), at),
        "add host": c.AddHost("", "h9", (), {}, 0, 1, 0, at),
        "hold": jc.HoldJobs("", (1,), at),
        "release": jc.ReleaseJobs("", (1,), at),
        "suspend": jc.SuspendJobs("", (1,), at),
        "resume": jc.ResumeJobs("", (1,), at),
        "retry": jc.RetryJobs("", (1,), at),
        "set": jc.SetJobs("", (1,), at, priority=3),
        "time": jc.PassTime(at),
        "code": c.AddCode("", "pkg", "module", "a" * 64, 1, "ann", at),
        "ack": c.AckCode(host, life, 0, "", "sig", at),
    }
    for number in (1, 2):
        made[f"assign {number}"] = c.AssignTasks(1, host, life, ((1, 0, number),), at)
        for outcome in ("succeeded", "failed", "timed_out", "cancelled", "returned", "nonsense"):
            report = Report(1, 0, number, outcome)
            made[f"{outcome} {number}"] = c.FinishTasks(host, life, (report,), at)
    for outcome in ("succeeded", "failed"):
        made[f"source {outcome}"] = c.FinishTasks(host, life, (Report(2, 0, 1, outcome),), at)
    return made


def moves_from(make_bench, word: str, *, suspended: bool = False) -> set[tuple[str, str]]:
    """Returns all moves that any one command can make from a state, or of what is in it in a suspended job."""
    found = set()
    if word == "suspended":
        return set().union(*(moves_from(make_bench, live, suspended=True) for live in LIVE))
    for retries, restartable, cancelled, held, backoff_s in product((0, 1), *[(True, False)] * 3, (0.0, 9.0)):
        if (word == "lost" and (restartable or cancelled)) or (word in ("failed", "timed_out") and retries):
            continue
        for command in battery().values():
            bench = make_bench()
            if backoff_s and not retries:
                continue
            bring(bench, word, cancelled, retries=retries, restartable=restartable, backoff_s=backoff_s)
            if held and word not in ("held", "blocked", "queued"):
                bench.do(jc.HoldJobs("", (1,), 4000.0))
            if suspended:
                bench.do(jc.SuspendJobs("", (1,), 4500.0))
            before = bench.state.jobs[1].state_of(0)
            assert before == word or (suspended and before == "suspended") or cancelled
            bench.do(command)
            if 1 in bench.state.jobs:
                found.add((before, bench.state.jobs[1].state_of(0)))
    return found


def moves_in_a_gang(make_bench) -> set[tuple[str, str]]:
    """Returns the moves that the ends of other members can make; a second gang keeps the job alive."""
    found = set()
    for retries, held, backoff_s, first in product((0, 1), (True, False), (0.0, 9.0), ("succeeded", "cancelled")):
        bench = make_bench()
        bench.host("h1", slots=4)
        bench.submit(4, gang=2, retries=retries, backoff_s=backoff_s)
        bench.dispatch()
        if first == "succeeded":
            bench.finish(REF, outcome=first)
        if held:
            bench.ok(jc.HoldJobs("", (1,), bench.tick()))
        bench.finish((1, 1, 1), outcome="failed")
        if first != "succeeded":
            bench.finish(REF, outcome=first)
        bench.ok(jc.RetryJobs("", (1,), bench.tick()))
        found |= bench.seen
    return found


@pytest.mark.parametrize("word", REACHABLE)
def test_moves(word, make_bench):
    """What happens from a state, over all commands and kinds of job, is exactly what the table says."""
    legal = {pair for pair in TRANSITIONS if pair[0] == word}
    in_gangs = {pair for pair in moves_in_a_gang(make_bench) if pair[0] == word}
    found = moves_from(make_bench, word)
    if word in ("failed", "timed_out", "lost"):
        found |= moves_from(make_bench, word, suspended=True)

    assert {pair for pair in found if pair[0] == word and pair[1] != word} | in_gangs == legal


def test_the_table_speaks_of_known_states():
    """And what has ended stays so, unless it, or another one of its gang, failed and is retried."""
    words = set(get_args(TaskState))
    for (start, end), cause in TRANSITIONS.items():
        assert {start, end} <= words
        if start in ("succeeded", "cancelled"):
            assert "gang" in cause or cause.startswith("as to queued")
        elif start not in (*LIVE, "suspended"):
            assert start in ("failed", "timed_out", "lost")
            assert cause.startswith("RetryJobs")


def test_design_shows_the_table():
    """DESIGN.md carries what `transitions_markdown` makes."""
    text = (Path(depalma.state.__file__).parent / "DESIGN.md").read_text()

    assert transitions_markdown() in text

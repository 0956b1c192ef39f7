"""Forgotten jobs are freed while the loop goes on."""

from __future__ import annotations

import asyncio

from depalma.master import Disposal
from depalma.model import HostFacts, JobSpec, Payload, Report
from depalma.state import commands as c
from depalma.state.machine import Machine

FACTS = HostFacts(4, 4, 8 << 30, 1, "0.1.0", "3.11", "10.0.0.11")


def ended(machine: Machine, tasks: int) -> int:
    """Runs a job to its end; returns its id."""

    def do(command: c.AnyCommand) -> object:
        outcome = machine.apply(c.encode(command), machine.state.version + 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    job = do(c.SubmitJob("", JobSpec(kind="command", argv=("true",), count=tasks), 1.0))
    assert isinstance(job, int)
    refs = tuple((job, task, 1) for task in range(tasks))
    do(c.AssignTasks(1, "h", "life", refs, 2.0, ""))
    do(c.FinishTasks("h", "life", tuple(Report(*ref, "succeeded", 0, result=Payload(inline=b"%d" % ref[1]),
                                               started_at=2.0, finished_at=3.0) for ref in refs), 3.0))  # fmt: skip
    return job


async def test_a_large_job_is_freed_in_many_turns_of_the_loop() -> None:
    machine = Machine()
    machine.apply(c.encode(c.AddHost("", "h", (), {}, 0, 4, 0, 1.0)), 1)
    machine.apply(c.encode(c.HostUp("h", "life", FACTS, 1.0)), 2)
    jobs = [ended(machine, 4 * Disposal.ROWS), ended(machine, 3), ended(machine, 1)]
    done = [machine.state.jobs[job].done for job in jobs]
    machine.apply(c.encode(c.ForgetJobs(tuple(jobs), 4.0)), machine.state.version + 1)
    assert not machine.state.jobs

    disposal, turns = Disposal(), 0
    disposal.take(machine.drain_changes().forgotten)
    while disposal._jobs:
        turns += 1
        await asyncio.sleep(0)

    assert turns >= 4
    assert not any(each.release(1) for each in done)

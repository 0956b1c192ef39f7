"""Jobs are suspended and resumed while masters and hosts fail: attempts stay single, and in the end everything ends."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from depalma.state import commands as c
from depalma.state.job_commands import ResumeJobs, SuspendJobs
from depalma.testing.job_load import JobLoad
from depalma.testing.simulation import STORM_S, Simulation

#: runs of a second or two each, on machines that do other things too
pytestmark = pytest.mark.timeout(600)
PAUSE_S = 0.15


class User:
    """Suspends jobs, and resumes them; after the storm all of them, until none is suspended."""

    def __init__(self, simulation: Simulation) -> None:
        self.cluster = simulation.cluster
        self.random = Random(simulation.seed)
        self.stood: Counter[str] = Counter()  #: in which states tasks were when their job was suspended
        self.cluster.timeline.after(PAUSE_S, self.act)

    def act(self) -> None:
        self.cluster.timeline.after(PAUSE_S, self.act)
        name = self.cluster.leader()
        machine = self.cluster.nodes[name].machine if name is not None else None
        if name is None or machine is None:
            return
        at = self.cluster.nodes[name].clock.time()
        live = [job for job in machine.state.jobs.values() if not (job.is_final or job.cancelled or job.spec.name)]
        still = tuple(job.id for job in live if job.suspension is not None)
        storm = self.cluster.clock.monotonic() < STORM_S
        if still and (not storm or self.random.random() < 0.4):
            self.cluster.propose(name, c.encode(ResumeJobs("", still, at)))
        elif storm and live:
            job = self.random.choice([job for job in live if job.running] or live)
            self.stood.update(job.state_of(index) for index in job.running)
            self.cluster.propose(name, c.encode(SuspendJobs("", (job.id,), at, "user")))


@pytest.mark.long
def test_storms_with_suspensions() -> None:
    """What is seen is counted over all of them: where hosts are away for most of a storm there is little to suspend."""
    stood: Counter[str] = Counter()
    for seed in range(4):
        simulation = Simulation(seed, jobs=True)
        assert isinstance(simulation.load, JobLoad)
        user = User(simulation)

        simulation.go()

        stood += user.stood
        for node in simulation.cluster.nodes.values():
            assert node.machine is not None
            assert not [job.id for job in node.machine.state.jobs.values() if job.suspension is not None]
    assert stood["running"] + stood["assigned"] > 40, f"nothing to see: {stood}"

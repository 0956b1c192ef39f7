"""Makers of random commands that steer jobs: a part of the fuzzer of conftest.py."""

from __future__ import annotations

import random
from typing import Any

from depalma.state import commands as c
from depalma.state import job_commands as jc


class JobMakers:
    """Needs what the fuzzer has: the bench, chance, ids of requests and jobs."""

    bench: Any
    rng: random.Random

    def request(self) -> str:
        raise NotImplementedError

    def job_id(self) -> int:
        raise NotImplementedError

    def steer(self) -> c.AnyCommand:
        rng, request, now = self.rng, self.request(), self.bench.now
        jobs = tuple(self.job_id() for _ in range(rng.randint(0, 2)))
        by = rng.choice(["ann", "ann", "ann", "a" * 300])
        match rng.choice(["hold", "release", "release", "set"]):
            case "hold":
                return jc.HoldJobs(request, jobs, now, by)
            case "release":
                return jc.ReleaseJobs(request, jobs, now, by)
        changes = rng.choice(
            [
                {"priority": 7},
                {"priority": -7},
                {"priority": 10**9},
                {"name": "n"},
                {"tags": ("a",)},
                {"tags": ("",)},
                {},
            ]
        )
        return jc.SetJobs(request, jobs, now, by, **changes)

    def retry(self) -> c.AnyCommand:
        """Mostly of a job with something to retry, which is held now and then."""
        rng, live = self.rng, self.bench.state.jobs.values()
        bad = [job for job in live if not job.cancelled and (job.counts().failed or job.counts().lost)]
        if not bad or rng.random() < 0.2:
            return jc.RetryJobs(self.request(), tuple(self.job_id() for _ in range(2)), self.bench.now, "ann")
        job = rng.choice(bad)
        kind = jc.HoldJobs if not job.is_final and not job.held and rng.random() < 0.5 else jc.RetryJobs
        return kind(self.request(), (job.id,), self.bench.now, "ann")

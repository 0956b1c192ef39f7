"""Makers of random commands that steer jobs: a part of the fuzzer of conftest.py."""

from __future__ import annotations

import random
from typing import Any

from depalma.model import Dependency, JobSpec
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.task_states import TIMED_OUT


class JobMakers:
    """Needs what the fuzzer has: the bench, chance, ids of requests and jobs."""

    bench: Any
    rng: random.Random

    def request(self) -> str:
        raise NotImplementedError

    def job_id(self) -> int:
        raise NotImplementedError

    def close(self) -> c.AnyCommand:
        return c.CloseJob(self.request(), self.job_id(), self.bench.now)

    def cancel(self) -> c.AnyCommand:
        jobs = tuple(self.job_id() for _ in range(self.rng.randint(0, 2)))
        return c.CancelJobs(self.request(), jobs, self.bench.now, "ann")

    def forget(self) -> c.AnyCommand:
        return c.ForgetJobs(tuple(self.job_id() for _ in range(self.rng.randint(0, 2))), self.bench.now)

    def after(self) -> tuple[Dependency, ...]:
        rng = self.rng
        if rng.random() < 0.8:
            return ()
        jobs = [self.job_id() for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        return tuple(Dependency(job, rng.choice(["ok", "ok", "fail", "any"]), rng.random() < 0.5) for job in jobs)

    def more(self) -> dict[str, Any]:
        """Fields of a job that have to do with other jobs, and with time."""
        rng = self.rng
        return {
            "after": self.after(),
            "backoff_s": rng.choice([0.0, 0.0, 3.0]),
            "retry_exit_codes": rng.choice([(), (), (3,)]),
            "timeout_retries": rng.choice([-1, -1, 1]),
            "lost_retries": rng.choice([-1, -1, -1, 0, 1]),
            "start_at": rng.choice([0.0, 0.0, 0.0, self.bench.now + 20.0]),
            "start_within_s": rng.choice([0.0, 0.0, 0.0, 500.0]),
            "gang": rng.choice([0] * 9 + [-1, 1, 4, -2]),
            "task_start_within_s": rng.choice([0.0, 0.0, 0.0, 30.0]),
        }

    def step_of_gangs(self: Any) -> c.AnyCommand:
        """The same, of a cluster that has nothing but gangs to run."""
        self.bench.tick(self.rng.choice([0.0, 0.5, 5.0]))
        makers = [self.gang, self.assign_gang, self.assign_gang, self.start, self.finish, self.finish, self.host_up]
        return self.rng.choice([*makers, self.add_host, self.host_change, self.steer, self.retry, self.pass_time])()

    def gang(self) -> c.AnyCommand:
        """A job of gangs that can start, as far as one can know; it may be tried again."""
        rng = self.rng
        spec = JobSpec(
            kind="command",
            argv=("true",),
            count=rng.choice([2, 2, 4]),
            gang=rng.choice([-1, 2, 2, 3]),
            cpus=0.25,
            retries=rng.choice([0, 3, 3]),
            backoff_s=rng.choice([0.0, 3.0]),
            restartable=rng.random() < 0.7,
            priority=9,
        )
        return c.SubmitJob(self.request(), spec, self.bench.now)

    def assign_gang(self) -> c.AnyCommand:
        """As it is planned, or with something that is wrong."""
        planned = [command for command in self.bench.plan() if isinstance(command, c.AssignGang)]
        if not planned:
            return c.AssignGang(1, (("h1", "h1-1", ((self.job_id(), 0, 1),)),), self.bench.now)
        command = self.rng.choice(planned)
        (host, incarnation, refs), *rest = command.parts
        wrong = self.rng.choice(
            [
                command.parts,
                command.parts,
                ((host, incarnation, refs[1:]), *rest),
                ((host, "h1-77", refs), *rest),
                ((host, incarnation, refs), *rest, (host, incarnation, refs)),
                ((host, incarnation, (*refs, refs[0])), *rest),
                (),
            ]
        )
        return c.AssignGang(self.rng.choice([1, 1, 1, 0]), wrong, command.at, "fuzz")

    def visit(self) -> c.AnyCommand:
        rng = self.rng
        live = [(job.id, index) for job in self.bench.state.jobs.values() for index in job.running]
        job, index = rng.choice(live) if live and rng.random() < 0.7 else (self.job_id(), rng.randint(0, 2))
        argv = rng.choice([(), ("ls", "-l"), ("",), ("x" * 70_000,)])
        return jc.VisitTask(self.request(), job, rng.choice([index, None]), argv, self.bench.now, "ann")

    def pass_time(self) -> c.AnyCommand:
        return jc.PassTime(self.bench.now + self.rng.choice([-5.0, 0.0, 0.0, 9.0]), self.rng.choice([1, 1000]))

    def schedule(self) -> c.AnyCommand:
        rng, now, state = self.rng, self.bench.now, self.bench.state
        name = rng.choice([*state.schedules, "nightly", "poll", "bad name"])
        kind = rng.choice(["add", "tick", "tick", "tick", "remove"])
        if kind == "add":
            spec = JobSpec(kind="command", argv=("true",), count=rng.choice([1, 2, 0]), code_index=rng.choice([-1, 9]))
            times, first = rng.choice(["@daily", "* * * * *", "nonsense"]), now + rng.choice([5.0, -5.0, 60.0])
            policies = rng.choice(["one", "all", "none", "some"]), rng.choice(["run", "skip"])
            return jc.AddSchedule(self.request(), name, spec, times, "UTC", first, now, *policies, "ann")
        if kind == "remove":
            return jc.RemoveSchedule(self.request(), name, now)
        known = state.schedules.get(name)
        tick = known.next_at if known is not None and rng.random() < 0.8 else now
        return jc.TickSchedule(name, tick, tick + rng.choice([60.0, 60.0, 0.0]), rng.random() < 0.8, now)

    def graph(self) -> c.AnyCommand:
        """Mostly without a cycle, sometimes with one, or with a member or a job that is not there."""
        rng, size = self.rng, self.rng.randint(0, 4)
        specs = []
        for place in range(size):
            wild = rng.random() < 0.05
            others = range(-size - 1, 0) if wild else range(-place, 0)
            picked = rng.sample(list(others), min(len(others), rng.randint(0, 2)))
            after = [Dependency(job, rng.choice(["ok", "fail", "any"]), rng.random() < 0.4) for job in picked]
            specs.append(
                JobSpec(kind="command", argv=("true",), count=rng.choice([0, 1, 2, 3]), after=(*after, *self.after()))
            )
        return jc.SubmitGraph(self.request(), tuple(specs), self.bench.now)

    def steer(self) -> c.AnyCommand:
        rng, request, now = self.rng, self.request(), self.bench.now
        jobs = tuple(self.job_id() for _ in range(rng.randint(0, 2)))
        by = rng.choice(["ann", "ann", "ann", "a" * 300])
        match rng.choice(["hold", "hold", "release", "release", "release", "set"]):
            case "hold":
                live = [job.id for job in self.bench.state.jobs.values() if job.running]
                jobs = (*jobs, rng.choice(live)) if live and rng.random() < 0.5 else jobs
                return jc.HoldJobs(request, jobs, now, by)
            case "release":
                held = [job.id for job in self.bench.state.jobs.values() if job.held]
                jobs = (*jobs, rng.choice(held)) if held and rng.random() < 0.5 else jobs
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

    def stand(self) -> c.AnyCommand:
        """Mostly of jobs that have something on a host, which may not have begun."""
        rng, request, now = self.rng, self.request(), self.bench.now
        jobs = tuple(self.job_id() for _ in range(rng.randint(0, 1)))
        by = rng.choice(["ann", "ann", "ann", "a" * 300])
        known = self.bench.state.jobs.values()
        standing = [job for job in known if job.suspension is not None]
        if standing and rng.random() < 0.7:
            picked = rng.choice([job for job in standing if job.running] or standing)
            return jc.ResumeJobs(request, (*jobs, picked.id), now, by)
        live = [job for job in known if job.running or (job.held and job.queued)]
        given = [job for job in live if any(one.started_at is None for one in job.running.values())]
        live = given if given and rng.random() < 0.7 else live
        jobs = (*jobs, rng.choice(live).id) if live else jobs
        return jc.SuspendJobs(request, jobs, now, by, rng.choice(["", "why", "a" * 5000]))

    def retry(self) -> c.AnyCommand:
        """Mostly of a job with something to retry, which is held now and then."""
        rng, live = self.rng, self.bench.state.jobs.values()
        bad = [job for job in live if not job.cancelled and (job.counts().failed or job.counts().lost)]
        if not bad or rng.random() < 0.2:
            return jc.RetryJobs(self.request(), tuple(self.job_id() for _ in range(2)), self.bench.now, "ann")
        late = [job for job in bad if job.tally[TIMED_OUT]]
        bad = late if late and rng.random() < 0.5 else bad
        job = rng.choice([job for job in bad if job.held or job.suspension] or bad)
        steered = job.is_final or job.held or job.suspension is not None
        kind = jc.RetryJobs if steered or rng.random() < 0.5 else rng.choice([jc.HoldJobs, jc.SuspendJobs])
        return kind(self.request(), (job.id,), self.bench.now, "ann")

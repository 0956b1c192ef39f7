"""A state machine for Hypothesis: it looks for the shortest way to break a rule, and finds none."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from depalma import items
from depalma.model import FINAL_STATES, Dependency, Payload, Report
from depalma.state import commands as c
from depalma.state import job_commands as jc
from tests.unit.state.kind_examples import ACCEPTED, FACTS, REFUSED
from tests.unit.state.test_state_fuzz import COMMANDS, SEED
from tests.unit.state.wild import wild

HOSTS = st.sampled_from(["h1", "h2"])
STEPS = 40  #: commands an example, about: a rule may make none, or a few
OUTCOMES = st.sampled_from(["succeeded", "failed", "timed_out", "cancelled", "returned"])
STEERING = [jc.HoldJobs, jc.ReleaseJobs, jc.RetryJobs, jc.SuspendJobs, jc.ResumeJobs, jc.ResumeJobs]


def machine_for(bench_class, fuzzer_class):
    """Returns the machine's class; the bench checks the rules after each command."""

    class Cluster(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.bench = bench_class()
            for name in ("h1", "h2"):
                self.bench.host(name, gpus=2)
            self.lives = 1

        def live(self, host: str) -> list[tuple[int, int, int]]:
            known = self.bench.state.hosts.get(host)
            return sorted(known.attempts) if known is not None else []

        def incarnation(self, host: str) -> str:
            known = self.bench.state.hosts.get(host)
            return known.incarnation if known is not None else "none"

        @rule(
            count=st.integers(0, 4),
            retries=st.integers(0, 2),
            limit=st.integers(0, 2),
            priority=st.integers(-1, 1),
            restartable=st.booleans(),
            opened=st.booleans(),
            wide=st.booleans(),
            after=st.lists(
                st.builds(Dependency, st.integers(1, 5), st.sampled_from(["ok", "fail", "any"]), st.booleans()),
                max_size=2,
            ),
        )
        def submit(self, count, retries, limit, priority, restartable, opened, wide, after) -> None:
            known = {(one.job, one.each): one for one in after if one.job in self.bench.state.jobs}
            self.bench.submit(
                after=tuple(one for one in known.values() if not (one.each and opened)),
                count=count,
                retries=retries,
                max_running=limit,
                priority=priority,
                restartable=restartable,
                open=opened,
                cpus=2 if wide else 1,
            )

        @rule(
            user=st.sampled_from(["ann", "bob"]),
            tagged=st.booleans(),
            own=st.sampled_from([None, {"t": 1}, {"t": 3}]),
            gpus=st.integers(0, 2),
        )
        def submit_for(self, user, tagged, own, gpus) -> None:
            self.bench.submit(2, user=user, tags=("t",) if tagged else (), limits=own, gpus=gpus)

        @rule(
            which=st.sampled_from([("tag", "t"), ("user", "*"), ("user", "ann")]),
            limit=st.sampled_from([None, 0, 1, 3]),
        )
        def limit(self, which, limit) -> None:
            self.bench.do(c.SetLimit("", *which, limit, self.bench.tick()))

        @rule(job=st.integers(1, 5), count=st.integers(1, 3))
        def add(self, job, count) -> None:
            self.bench.do(c.AddTasks("", job, Payload(inline=items.pack([b""] * count)), count, self.bench.tick()))

        @rule(job=st.integers(1, 5))
        def close(self, job) -> None:
            self.bench.do(c.CloseJob("", job, self.bench.tick()))

        @rule(job=st.integers(1, 5))
        def cancel(self, job) -> None:
            self.bench.do(c.CancelJobs("", (job,), self.bench.tick()))

        @rule(job=st.integers(1, 5), kind=st.sampled_from(STEERING))
        def steer(self, job, kind) -> None:
            self.bench.do(kind("", (job,), self.bench.tick()))

        @rule(job=st.integers(1, 5), priority=st.integers(-2, 2))
        def set_priority(self, job, priority) -> None:
            self.bench.do(jc.SetJobs("", (job,), self.bench.tick(), priority=priority))

        @rule(ahead=st.integers(0, 3), limit=st.integers(1, 6))
        def dispatch(self, ahead, limit) -> None:
            """Whatever is planned is accepted, all of it."""
            self.bench.dispatch(dict.fromkeys(self.bench.state.jobs, 0.01), ahead=ahead, limit=limit)

        @rule(host=HOSTS, pick=st.integers(0, 5))
        def start(self, host, pick) -> None:
            if live := self.live(host):
                task = (*live[pick % len(live)], self.bench.now)
                self.bench.ok(c.StartTasks(host, self.incarnation(host), (task,), self.bench.tick()))

        @rule(host=HOSTS, pick=st.integers(0, 5), outcome=OUTCOMES)
        def finish(self, host, pick, outcome) -> None:
            if live := self.live(host):
                ref = live[pick % len(live)]
                assert self.report(host, ref, outcome).recorded == (ref,)

        @rule(host=HOSTS, pick=st.integers(0, 5))
        def report_elsewhere(self, host, pick) -> None:
            """The other host's attempts are none of its business."""
            other = "h2" if host == "h1" else "h1"
            if (live := self.live(host)) and other in self.bench.state.hosts:
                assert self.report(other, live[pick % len(live)], "succeeded").recorded == ()

        def report(self, host, ref, outcome) -> c.FinishOutcome:
            report = Report(*ref, outcome)
            return self.bench.ok(c.FinishTasks(host, self.incarnation(host), (report,), self.bench.tick()))

        @rule(host=HOSTS)
        def suspect(self, host) -> None:
            self.bench.do(c.HostSuspect(host, self.incarnation(host), "quiet", self.bench.tick()))

        @rule(host=HOSTS)
        def recover(self, host) -> None:
            self.bench.do(c.HostRecovered(host, self.incarnation(host), self.bench.tick()))

        @rule(host=HOSTS)
        def lose(self, host) -> None:
            self.bench.do(c.HostLost(host, self.incarnation(host), "silent", self.bench.tick()))

        @rule(host=HOSTS)
        def come_back(self, host) -> None:
            self.lives += 1
            if host not in self.bench.state.hosts:
                self.bench.do(c.AddHost("", host, (), {}, 0, 2, 2, self.bench.tick(), from_file=False))
            self.bench.do(c.HostUp(host, f"{host}-{self.lives}", FACTS, self.bench.tick()))

        @rule(seed=st.integers(0, 1 << 32))
        def something_plausible(self, seed) -> None:
            self.bench.do(fuzzer_class(self.bench, random.Random(seed)).make())

        @rule(make=st.sampled_from([*ACCEPTED.values(), *REFUSED.values()]), seed=st.none() | st.integers(0, 1 << 32))
        def of_any_kind(self, make, seed) -> None:
            command = make(self.bench)
            self.bench.do(command if seed is None else wild(command, random.Random(seed)))

        @precondition(lambda self: self.bench.state.version % 3 == 0)
        @rule()
        def restore(self) -> None:
            self.bench.check_snapshot()

        def teardown(self) -> None:
            """Any state can still come to an end: nothing is stuck."""
            if not hasattr(self, "bench"):
                return
            for host in list(self.bench.state.hosts):
                self.lose(host)
            self.bench.do(c.CancelJobs("", tuple(self.bench.state.jobs), self.bench.tick()))
            assert all(job.state() in FINAL_STATES for job in self.bench.state.jobs.values())

    return Cluster


@pytest.mark.timeout(300)
def test_any_sequence_of_commands(make_bench, make_fuzzer):
    """Rules of the bench: replicas agree, moves are legal, refusals change nothing, an attempt ends once."""
    run_state_machine_as_test(
        machine_for(make_bench, make_fuzzer),
        settings=settings(
            max_examples=max(1, COMMANDS // 4 // STEPS),
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not SEED,
            database=None,
        ),
    )

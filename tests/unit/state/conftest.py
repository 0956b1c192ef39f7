"""The bench on which the replicated state is tested: two replicas that must agree, checked after every command."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest

from depalma import items
from depalma.dispatcher import Assignment, HostRoom, parts, plan
from depalma.model import AttemptRef, EventView, HostFacts, JobSpec, Load, MasterAddress, Payload, Report
from depalma.state import commands as c
from depalma.state.events import events_after
from depalma.state.hosts import Host
from depalma.state.jobs import Job
from depalma.state.kinds import KINDS
from depalma.state.machine import Machine, digest_of
from depalma.state.task_states import TRANSITIONS
from depalma.tails import OutputTail
from depalma.testing.order_chance import BAD_SPECS, order_command, some_needs, some_resources
from tests.unit.state.code_makers import CodeMakers
from tests.unit.state.job_makers import JobMakers
from tests.unit.state.join_makers import JoinMakers
from tests.unit.state.kind_examples import ACCEPTED, REFUSED
from tests.unit.state.webhook_makers import WebhookMakers
from tests.unit.state.wild import wild

#: Jobs above this size are not looked at task by task.
WATCHED_TASKS = 300


def facts(slots: int = 2, **changes: object) -> HostFacts:
    values: dict[str, object] = {
        "slots": slots, "cpus": slots, "memory_bytes": 8 << 30, "gpus": 0, "version": "0.1.0", "python": "3.11",
        "address": "10.0.0.11",
    }  # fmt: skip
    return HostFacts(**(values | changes))  # type: ignore[arg-type]


class Bench:
    """Applies commands to two machines; every rule that always holds is checked after each."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.twin = Machine()
        self.now = 1000.0
        self.seen: set[tuple[str, str]] = set()  #: transitions that happened
        self.fences: dict[AttemptRef, int] = {}
        self.outcomes: dict[AttemptRef, str] = {}

    @property
    def state(self):  # type: ignore[no-untyped-def]
        return self.machine.state

    @property
    def term(self) -> int:
        """Of a leader that may assign."""
        return max(1, self.state.term)

    # ------------------------------------------------------------ applying

    def do(self, command: c.AnyCommand) -> c.Applied | c.Rejected:
        """Applies and checks: twins agree, invariants hold, moves are legal, a refusal changes nothing."""
        before = digest_of(self.state, version=False)
        words, version, event = self._words(), self.state.version, self.state.events.next_index
        data = c.encode(command)
        outcome = self.machine.apply(data, version + 1)
        assert self.twin.apply(data, version + 1) == outcome
        assert self.twin.state_hash == self.machine.state_hash
        self.state.check_invariants()
        assert self.state.version == version + 1
        if isinstance(outcome, c.Rejected):
            assert digest_of(self.state, version=False) == before, f"refused, yet changed: {outcome}"
            assert outcome.code
            assert outcome.message
        else:
            assert outcome.version == self.state.version
        fresh = {
            record.kind for record in takewhile(lambda one: one.first >= event, reversed(self.state.events.records))
        }
        assert fresh <= set(KINDS), f"events of kinds that are not in state/kinds.py: {fresh}"
        self._check_moves(words)
        self._check_outcomes(command, outcome)
        return outcome

    def ok(self, command: c.AnyCommand):  # type: ignore[no-untyped-def]
        """Applies a command that must be accepted; returns its answer."""
        outcome = self.do(command)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    def refused(self, command: c.AnyCommand) -> c.Rejected:
        """Applies a command that must be refused."""
        outcome = self.do(command)
        assert isinstance(outcome, c.Rejected), outcome
        return outcome

    def _words(self) -> dict[tuple[int, int], str]:
        return {
            (job.id, index): job.state_of(index)
            for job in self.state.jobs.values()
            if job.total <= WATCHED_TASKS
            for index in range(job.first, job.first + job.total)
        }

    def _check_moves(self, before: dict[tuple[int, int], str]) -> None:
        after = self._words()
        for task, word in before.items():
            now = after.get(task, word)
            if now != word:
                assert (word, now) in TRANSITIONS, f"task {task} went from {word} to {now}"
                self.seen.add((word, now))

    def _check_outcomes(self, command: c.AnyCommand, outcome: c.Applied | c.Rejected) -> None:
        """Every accepted attempt has a fence that grows; every attempt is recorded at most once."""
        value = outcome.value if isinstance(outcome, c.Applied) else None
        if isinstance(value, c.AssignOutcome):
            for ref in value.accepted:
                assert ref not in self.fences, f"attempt {ref} was assigned twice"
                assert all(value.fence > f for r, f in self.fences.items() if r[:2] == ref[:2])
                self.fences[ref] = value.fence
        if isinstance(command, c.FinishTasks) and isinstance(value, c.FinishOutcome):
            for ref in value.recorded:
                assert ref not in self.outcomes, f"attempt {ref} ended twice"
                self.outcomes[ref] = "recorded"

    def check_snapshot(self) -> None:
        """A machine restored from a snapshot is equal, and goes on equally (the twin is replaced by it)."""
        if self.twin.state.version == self.state.version:  # else a test has bypassed `do`, which is slow
            assert digest_of(self.twin.state) == digest_of(self.state), "one that was restored has gone another way"
        data = list(self.machine.snapshot())
        restored = Machine()
        restored.restore(data)
        restored.state.check_invariants()
        assert list(restored.snapshot()) == data
        assert digest_of(restored.state) == digest_of(self.state)
        assert restored.state_hash == self.machine.state_hash
        self.twin = restored

    # ------------------------------------------------------------ short forms

    def tick(self, seconds: float = 1.0) -> float:
        self.now += seconds
        return self.now

    def host(self, name: str = "h1", slots: int = 2, *, gpus: int = 0, priority: int = 0, **has: Any) -> Host:
        """Adds a host whose agent is connected as incarnation `NAME-1`; `has`: its groups, labels, resources."""
        groups, labels, resources = has.get("groups", ()), has.get("labels", {}), has.get("resources", {})
        self.ok(c.AddHost("", name, groups, labels, priority, slots, gpus, self.tick(), resources=resources))
        self.up(name)
        return self.state.hosts[name]

    def up(self, name: str = "h1", life: int = 1, slots: int = 2) -> int:
        return self.ok(c.HostUp(name, f"{name}-{life}", facts(slots), self.tick()))

    def lose(self, name: str = "h1", life: int = 1) -> int:
        return self.ok(c.HostLost(name, f"{name}-{life}", "silent", self.tick()))

    def submit(self, count: int = 1, *, request: str = "", **spec: object) -> Job:
        """Submits a command job unless `spec` says otherwise."""
        values: dict[str, object] = {"kind": "command", "argv": ("true",), "count": count} | spec
        return self.state.jobs[self.ok(c.SubmitJob(request, JobSpec(**values), self.tick()))]  # type: ignore[arg-type]

    def assign(self, *refs: AttemptRef, host: str = "h1", life: int = 1, term: int = 1) -> c.AssignOutcome:
        return self.ok(c.AssignTasks(term, host, f"{host}-{life}", refs, self.tick(), "because"))

    def start(self, *refs: AttemptRef, host: str = "h1", life: int = 1) -> c.FinishOutcome:
        tasks = tuple((*ref, self.now) for ref in refs)
        return self.ok(c.StartTasks(host, f"{host}-{life}", tasks, self.tick()))

    def finish(
        self, *refs: AttemptRef, outcome: str = "succeeded", host: str = "h1", life: int = 1, **report: object
    ) -> c.FinishOutcome:
        reports = tuple(Report(*ref, outcome, **report) for ref in refs)  # type: ignore[arg-type]
        return self.ok(c.FinishTasks(host, f"{host}-{life}", reports, self.tick()))

    def cancel(self, *jobs: int) -> tuple[int, ...]:
        return self.ok(c.CancelJobs("", jobs, self.tick(), "ann"))

    def events(self, after: int = 0) -> list[EventView]:
        return events_after(self.state, after, 1_000_000)

    def kinds(self, after: int = 0) -> list[str]:
        return [event.kind for event in self.events(after)]

    def plan(
        self,
        mean_s: dict[int, float] | None = None,
        *,
        ahead: int = 0,
        limit: int = 1000,
        loads: dict[str, Load] | None = None,
        hosts: list[str] | None = None,
    ) -> list[Assignment]:
        """Plans with all hosts connected, and checks that planning changed nothing."""
        rooms = {
            host.name: HostRoom(host.incarnation, host.slots, ahead, (loads or {}).get(host.name, Load()))
            for host in self.state.hosts.values()
            if hosts is None or host.name in hosts
        }
        before = digest_of(self.state)
        planned = plan(self.state, rooms, mean_s or {}, self.now, self.term, limit)
        assert digest_of(self.state) == before
        return planned

    def dispatch(self, mean_s: dict[int, float] | None = None, **options: object) -> list[tuple[str, AttemptRef]]:
        """Plans and assigns; every planned task must be accepted. Returns (host, attempt) in order."""
        given = []
        for command in self.plan(mean_s, **options):  # type: ignore[arg-type]
            outcome = self.ok(command)
            assert outcome.refused == ()
            given += [(host, ref) for host, refs in parts(command) for ref in refs]
        return given


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An empty cluster; at the end of the test its snapshot must restore to the same."""
    made = Bench()
    yield made
    made.check_snapshot()


@pytest.fixture
def make_bench() -> type[Bench]:
    """The class, for tests that need several."""
    return Bench


class Fuzzer(JobMakers, CodeMakers, JoinMakers, WebhookMakers):
    """Makes commands by chance: most of them plausible for the state as it is, some of them nonsense."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench = bench
        self.rng = rng
        self.serial = 0

    def step(self) -> c.AnyCommand:
        """Returns one command; its time is the bench's. A few are examples of any kind, or have a field gone wild."""
        rng = self.rng
        self.bench.tick(rng.choice([0.0, 0.5, 5.0, 400.0]))
        command = self.example() if rng.random() < 0.03 else self.make()
        return wild(command, rng) if rng.random() < 0.03 else command

    def example(self) -> c.AnyCommand:
        return self.rng.choice([*ACCEPTED.values(), *REFUSED.values()])(self.bench)

    def make(self) -> c.AnyCommand:
        """Returns what one of the makers makes; each stands there as often as it is to come."""
        rng = self.rng
        makers = [
            self.submit, self.submit, self.add_tasks, self.close, self.cancel, self.assign, self.assign, self.assign,
            self.start, self.start, self.start, self.finish, self.finish, self.add_host, self.host_up, self.host_up,
            self.order, self.host_change, self.add_code, self.ack_code, self.ack_code, self.forget, self.change_masters,
            self.host_list, self.group, self.owner, self.owner, self.owner, self.webhook,
            self.append_code, self.fail_code, self.lag_code, self.steer, self.steer, self.retry,
            rng.choice([self.graph, self.finish]), rng.choice([self.assign, self.visit]), self.pass_time,
            self.schedule, self.join, self.stand, rng.choice([self.gang, self.assign_gang, self.finish]),
        ]  # fmt: skip
        return rng.choice(makers)()

    def request(self) -> str:
        """Mostly new, sometimes one from before."""
        self.serial += 1
        return self.rng.choice(["", f"r{self.serial}", f"r{self.serial}", f"r{self.rng.randint(0, self.serial)}"])

    def host_name(self) -> str:
        names = [*self.bench.state.hosts] * 4 or ["h1"]
        return self.rng.choice([*names, "h1", "h2", "h3", "nobody"])

    def incarnation(self, host: str) -> str:
        known = self.bench.state.hosts.get(host)
        wild = f"{host}-{self.rng.randint(1, 99)}"
        if known and known.incarnation and known.state != "lost" and self.rng.random() < 0.9:
            return known.incarnation
        return wild

    def job_id(self) -> int:
        ids = list(self.bench.state.jobs)
        return self.rng.choice(ids[-4:] if self.rng.random() < 0.9 else [0, 999]) if ids else 1

    def submit(self) -> c.AnyCommand:
        rng = self.rng
        count = rng.choice([1, 1, 3, 8])
        values: dict[str, object] = {
            "kind": "command",
            "argv": ("true",),
            "count": count,
            "first_index": rng.choice([0, 0, 5]),
            "arguments": rng.choice([None, self.packed(count)]),
            "open": rng.random() < 0.3,
            "max_running": rng.choice([0, 0, 1, 2]),
            "retries": rng.choice([0, 0, 1, 3]),
            "restartable": rng.random() < 0.7,
            "hold": rng.random() < 0.1,
            "code_index": rng.choice([-1, 0]),
            **self.more(),
        } | some_needs(rng)
        if rng.random() < 0.2:
            values |= rng.choice(
                [*BAD_SPECS, {"arguments": self.packed(count + 1)}, {"arguments": Payload(inline=b"junk")}]
            )
        return c.SubmitJob(self.request(), JobSpec(**values), self.bench.now)  # type: ignore[arg-type]

    def packed(self, count: int) -> Payload:
        return Payload(inline=items.pack([b"x"] * max(0, count)))

    def add_tasks(self) -> c.AnyCommand:
        count = self.rng.choice([0, 1, 4])
        return c.AddTasks(self.request(), self.job_id(), self.packed(count), count, self.bench.now)

    def assign(self) -> c.AnyCommand:
        if self.rng.random() < 0.7:
            planned = self.bench.plan(dict.fromkeys(self.bench.state.jobs, 0.01), ahead=self.rng.choice([0, 3]))
            if planned:
                return self.rng.choice(planned)
        host = self.host_name()
        refs = tuple(self.ref() for _ in range(self.rng.randint(0, 3)))
        term = self.bench.term - self.rng.choice([0, 0, 0, 1])
        return c.AssignTasks(term, host, self.incarnation(host), refs, self.bench.now, "fuzz")

    def ref(self) -> AttemptRef:
        """Any task, mostly with the attempt number that would be right."""
        rng, job_id = self.rng, self.job_id()
        job = self.bench.state.jobs.get(job_id)
        if job is None or not job.total:
            return (job_id, rng.randint(-1, 3), 1)
        index = job.first + rng.randint(-1, job.total)
        last = job.last_attempt(index) if job.has(index) else 0
        return (job_id, index, last + rng.choice([0, 1, 1, 2]))

    def live_refs(self, host: str) -> list[AttemptRef]:
        known = self.bench.state.hosts.get(host)
        refs = list(known.attempts) if known else []
        self.rng.shuffle(refs)
        return [*refs[: self.rng.randint(0, 3)], *([self.ref()] if self.rng.random() < 0.3 else [])]

    def start(self) -> c.AnyCommand:
        host = self.host_name()
        tasks = tuple((*ref, self.bench.now) for ref in self.live_refs(host))
        return c.StartTasks(host, self.incarnation(host), tasks, self.bench.now)

    def finish(self) -> c.AnyCommand:
        host, rng = self.host_name(), self.rng
        reports = tuple(
            Report(
                *ref,
                rng.choice(
                    ["succeeded", "succeeded", "failed", "failed", "timed_out", "returned", "cancelled", "moved", "?"]
                ),
                rng.choice([None, 0, 3]),
                rng.choice([None, None, 9]),
                error=rng.choice(["", "Boom\nline"]),
                result=rng.choice([None, Payload(inline=b"v")]),
                started_at=rng.choice([None, self.bench.now]),
                tail=rng.choice([None, OutputTail(b"end"), OutputTail(digest="f" * 64, item=1)]),
            )
            for ref in self.live_refs(host)
        )
        return c.FinishTasks(host, self.incarnation(host), reports, self.bench.now)

    def add_host(self) -> c.AnyCommand:
        groups = self.rng.choice([(), ("g",), ("bad name",)])
        slots = self.rng.choice([0, 2, 3, -1])
        level, file = self.rng.choice([0, 5]), self.rng.random() < 0.5
        has = some_resources(self.rng)
        return c.AddHost(
            self.request(), self.host_name(), groups, {"os": "x"}, level, slots, 2, self.bench.now, file, has
        )

    def host_up(self) -> c.AnyCommand:
        host, code = self.host_name(), self.rng.choice([-1, -1, 0, 1])
        unreported = tuple(self.live_refs(host)) if self.rng.random() < 0.3 else ()
        return c.HostUp(host, self.incarnation(host), facts(2), self.bench.now, code, unreported)

    def host_change(self) -> c.AnyCommand:
        host = self.host_name()
        kind = self.rng.choice(["suspect", "recovered", "recovered", "lost"])
        incarnation = self.incarnation(host)
        if kind == "recovered":
            return c.HostRecovered(host, incarnation, self.bench.now)
        return (c.HostSuspect if kind == "suspect" else c.HostLost)(host, incarnation, "quiet", self.bench.now)

    def host_list(self) -> c.AnyCommand:
        rng, host, request, now = self.rng, self.host_name(), self.request(), self.bench.now
        kind = rng.choice(["set", "remove", "drain", "drain", "undrain", "undrain", "undrain"])
        if kind == "set":
            groups, slots = rng.choice([None, (), ("g",), ("g", "g")]), rng.choice([None, 0, 1, 4, -1])
            gpus, has, level = rng.choice([None, None, 1, 3]), some_resources(rng), rng.choice([None, 7])
            return c.SetHost(request, host, now, groups, level, slots, gpus, {"a": "b"}, ("os",), has)
        if kind == "remove":
            return c.RemoveHost(request, host, rng.random() < 0.5, now, rng.choice(["ann", "ann", "a" * 300]))
        if kind == "drain":
            return c.DrainHost(request, host, rng.choice([None, now + 5, float("nan"), -1.0]), now, "update", "ann")
        return c.UndrainHost(request, host, now)

    def order(self) -> c.AnyCommand:
        return order_command(self.rng, self.request(), self.bench.now)

    def group(self) -> c.AnyCommand:
        rng, request, now = self.rng, self.request(), self.bench.now
        hosts = tuple(sorted({self.host_name() for _ in range(rng.randint(0, 2))}))
        group = rng.choice(["g", "g", "fast", "bad name"])
        if rng.random() < 0.3:
            return c.RemoveGroup(request, group, hosts, rng.random() < 0.5, now)
        return rng.choice([c.SetGroup, c.AddToGroup])(request, group, hosts, now)

    def change_masters(self) -> c.AnyCommand:
        names = self.rng.sample(["m1", "m2", "m3"], self.rng.randint(1, 3))
        masters = tuple(MasterAddress(name, self.rng.choice(["a", "b"]), 1, 2) for name in names)
        return c.ChangeMasters(self.request(), masters, self.bench.now, "fuzz")

    def owner(self) -> c.AnyCommand:
        host, rng, now = self.host_name(), self.rng, self.bench.now
        if rng.random() < 0.4:
            values = rng.choice([{"idle_s": 60.0, "hours": "sat"}, {"hours": "sat 8"}, {"suspend_s": None}, {"x": 1}])
            return c.SetOwner(self.request(), host, values, now, rng.random() < 0.3, rng.random() < 0.3)
        reason, step = rng.choice(["", "input", "x" * 501]), rng.choice(["", "lowered", "suspended", "?"])
        return c.NoteOwner(host, self.incarnation(host), reason, step, rng.random() < 0.5, now)


@pytest.fixture
def make_fuzzer() -> type[Fuzzer]:
    """The class; give it a bench and a seeded Random."""
    return Fuzzer

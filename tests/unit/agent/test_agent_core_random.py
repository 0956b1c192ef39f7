"""The core under random orders and faults, with workers and processes that behave as the real ones do."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

import pytest

from depalma.agent import events as ev
from depalma.agent.core import AgentCore
from depalma.model import AttemptRef, JobSpec, Report
from depalma.protocol import (
    Assign,
    Assignment,
    Forget,
    HeartbeatAnswer,
    JobTemplate,
    Kill,
    ReportsCommitted,
    Suspended,
    Welcome,
)

KINDS = (
    JobSpec(kind="command", argv=("x",), timeout_s=3.0),
    JobSpec(kind="function", function="m:f"),
    JobSpec(kind="function", function="m:f", cpus=0.4),
    JobSpec(kind="function", function="m:g", timeout_s=2.0),
)


class World:
    """Everything around the core. A worker reads one message at a time and answers it before it reads the next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.core = AgentCore(slots=self.random.choice([1, 2, 4]), python="3.11", incarnation="i0")
        self.started: Counter[AttemptRef] = Counter()
        self.reported: dict[AttemptRef, str] = {}
        self.committed: set[AttemptRef] = set()
        self.assigned: dict[AttemptRef, int] = {}
        self.forgotten: set[AttemptRef] = set()
        self.inbox: deque[Any] = deque()  #: what the monitor has not looked at yet
        self.outbox: deque[ev.AnyEvent] = deque()  #: what it has said and the agent has not heard
        self.lines: dict[int, deque[AttemptRef]] = {}  #: by slot; the first is running
        self.lane_slots: dict[int, int] = {}
        self.workers: dict[int, deque[AttemptRef]] = {}
        self.current: dict[int, AttemptRef | None] = {}
        self.doomed_workers: set[int] = set()
        self.still = False  #: nothing moves, for the owner of the machine
        self.standing: set[AttemptRef | int] = set()  #: commands, and workers, that stand still for their job
        self.cut = False
        self.term = 0
        self.incarnations = 0
        self.void: set[AttemptRef] = set()  #: died with their incarnation
        self.next_task = 0

    def give(self, event: ev.AnyEvent) -> None:
        todo = deque([event])
        while todo:
            for action in self.core.handle(todo.popleft(), self.now):
                answer = self.act(action)
                if answer is not None:
                    todo.append(answer)

    def act(self, action: Any) -> ev.AnyEvent | None:
        match action:
            case ev.Suspend(int() as lane) | ev.Resume(int() as lane):
                self.stand(lane, isinstance(action, ev.Suspend))
            case ev.Launch() | ev.StopCommand() | ev.Suspend() | ev.Resume():
                self.inbox.append(action)
            case ev.StartWorker(worker):
                assert worker not in self.workers
                self.workers[worker], self.current[worker] = deque(), None
            case ev.SendTasks(worker, attempts):
                assert worker not in self.doomed_workers
                room = self.random.choice([1, 50])
                self.workers[worker].extend(attempt.ref for attempt in attempts[:room])
                if attempts[room:]:
                    return ev.Recalled(worker, tuple(attempt.ref for attempt in attempts[room:]))
            case ev.Recall(lane) if lane not in self.workers:
                self.inbox.append(action)
            case ev.Recall(worker):
                unread = tuple(self.workers[worker])
                self.workers[worker].clear()
                return ev.Recalled(worker, unread)
            case ev.StopWorker(worker):
                self.doomed_workers.add(worker)
            case ev.KeepReports(reports):
                for report in reports:
                    self.note(report)
            case ev.CutOff():
                self.cut_off()
            case _:
                pass
        return None

    def stand(self, lane: int, still: bool) -> None:
        """Has a worker, or the command that the agent believes to run on the lane, stand still, or not."""
        if lane in self.workers:
            (self.standing.add if still else self.standing.discard)(lane)
        elif queue := self.core.lanes.lanes[lane].queue:
            self.inbox.append(("stand", queue[0].ref, still))

    def check_standing(self) -> None:
        """Once everybody has heard everything, what stands still is what is of suspended jobs."""
        for worker, ref in self.current.items():
            if ref is not None and worker not in self.doomed_workers:
                assert (worker in self.standing) == (ref[0] in self.core.suspended), f"{ref} on worker {worker}"
        if not self.inbox and not self.outbox and not self.still:
            for line in self.lines.values():
                if line:
                    assert (line[0] in self.standing) == (line[0][0] in self.core.suspended), f"{line[0]}"

    def start(self, ref: AttemptRef) -> None:
        assert not self.still, f"{ref} started while nothing may move"
        self.started[ref] += 1
        assert self.started[ref] == 1, f"{ref} started twice"
        assert ref not in self.reported, f"{ref} started after it was reported"

    def note(self, report: Report) -> None:
        ref = (report.job, report.task, report.attempt)
        assert ref not in self.reported, f"{ref} reported twice"
        assert ref not in self.forgotten, f"{ref} reported although forgotten"
        assert ref not in self.void, f"{ref} reported by a later incarnation"
        if report.outcome == "returned":
            assert not self.started[ref], f"{ref} given back after it started"
        self.reported[ref] = report.outcome

    def cut_off(self) -> None:
        self.cut = True
        for order in self.inbox:
            if isinstance(order, ev.Suspend | ev.Resume):  # for all: the others are of processes that are dead
                self.still = isinstance(order, ev.Suspend)
        self.inbox.clear()
        self.outbox.clear()
        self.standing.clear()
        self.lines.clear()
        self.lane_slots.clear()
        self.workers.clear()
        self.current.clear()
        self.doomed_workers.clear()
        self.void |= set(self.assigned) - self.committed

    # ------------------------------------------------------------ what can happen

    def step(self) -> None:
        self.now += self.random.choice([0.0, 0.001, 0.05, 0.3])
        happenings = (
            [self.assign] * 6 + [self.work] * 12 + [self.end_command] * 6 + [self.tick] * 3 + [self.kill]
            + [self.commit] * 3 + [self.crash, self.disconnect, self.beat, self.beat, self.forget, self.repeat]
            + [self.resize, self.outdo, self.owner, self.suspend, self.suspend]
        )  # fmt: skip
        if self.cut:
            self.incarnations += 1
            self.cut = False
            self.give(ev.Rejoined(f"i{self.incarnations}"))
        if not self.core.connected and self.random.random() < 0.7:
            self.term += self.random.choice([0, 1])
            self.give(ev.Connected(self.now))
            self.give(Welcome(max(self.term, self.core.term), "m", 5.0, 1.0, ()))
        self.random.choice(happenings)()
        self.check_standing()

    def assign(self) -> None:
        if not self.core.connected:
            return
        job = self.random.randrange(len(KINDS))
        count = self.random.choice([1, 1, 3, 40])
        tasks = []
        for _ in range(count):
            self.next_task += 1
            self.assigned[(job, self.next_task, 1)] = job
            tasks.append(Assignment(job, self.next_task, 1, 1))
        self.order(tasks, job)

    def order(self, tasks: list[Assignment], job: int) -> None:
        self.give(Assign(1, self.core.term, (JobTemplate(job, KINDS[job], 0, ""),), tuple(tasks)))

    def resize(self) -> None:
        if self.core.connected:
            self.give(Welcome(self.core.term, "m", 5.0, 1.0, (), self.random.choice([0, 1, 2, 5])))

    def outdo(self) -> None:
        """Some workers would have to import what new ones have from the beginning."""
        self.give(ev.Outdone(frozenset(worker for worker in self.workers if self.random.random() < 0.5)))

    def repeat(self) -> None:
        """A leader sends again what it should not."""
        live = [ref for ref in self.assigned if ref not in self.committed and ref not in self.void]
        if live and self.core.connected:
            ref = self.random.choice(live)
            if ref not in self.forgotten and self.reported.get(ref) != "returned":
                self.order([Assignment(*ref, 1)], ref[0])

    def work(self) -> None:
        """A worker reads, or answers and reads the next."""
        for worker in [] if self.still else list(self.workers):
            if worker not in self.workers or worker in self.standing:
                continue  # cut off in between
            ref = self.current[worker]
            if ref is not None:
                if self.random.random() < 0.2:
                    continue
                self.current[worker] = None
                took_s = self.random.choice([0.0001, 0.01, 1.0])
                self.give(ev.Ended((Report(*ref, "succeeded", started_at=0.0, finished_at=took_s),)))
            if self.workers.get(worker):
                self.current[worker] = self.workers[worker].popleft()
                self.start(self.current[worker])  # type: ignore[arg-type]
            self.give(ev.WorkerReady(worker))
        for worker in list(self.doomed_workers):
            self.bury(worker)

    def crash(self) -> None:
        if self.workers:
            self.bury(self.random.choice(list(self.workers)))

    def bury(self, worker: int) -> None:
        self.doomed_workers.discard(worker)
        unread = tuple(self.workers.pop(worker))
        self.current.pop(worker)
        self.give(ev.WorkerEnded(worker, unread, "died", None, 9, 0.0))

    def end_command(self) -> None:
        """The monitor looks at its orders, a command ends, the agent hears of it; any of these, or all."""
        for _ in range(self.random.choice([0, 1, 99])):
            if self.inbox:
                self.monitor(self.inbox.popleft())
        for line in self.lines.values():
            if line and not self.still and line[0] not in self.standing and self.random.random() < 0.5:
                self.end_first(line, "succeeded")
        for _ in range(self.random.choice([0, 1, 99])):
            if self.outbox:
                self.give(self.outbox.popleft())

    def end_first(self, line: deque[AttemptRef], outcome: str) -> None:
        took_s = self.random.choice([0.001, 0.01, 1.0])
        self.outbox.append(ev.Ended((Report(*line.popleft(), outcome, started_at=0.0, finished_at=took_s),)))
        if line and not self.still:
            self.start(line[0])

    def monitor(self, order: Any) -> None:
        match order:
            case ev.Launch(lane, slot, attempts):
                self.lane_slots[lane] = slot
                line = self.lines.setdefault(slot, deque())
                for attempt in attempts:
                    line.append(attempt.ref)
                    if len(line) == 1 and not self.still:
                        self.start(attempt.ref)
            case ("stand", ref, still):
                if still and any(line and line[0] == ref and self.started[ref] for line in self.lines.values()):
                    self.standing.add(ref)
                elif not still:
                    self.standing.discard(ref)
            case ev.Suspend(None):
                self.still = True
            case ev.Resume(None):
                self.still = False
                for line in self.lines.values():
                    if line and not self.started[line[0]]:
                        self.start(line[0])
            case ev.StopCommand(ref):
                for line in self.lines.values():
                    assert ref not in list(line)[1:], "told to stop what has not started"
                    if line and line[0] == ref:
                        assert self.started[ref], "told to stop what has not started"
                        if self.still or self.random.random() < 0.5:
                            self.end_first(line, "failed")
            case ev.Recall(lane):
                line = self.lines[self.lane_slots[lane]]
                back = tuple(ref for ref in line if not self.started[ref])
                for ref in back:
                    line.remove(ref)
                self.outbox.append(ev.Recalled(lane, back))

    def suspend(self) -> None:
        """Some jobs are suspended, and no others."""
        jobs = tuple(job for job in range(len(KINDS)) if self.random.random() < 0.3)
        self.give(Suspended(1, self.core.term, jobs))

    def owner(self) -> None:
        """The owner of the machine comes, stays, or goes."""
        here = self.random.random() < 0.6
        suspend, end = here and self.random.random() < 0.7, here and self.random.random() < 0.3
        self.give(ev.OwnerStands("here" if here else "", "", here, suspend, end, 1.0))

    def tick(self) -> None:
        self.give(ev.Tick())

    def some(self) -> tuple[AttemptRef, ...]:
        known = [ref for ref in self.assigned if ref not in self.committed and ref not in self.void]
        return tuple(self.random.sample(known, min(len(known), self.random.choice([1, 1, 5]))))

    def kill(self) -> None:
        refs = tuple(ref for ref in self.some() if ref not in self.forgotten)
        self.give(Kill(1, self.core.term, refs, self.random.choice(["cancelled", "returned", "moved"]), "why"))

    def forget(self) -> None:
        if self.core.connected:
            refs = self.some()[:1]
            self.forgotten |= set(refs) - set(self.reported)
            self.give(Forget(1, self.core.term, refs))

    def commit(self) -> None:
        refs = tuple(self.core.pending)
        self.committed |= set(refs)
        self.give(ReportsCommitted(refs))

    def disconnect(self) -> None:
        self.give(ev.Disconnected())

    def beat(self) -> None:
        if self.core.connected and self.random.random() < 0.8:
            self.give(ev.BeatSent(int(self.now * 1000), self.now))
            self.give(HeartbeatAnswer(int(self.now * 1000), self.now, self.core.term))

    def settle(self) -> None:
        """Lets everything come to its end."""
        self.give(ev.OwnerStands())
        for _ in range(3000):
            self.now += 0.01
            if not self.core.connected:
                self.give(ev.Connected(self.now))
                self.give(Welcome(self.core.term, "m", 1e9, 1.0, ()))
            self.give(Suspended(1, self.core.term, ()))
            if self.cut:
                self.cut = False
                self.give(ev.Rejoined("last"))
            self.work()
            self.end_command()
            self.tick()
            if not self.core.attempts:
                return
        raise AssertionError(f"{len(self.core.attempts)} attempts never end: {list(self.core.attempts)[:5]}")


@pytest.mark.parametrize("seed", range(150))
def test_every_attempt_ends_once_whatever_happens(seed: int) -> None:
    world = World(seed)
    for _ in range(300):
        world.step()
    world.settle()

    for ref in world.assigned:
        assert ref in world.reported or ref in world.forgotten or ref in world.void, f"{ref} was never reported"
    assert sorted(world.core.lanes.free) == list(range(world.core.lanes.slots))

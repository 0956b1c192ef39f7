"""The processes of one simulated host: the monitor with its deadline, and the tasks that it and the workers run.

What really lives is written down by a Witness, of which neither agents nor masters know.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from random import Random

import msgspec

from depalma.agent import events as ev
from depalma.gpuparts import WHOLE, parts_of
from depalma.model import AttemptRef, Payload, Report
from depalma.tails import OutputTail
from depalma.testing.clock import SkewedClock, Timeline
from depalma.testing.cluster import Violation

#: tasks of jobs that call this never fail by themselves
SURE = "pkg:sure"
#: a monitor looks at its deadline, and its kill is through, so much too late
KILLED_WITHIN_S = 0.02


def result_of(ref: AttemptRef) -> Payload:
    """What an attempt returns: something that no other attempt does."""
    return Payload(inline=b"%d.%d.%d" % ref)


class Witness:
    """What really ran. Raises Violation for two live attempts of a task, and for one that begins twice (I3, I4)."""

    def __init__(self) -> None:
        self.live: dict[tuple[int, int], AttemptRef] = {}
        #: task → its newest attempt
        self.newest: dict[tuple[int, int], int] = {}
        self.succeeded: set[AttemptRef] = set()
        self.begun = 0

    def begin(self, ref: AttemptRef) -> None:
        """An attempt begins."""
        task = ref[:2]
        if task in self.live:
            raise Violation(f"I3: attempt {ref} begins while {self.live[task]} lives")
        if ref[2] <= self.newest.get(task, 0):
            raise Violation(f"I4: attempt {ref} begins after attempt {self.newest[task]}")
        self.live[task] = ref
        self.newest[task] = ref[2]
        self.begun += 1

    def end(self, ref: AttemptRef, *, succeeded: bool = False) -> None:
        """It is dead."""
        if self.live.pop(ref[:2], None) != ref:
            raise Violation(f"{ref} ends, but it does not live")
        if succeeded:
            self.succeeded.add(ref)


class Processes:
    """Of one host. `tell` gives an event to the agent; what is frozen or dead there is the agent's business."""

    def __init__(
        self, timeline: Timeline, random: Random, clock: SkewedClock, witness: Witness,
        tell: Callable[[ev.AnyEvent], None],
    ) -> None:  # fmt: skip
        self.clock = clock
        self.frozen = False  #: the monitor stands still
        self.hurries = False  #: tasks are short: the storm is over, and what has collected must end in time
        self.live: dict[AttemptRef, ev.Attempt] = {}
        self._timeline = timeline
        self._random = random
        self._witness = witness
        self._tell = tell
        self._lease_until = 0.0
        self._missed: list[Callable[[], None]] = []  #: what the monitor has not looked at
        self._lines: dict[int, deque[ev.Attempt]] = {}  #: slot → commands, the first of them running
        self._slots: dict[int, int] = {}  #: lane → slot
        self._workers: dict[int, deque[ev.Attempt]] = {}  #: what each has not read yet
        self._started: set[int] = set()  #: workers that are ready to read
        self._current: dict[int, ev.Attempt] = {}
        self._still: set[int | AttemptRef] = set()  #: workers and commands that stand still
        self._late: list[Callable[[], None]] = []  #: what they would have done meanwhile

    # ------------------------------------------------------------ the monitor

    def monitor(self, order: Callable[[], None]) -> None:
        """Has the monitor do something, once it hears."""
        if self.frozen:
            self._missed.append(order)
        else:
            order()

    def thaw(self) -> None:
        """The monitor goes on: with what it has missed, then with the deadline."""
        self.frozen = False
        missed, self._missed = self._missed, []
        for order in missed:
            order()
        self._look()

    def renew(self, until_s: float) -> None:
        """The lease goes on until then, by this host's clock."""
        if until_s <= self.clock.monotonic():
            self._expire()
            return
        self._lease_until = until_s
        late_s = self._random.uniform(0.0, KILLED_WITHIN_S)
        self._timeline.after(self.clock.true_s(until_s) + late_s, self._look)

    def kill_everything(self) -> None:
        """Nothing lives any more."""
        for ref in list(self.live):
            del self.live[ref]
            self._witness.end(ref)
        for known in (self._lines, self._slots, self._workers, self._started, self._current, self._still, self._late):
            known.clear()
        self._missed.clear()
        self._lease_until = 0.0

    def _look(self) -> None:
        if not self.frozen and self._lease_until and self.clock.monotonic() >= self._lease_until:
            self._expire()

    def _expire(self) -> None:
        self.kill_everything()
        self._tell(ev.LeaseLost("the monitor saw the lease end"))

    # ------------------------------------------------------------ commands

    def launch(self, order: ev.Launch) -> None:
        """See the action."""
        if self._lease_until <= self.clock.monotonic():
            return  # that the lease is over was told, or will be at once
        self._slots[order.lane] = order.slot
        line = self._lines.setdefault(order.slot, deque())
        idle = not line
        line.extend(order.attempts)
        if idle:
            self._start(line[0], partial(self._command_ended, order.slot))

    def recall_commands(self, lane: int) -> None:
        """See Recall."""
        line = self._lines.get(self._slots.get(lane, -1), deque())
        back = [line.pop() for _ in range(len(line) - 1)]
        self._tell(ev.Recalled(lane, tuple(attempt.ref for attempt in reversed(back))))

    def stop_command(self, ref: AttemptRef) -> None:
        """See StopCommand: it dies within its grace time, or goes on and is killed then."""
        self._timeline.after(self._random.choice([0.0, 0.1]), lambda: self._stopped(ref))

    def _stopped(self, ref: AttemptRef) -> None:
        for slot, line in self._lines.items():
            if line and line[0].ref == ref and ref in self.live:
                self._die(ref)
                self.monitor(partial(self._command_ended, slot, line[0], "failed"))
                return

    def _command_ended(self, slot: int, attempt: ev.Attempt, outcome: str) -> None:
        """The monitor sees the end of the first of a line, and starts the next."""
        line = self._lines.get(slot)
        if not line or line[0] is not attempt:
            return  # killed with all others
        line.popleft()
        self._tell(ev.Ended((self._report(attempt, outcome),)))
        if line and self._lease_until > self.clock.monotonic():
            self._start(line[0], partial(self._command_ended, slot))

    # ------------------------------------------------------------ workers

    def start_worker(self, worker: int) -> None:
        """See StartWorker."""
        queue: deque[ev.Attempt] = deque()
        self._workers[worker] = queue
        self._timeline.after(self._random.uniform(0.01, 0.1), lambda: self._ready(worker, queue))

    def send_tasks(self, order: ev.SendTasks) -> None:
        """See the action."""
        queue = self._workers.get(order.worker)
        if queue is None:
            return  # it has just died, and its end takes what was meant for it along
        room = self._random.choice([1, 50])
        queue.extend(order.attempts[:room])
        if order.attempts[room:]:
            self._tell(ev.Recalled(order.worker, tuple(attempt.ref for attempt in order.attempts[room:])))
        if order.worker in self._started:
            self._timeline.after(0.0005, lambda: self._read(order.worker, queue))

    def is_worker(self, lane: int) -> bool:
        """Whether a lane is a worker process that lives."""
        return lane in self._workers

    def recall_tasks(self, worker: int) -> None:
        """See Recall: what is unread is taken out of its socket."""
        queue = self._workers.get(worker, deque())
        unread = tuple(attempt.ref for attempt in queue)
        queue.clear()
        self._tell(ev.Recalled(worker, unread))

    def stop_worker(self, worker: int) -> None:
        """See StopWorker."""
        queue = self._workers.get(worker)
        self._timeline.after(self._random.choice([0.0, 0.05]), lambda: self._bury(worker, queue, "stopped"))

    def _ready(self, worker: int, queue: deque[ev.Attempt]) -> None:
        if self._workers.get(worker) is queue:
            self._started.add(worker)
            self._tell(ev.WorkerReady(worker))
            self._read(worker, queue)

    def _read(self, worker: int, queue: deque[ev.Attempt]) -> None:
        """A worker reads one message at a time, and answers it before it reads the next."""
        if worker in self._still:
            self._late.append(lambda: self._read(worker, queue))
        elif self._workers.get(worker) is queue and worker not in self._current and queue:
            self._current[worker] = queue.popleft()
            self._start(self._current[worker], partial(self._function_ended, worker, queue))

    def _function_ended(self, worker: int, queue: deque[ev.Attempt], attempt: ev.Attempt, outcome: str) -> None:
        if self._workers.get(worker) is not queue or self._current.get(worker) is not attempt:
            return
        if outcome == "failed" and self._random.random() < 0.3:
            self._bury(worker, queue, "it died")
            return
        del self._current[worker]
        self._tell(ev.Ended((self._report(attempt, outcome),)))
        self._read(worker, queue)

    def _bury(self, worker: int, queue: deque[ev.Attempt] | None, reason: str) -> None:
        if queue is None or self._workers.get(worker) is not queue:
            return
        del self._workers[worker]
        self._started.discard(worker)
        current = self._current.pop(worker, None)
        if current is not None and current.ref in self.live:
            self._die(current.ref)
        self._tell(ev.WorkerEnded(worker, tuple(one.ref for one in queue), reason, None, 9, self._wall()))

    # ------------------------------------------------------------ standing still

    def stand(self, what: int | AttemptRef, still: bool) -> None:
        """A worker, or a command, stands still from now on, or goes on with all that it is late with."""
        if still:
            self._still.add(what)
            return
        self._still.discard(what)
        late, self._late = self._late, []
        for happens in late:
            self._timeline.after(0.001, happens)

    def _stands(self, attempt: ev.Attempt) -> bool:
        still = [self._current.get(worker) for worker in self._workers if worker in self._still]
        return attempt.ref in self._still or attempt in still

    # ------------------------------------------------------------ tasks

    def _start(self, attempt: ev.Attempt, ended: Callable[[ev.Attempt, str], None]) -> None:
        self._witness.begin(attempt.ref)
        self.live[attempt.ref] = attempt
        self._look_at_gpus(attempt)
        weights = (5, 5, 5, 0, 0) if self.hurries else (5, 5, 5, 2, 2)
        lasts_s = self._random.choices((0.0, 0.02, 0.2, 0.6, 2.0), weights)[0]
        self._timeline.after(lasts_s, lambda: self._finish(attempt, ended))

    def _look_at_gpus(self, begun: ev.Attempt) -> None:
        """An attempt has what it asked for, of GPUs of which others on this host have the rest at most."""
        taken: Counter[int] = Counter()
        for attempt in self.live.values():
            taken.update(dict.fromkeys(attempt.argument.gpus, min(WHOLE, parts_of(attempt.job.spec.gpus))))
        given = sum(taken[gpu] > 0 for gpu in begun.argument.gpus)
        if given * WHOLE < parts_of(begun.job.spec.gpus) or max(taken.values(), default=0) > WHOLE:
            raise Violation(f"{begun.ref} begins with GPUs {begun.argument.gpus}, of which {dict(taken)} % are taken")

    def _finish(self, attempt: ev.Attempt, ended: Callable[[ev.Attempt, str], None]) -> None:
        if attempt.ref not in self.live:
            return  # killed
        if self._stands(attempt):
            self._late.append(lambda: self._finish(attempt, ended))
            return
        spec = attempt.job.spec
        sure = spec.function == SURE
        outcome = "succeeded" if sure else self._random.choice(["succeeded"] * 8 + ["failed"] * 2)
        self._die(attempt.ref, succeeded=outcome == "succeeded")
        if spec.kind == "command":
            self.monitor(partial(ended, attempt, outcome))
        else:
            ended(attempt, outcome)

    def _die(self, ref: AttemptRef, *, succeeded: bool = False) -> None:
        del self.live[ref]
        self._witness.end(ref, succeeded=succeeded)

    def _report(self, attempt: ev.Attempt, outcome: str) -> Report:
        wall = self._wall()
        tail = OutputTail() if attempt.ref[1] % 4 == 3 else None  # one in four writes more than fits into a report
        report = Report(
            *attempt.ref, outcome, 0, result=result_of(attempt.ref), started_at=wall - 0.02, finished_at=wall
        )
        return msgspec.structs.replace(report, tail=tail)

    def _wall(self) -> float:
        return self._timeline.clock.time()

"""Which attempt runs on which slot, and in which worker. [pure]

A slot is taken by one command, or by one worker that has something to do. Attempts wait in the order in which the
leader gave them. Short function tasks are handed to a worker several at a time, never more than about `AHEAD_S`
seconds of work; what it has not read can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from depalma.agent.events import AnyAction, Attempt, Job, Launch, SendTasks, StartWorker, StopWorker
from depalma.model import AttemptRef

#: Work handed ahead to a worker, in seconds and in tasks.
AHEAD_S = 0.05
AHEAD_TASKS = 32


class Worker:
    """One worker process as the core sees it."""

    __slots__ = ("code_index", "head_s", "id", "idle_s", "queue", "ready", "recalling", "slot", "stopping")

    def __init__(self, number: int, code_index: int) -> None:
        self.id = number
        self.code_index = code_index
        self.queue: deque[Attempt] = deque()  #: sent and not ended, oldest first; only the first can have started
        self.slot = -1  #: -1 = idle
        self.head_s = 0.0  #: since when the first of the queue is the first
        self.idle_s = 0.0
        self.ready = False
        self.recalling = False
        self.stopping = False


class Lanes:
    """The slots, the workers and the queue. It decides; what is to be done is appended to `out`."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free = list(range(slots - 1, -1, -1))
        self.waiting: deque[Attempt] = deque()
        self.commands: dict[AttemptRef, Attempt] = {}
        self.workers: dict[int, Worker] = {}
        self._idle: dict[int, list[Worker]] = {}  #: by code index, most recently used last
        self._next_worker = 1

    def dispatch(self, now: float, out: list[AnyAction]) -> None:
        """Starts what can start."""
        if not self.waiting:
            return
        given: dict[int, list[Attempt]] = {}
        while self.waiting and self.free:
            attempt = self.waiting.popleft()
            if attempt.job.is_function:
                worker = self._worker_for(attempt.job.code_index, out)
                worker.slot = self.free.pop()
                worker.head_s = now
                self._give(worker, attempt, given)
            else:
                attempt.slot = self.free.pop()
                attempt.state = "running"
                attempt.started_s = now
                self.commands[attempt.ref] = attempt
                out.append(Launch(attempt))
        while self.waiting and self._top_up(self.waiting[0].job, given):
            pass
        out.extend(SendTasks(number, tuple(attempts)) for number, attempts in given.items())

    def _top_up(self, job: Job, given: dict[int, list[Attempt]]) -> bool:
        """Gives attempts of `job`, the first that waits, to workers that have one. Returns whether it gave any."""
        if job.depth <= 1 or not job.is_function:
            return False
        takers = [
            worker
            for worker in self.workers.values()
            if 0 < len(worker.queue) < job.depth and worker.code_index == job.code_index and not worker.stopping
        ]
        if not takers:
            return False
        share = max(1, len(self.waiting) // len(takers))
        for worker in takers:
            for _ in range(min(share, job.depth - len(worker.queue))):
                if not self.waiting or self.waiting[0].job is not job:
                    return True
                self._give(worker, self.waiting.popleft(), given)
        return True

    def _give(self, worker: Worker, attempt: Attempt, given: dict[int, list[Attempt]]) -> None:
        attempt.state = "sent"
        attempt.worker = worker.id
        worker.queue.append(attempt)
        given.setdefault(worker.id, []).append(attempt)

    def _worker_for(self, code_index: int, out: list[AnyAction]) -> Worker:
        """Returns an idle worker of that code, a new one if need be; the longest idle one makes room for it."""
        idle = self._idle.get(code_index)
        if idle:
            return idle.pop()
        if len(self.workers) >= 2 * self.slots:
            oldest = min((w for group in self._idle.values() for w in group), key=lambda w: w.idle_s, default=None)
            if oldest is not None:
                self.stop(oldest, 0.0, out)
        worker = Worker(self._next_worker, code_index)
        self._next_worker += 1
        self.workers[worker.id] = worker
        out.append(StartWorker(worker.id, code_index))
        return worker

    def stop(self, worker: Worker, grace_s: float, out: list[AnyAction]) -> None:
        """Ends a worker; until it is gone it gets nothing more."""
        if not worker.stopping:
            worker.stopping = True
            idle = self._idle.get(worker.code_index, [])
            if worker in idle:
                idle.remove(worker)
            out.append(StopWorker(worker.id, grace_s))

    def ended(self, attempt: Attempt, now: float) -> None:
        """Takes an attempt off its slot."""
        if attempt.state == "running":
            del self.commands[attempt.ref]
            self.free.append(attempt.slot)
        elif attempt.state == "sent":
            worker = self.workers[attempt.worker]
            worker.queue.remove(attempt)
            worker.head_s = now
            if not worker.queue:
                self._rest(worker, now)

    def take_back(self, worker: Worker, attempts: list[Attempt], now: float) -> None:
        """Puts attempts that a worker has not read back to the head of the queue, in their old order."""
        for attempt in reversed(attempts):
            worker.queue.remove(attempt)
            attempt.worker = -1
            attempt.started_s = 0.0
            attempt.state = "waiting"
            if not attempt.doomed:
                self.waiting.appendleft(attempt)
        if attempts and not worker.queue:
            self._rest(worker, now)

    def remove_worker(self, number: int) -> Worker | None:
        """Forgets a worker that is gone and frees its slot. Returns it, with what is left in its queue."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            if worker.slot >= 0:
                self.free.append(worker.slot)
            idle = self._idle.get(worker.code_index, [])
            if worker in idle:
                idle.remove(worker)
        return worker

    def drop_waiting(self, doomed: Iterable[Attempt]) -> None:
        """Removes attempts from the queue."""
        gone = {id(attempt) for attempt in doomed}
        self.waiting = deque(attempt for attempt in self.waiting if id(attempt) not in gone)

    def _rest(self, worker: Worker, now: float) -> None:
        if worker.stopping:
            return  # its slot is free when its process is gone
        self.free.append(worker.slot)
        worker.slot = -1
        worker.idle_s = now
        self._idle.setdefault(worker.code_index, []).append(worker)


def learn_duration(job: Job, duration_s: float) -> None:
    """Takes note of how long a task took: quick to believe that tasks are long, slow to believe that they are short."""
    duration_s = max(duration_s, 1e-6)
    known = job.average_s
    job.average_s = duration_s if known < 0 or duration_s > 4 * known else 0.8 * known + 0.2 * duration_s
    job.depth = max(1, min(AHEAD_TASKS, int(AHEAD_S / job.average_s)))

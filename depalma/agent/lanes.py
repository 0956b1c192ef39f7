"""Which attempt runs on which slot, and in which worker. [pure]

A lane is what runs attempts one after the other: a worker process, or the line of commands of one slot. A lane that
has something to do takes a slot. Attempts wait in the order in which the leader gave them. Short tasks are handed to a
lane several at a time, never more than about `AHEAD_S` seconds of work; what has not started can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import count

from depalma.agent.events import AnyAction, Attempt, Job, Launch, SendTasks, StartWorker, StopWorker

#: Work handed ahead to a lane, in seconds and in tasks.
AHEAD_S = 0.05
AHEAD_TASKS = 32
#: In place of a code index: the lane runs commands, of any code.
COMMANDS = -1


class Lane:
    """One worker process, or the commands of one slot."""

    __slots__ = (
        "code_index",
        "head_s",
        "hung",
        "id",
        "idle_s",
        "queue",
        "ready",
        "recalling",
        "slot",
        "stale",
        "stopping",
        "suspended",
        "suspended_s",
        "weight",
    )

    def __init__(self, number: int, code_index: int) -> None:
        self.id = number
        self.code_index = code_index
        self.queue: deque[Attempt] = deque()  #: handed over and not ended, oldest first; they start in this order
        self.slot = -1  #: -1 = idle
        self.weight = 0.0  #: how much of the slots it takes
        self.head_s = 0.0  #: since when the first of the queue is the first
        self.idle_s = 0.0
        self.ready = code_index == COMMANDS  #: a worker has to start first
        self.hung = False  #: it took too long to start
        self.recalling = False
        self.stopping = False
        self.suspended: set[str] = set()  #: why it stands still
        self.suspended_s = 0.0  #: since when
        self.stale = False  #: what it has imported is no longer what it would import: it ends when it has nothing to do

    def suspend(self, reason: str, now: float) -> None:
        """Stops its clock: time in which it stands still is none that a task has used."""
        if not self.suspended:
            self.suspended_s = now
        self.suspended.add(reason)

    def resume(self, reason: str, now: float) -> None:
        """Takes a reason back; with the last one its clock goes on."""
        if self.suspended:
            self.suspended.discard(reason)
            if not self.suspended:
                self.head_s += now - max(self.suspended_s, self.head_s)

    @property
    def is_worker(self) -> bool:
        """Returns whether it is a process of its own."""
        return self.code_index != COMMANDS


class Lanes:
    """The slots, the lanes and the queue. It decides; what is to be done is appended to `out`."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free = list(range(slots - 1, -1, -1))
        self.load = 0.0  #: slots' worth of what runs; tasks that need less than a CPU share slots
        self._shrinking = False  #: more slots are taken than there are, or others
        self.waiting: deque[Attempt] = deque()
        self.lanes: dict[int, Lane] = {}
        self._idle: dict[int, list[Lane]] = {}  #: workers by code index, most recently used last
        self._next_lane = 1

    def resize(self, slots: int) -> None:
        """Has so many slots from now on; what runs goes on, and takes its slot along if there are fewer."""
        self.slots = slots
        busy = {lane.slot for lane in self.lanes.values() if lane.slot >= 0}
        room = max(0, slots - len(busy))
        self._shrinking = room == 0 or any(slot >= slots for slot in busy)
        self.free = [slot for slot in range(slots) if slot not in busy][:room][::-1]

    def _release(self, lane: Lane) -> None:
        """Frees the slot of a lane."""
        slot, lane.slot = lane.slot, -1
        self.load -= lane.weight
        if self._shrinking:
            self.resize(self.slots)
        else:
            self.free.append(slot)

    def _occupy(self, lane: Lane, weight: float) -> None:
        """Gives a lane a slot of its own; where slots are shared there are more lanes than slots."""
        lane.weight = weight
        self.load += weight
        if self.free:
            lane.slot = self.free.pop()
            return
        busy = {other.slot for other in self.lanes.values()}
        lane.slot = next(slot for slot in count(self.slots) if slot not in busy)
        self._shrinking = True

    def dispatch(self, now: float, out: list[AnyAction]) -> None:
        """Starts what can start."""
        if not self.waiting:
            return
        given: dict[int, list[Attempt]] = {}
        while self.waiting and self.load + self.waiting[0].job.weight <= self.slots:
            attempt = self.waiting.popleft()
            lane = self._lane_for(attempt.job, out)
            self._occupy(lane, attempt.job.weight)
            lane.head_s = now
            self._give(lane, attempt, given)
        while self.waiting and self._top_up(self.waiting[0].job, given):
            pass
        for number, attempts in given.items():
            lane = self.lanes[number]
            batch = tuple(attempts)
            out.append(SendTasks(number, batch) if lane.is_worker else Launch(number, lane.slot, batch))

    def _top_up(self, job: Job, given: dict[int, list[Attempt]]) -> bool:
        """Gives attempts of `job`, the first that waits, to lanes that have one. Returns whether it gave any."""
        if job.depth <= 1:
            return False
        code_index = job.code_index if job.is_function else COMMANDS
        takers = [
            lane
            for lane in self.lanes.values()
            if lane.code_index == code_index
            and 0 < len(lane.queue) < job.depth
            and lane.weight == job.weight
            and not lane.stopping
            and not lane.recalling
            and not lane.suspended
        ]
        if not takers:
            return False
        share = max(1, len(self.waiting) // len(takers))
        for lane in takers:
            for _ in range(min(share, job.depth - len(lane.queue))):
                if not self.waiting or self.waiting[0].job is not job:
                    return True
                self._give(lane, self.waiting.popleft(), given)
        return True

    def _give(self, lane: Lane, attempt: Attempt, given: dict[int, list[Attempt]]) -> None:
        attempt.state = "sent"
        attempt.lane = lane.id
        lane.queue.append(attempt)
        given.setdefault(lane.id, []).append(attempt)

    def _lane_for(self, job: Job, out: list[AnyAction]) -> Lane:
        """Returns an idle lane for a job; a new worker if need be, for which the longest idle one makes room."""
        if not job.is_function:
            return self._new_lane(COMMANDS)
        idle = self._idle.get(job.code_index)
        if idle:
            return idle.pop()
        if sum(lane.is_worker for lane in self.lanes.values()) >= 2 * self.slots:
            oldest = min((w for group in self._idle.values() for w in group), key=lambda w: w.idle_s, default=None)
            if oldest is not None:
                self.stop(oldest, 0.0, out)
        lane = self._new_lane(job.code_index)
        out.append(StartWorker(lane.id, job.code_index))
        return lane

    def _new_lane(self, code_index: int) -> Lane:
        lane = self.lanes[self._next_lane] = Lane(self._next_lane, code_index)
        self._next_lane += 1
        return lane

    def stop(self, worker: Lane, grace_s: float, out: list[AnyAction]) -> None:
        """Ends a worker; until it is gone it gets nothing more."""
        if not worker.stopping:
            worker.stopping = True
            idle = self._idle.get(worker.code_index, [])
            if worker in idle:
                idle.remove(worker)
            out.append(StopWorker(worker.id, grace_s))

    def ended(self, attempt: Attempt, now: float) -> None:
        """Takes an attempt off its lane."""
        lane = self.lanes[attempt.lane]
        lane.queue.remove(attempt)
        lane.head_s = now
        if not lane.queue:
            self._rest(lane, now)

    def take_back(self, lane: Lane, attempts: list[Attempt], now: float) -> None:
        """Puts attempts that have not started back to the head of the queue, in their old order."""
        for attempt in reversed(attempts):
            lane.queue.remove(attempt)
            attempt.lane = -1
            attempt.state = "waiting"
            if not attempt.doomed:
                self.waiting.appendleft(attempt)
        if attempts and not lane.queue:
            self._rest(lane, now)

    def remove_worker(self, number: int) -> Lane | None:
        """Forgets a worker that is gone and frees its slot. Returns it, with what is left in its queue."""
        worker = self.lanes.pop(number, None)
        if worker is not None:
            if worker.slot >= 0:
                self._release(worker)
            idle = self._idle.get(worker.code_index, [])
            if worker in idle:
                idle.remove(worker)
        return worker

    def drop_waiting(self, doomed: Iterable[Attempt]) -> None:
        """Removes attempts from the queue."""
        gone = {id(attempt) for attempt in doomed}
        self.waiting = deque(attempt for attempt in self.waiting if id(attempt) not in gone)

    def _rest(self, lane: Lane, now: float) -> None:
        if lane.stopping:
            return  # its slot is free when its process is gone
        self._release(lane)
        if not lane.is_worker:
            del self.lanes[lane.id]
            return
        lane.idle_s = now
        self._idle.setdefault(lane.code_index, []).append(lane)


def learn_duration(job: Job, duration_s: float) -> None:
    """Takes note of how long a task took: quick to believe that tasks are long, slow to believe that they are short."""
    duration_s = max(duration_s, 1e-6)
    known = job.average_s
    job.average_s = duration_s if known < 0 or duration_s > 4 * known else 0.8 * known + 0.2 * duration_s
    # Members of a gang run at once, each in a slot of its own: nothing of it waits behind another one.
    job.depth = 1 if job.spec.gang else max(1, min(AHEAD_TASKS, int(AHEAD_S / job.average_s)))

"""One job and its tasks. [pure]

A task that waits is one byte; one that runs has an `Attempt`; one that ended is a row of `Completions`. Only tasks
that needed more than one attempt have a `Story`. The queue is a cursor (everything from it on that is still queued
was never handed out) and a sorted list of those that came back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from depalma.model import Dependency, JobSpec, Payload, Report, TaskCounts, TaskState
from depalma.state.completions import Completions, Finished
from depalma.state.requeueing import put_back
from depalma.state.shapes import shape_of
from depalma.state.stories import PastAttempt, Story
from depalma.state.suspension import Suspension
from depalma.state.task_states import (
    ASSIGNED,
    BLOCKED,
    CANCELLED,
    FAILED,
    FINAL_CODES,
    LOST,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    TIMED_OUT,
    UNBLOCKED,
    WORDS,
)
from depalma.tails import OutputTail

if TYPE_CHECKING:
    from depalma.state.gangs import GangRun

#: Longest error that is kept of a final attempt, and of one that was tried again; the end of it tells most.
MAX_ERROR = 16_384
MAX_PAST_ERROR = 1000

Chunk = tuple[int, int, Payload]  #: first position, count, packed arguments


class Attempt(Struct, gc=False, array_like=True):
    """One live execution of a task."""

    number: int
    host: str
    incarnation: str
    assigned_at: float
    started_at: float | None
    fence: int
    reason: str  #: why it was placed there
    gpus: tuple[int, ...] = ()  #: those of its host that it has, or has a part of
    alternative: int = 0  #: as which of its job's alternatives it runs; 0 = as the job says first


class Job:
    """A job. Only commands change it; `index` is a task's index, `position` counts from 0."""

    __slots__ = (
        "added",
        "asleep",
        "blocked",
        "cancel_reason",
        "cancelled",
        "cancelled_by",
        "chunks",
        "code_index",
        "counted",
        "cursor",
        "delayed",
        "done",
        "exit_code_seen",
        "finished_at",
        "first",
        "first_bad",
        "gangs",
        "held",
        "id",
        "line",
        "masks",
        "open",
        "ready",
        "requeued",
        "running",
        "shape",
        "spec",
        "started_at",
        "states",
        "stories",
        "submitted_at",
        "suspension",
        "tally",
        "unmet",
    )

    def __init__(self, job_id: int, spec: JobSpec, code_index: int, submitted_at: float) -> None:
        self.id = job_id
        self.spec = spec
        self.code_index = code_index  #: what its tasks run with, fixed at submission
        self.submitted_at = submitted_at
        self.started_at: float | None = None  #: when its first task started, as far as reported
        self.finished_at: float | None = None
        self.open = spec.open
        self.held = spec.hold
        self.suspension: Suspension | None = None  #: nothing begins, and what is on a host stands still
        self.cancelled = False  #: intent: tasks that still live are to be killed
        self.cancelled_by = ""
        self.cancel_reason = ""  #: when nobody did, but what it waited for cannot come any more
        #: first position and time of what was added together, if its tasks have start deadlines
        self.added: list[tuple[int, float]] = NOTHING_ADDED
        self.asleep = spec.start_at > submitted_at  #: its time has not come
        self.unmet: tuple[Dependency, ...] = ()  #: of what it waits for, what has not ended
        self.masks = bytearray()  #: by position, a bit for each dependency between tasks that is unmet; empty = none
        self.blocked = 0  #: tasks that wait for tasks of other jobs, or for the time of their next attempt
        self.delayed: dict[int, float] = {}  #: of these, by position, when that is
        self.first = spec.first_index
        self.shape = shape_of(spec, code_index)
        self.gangs = {} if self.shape.gang else NO_GANGS  #: those with members on hosts, by number
        self.ready = False  #: in the index of ready jobs (kept by it)
        self.line: Any = None  #: where it is there (kept by it)
        self.counted = 0  #: tasks on hosts that limits and shares know of
        self.states = bytearray(spec.count)
        self.cursor = 0
        self.requeued: list[int] = []  #: sorted positions below the cursor
        self.running: dict[int, Attempt] = {}
        self.stories: dict[int, Story] = {}  #: by position
        self.done = NOTHING_DONE
        self.tally = [0] * len(WORDS)  #: finished tasks by state
        self.exit_code_seen = 0  #: first exit code in order of completion that is not 0
        self.first_bad = -1  #: first task in that order that did not succeed and was not cancelled
        self.chunks: list[Chunk] = [(0, spec.count, spec.arguments)] if spec.arguments and spec.count else []

    # ------------------------------------------------------------ questions

    @property
    def total(self) -> int:
        """Returns the number of tasks known so far."""
        return len(self.states)

    @property
    def queued(self) -> int:
        """Returns how many tasks wait, held and blocked ones included."""
        return len(self.states) - len(self.running) - self.done.ended

    @property
    def is_final(self) -> bool:
        """Returns whether nothing will change any more."""
        return self.finished_at is not None

    @property
    def waits_for_jobs(self) -> bool:
        """Returns whether all of it waits for the end of other jobs."""
        return bool(self.unmet) and not all(each.each for each in self.unmet)

    @property
    def waits(self) -> bool:
        """Returns whether all of it waits, for its time or for the end of other jobs."""
        return self.asleep or self.waits_for_jobs

    @property
    def wants_host(self) -> bool:
        """Returns whether a task of it may be handed out now."""
        limit = self.spec.max_running
        if self.queued <= self.blocked or self.held or self.suspension:
            return False
        if limit and len(self.running) + (self.shape.gang or 1) > limit:
            return False
        return not (self.asleep or (self.unmet and self.waits_for_jobs))

    @property
    def finished_order(self) -> Completions:
        """Returns the task indices in order of completion; only ever appended to."""
        return self.done

    def has(self, index: int) -> bool:
        """Returns whether there is a task of this index."""
        return 0 <= index - self.first < len(self.states)

    def counts(self) -> TaskCounts:
        """Returns how many tasks are where."""
        tally = self.tally
        return TaskCounts(
            total=len(self.states),
            queued=self.queued,
            running=len(self.running),
            succeeded=tally[SUCCEEDED],
            failed=tally[FAILED] + tally[TIMED_OUT],
            cancelled=tally[CANCELLED],
            lost=tally[LOST],
        )

    def state(self) -> TaskState:
        """Returns the state of the job as a whole: `running` while any task is on a host."""
        if self.finished_at is None:
            if self.suspension is not None:
                return "suspended"
            if self.running:
                return "running"
            if self.held:
                return "held"
            return "blocked" if self.waits or 0 < self.blocked == self.queued else "queued"
        tally = self.tally
        if tally[FAILED]:
            return "failed"
        if tally[TIMED_OUT]:
            return "timed_out"
        if tally[LOST]:
            return "lost"
        return "cancelled" if tally[CANCELLED] or self.cancelled else "succeeded"

    @property
    def exit_code(self) -> int | None:
        """Returns the exit code of a command job that has ended: the first that is not 0, else 0; None if unknown."""
        if self.spec.kind != "command" or self.finished_at is None:
            return None
        if self.exit_code_seen:
            return self.exit_code_seen
        return 0 if self.state() == "succeeded" else None

    def state_of(self, index: int) -> TaskState:
        """Returns the state of a task. Errors: IndexError when there is none of this index."""
        position = index - self.first
        if position < 0:
            raise IndexError(index)
        code = self.states[position]
        if code in FINAL_CODES:
            return WORDS[code]
        if self.suspension is not None:
            return "suspended"
        if code not in (QUEUED, BLOCKED):
            return WORDS[code]
        if self.held:
            return "held"
        return "blocked" if code == BLOCKED or self.waits else "queued"

    def last_attempt(self, index: int) -> int:
        """Returns the number of the task's last attempt, 0 when it had none."""
        attempt = self.running.get(index)
        if attempt is not None:
            return attempt.number
        done = self.done.find(index, "lost")
        if done is not None and done.attempt:
            return done.attempt
        story = self.stories.get(index - self.first)
        return story.last if story else 0

    def outcome(self, index: int) -> Finished | None:
        """Returns the record of a finished task, None while it is not finished."""
        position = index - self.first
        if not 0 <= position < len(self.states) or self.states[position] not in FINAL_CODES:
            return None
        return self.done.find(index, WORDS[self.states[position]])

    def end_of(self, index: int, number: int) -> tuple[str, OutputTail | None]:
        """Returns how an attempt of a task that is over ended, and the end of what it wrote; empty: not known."""
        done = self.outcome(index)
        if done is not None and done.attempt == number:
            return done.state, done.tail
        story = self.stories.get(index - self.first)
        past = story.attempt(number) if story is not None else None
        return (past.state, past.tail) if past is not None else ("", None)

    def argument_of(self, index: int) -> tuple[Payload | None, int]:
        """Returns the packed arguments that hold the task's one and its place there; (None, -1) without argument."""
        position = index - self.first
        at = bisect_right(self.chunks, position, key=lambda chunk: chunk[0]) - 1
        if at >= 0:
            first, count, payload = self.chunks[at]
            if first <= position < first + count:
                return payload, position - first
        return None, -1

    def queued_positions(self) -> Iterator[int]:
        """Yields the positions of queued tasks in order, at the cost of those that are taken."""
        yield from self.requeued
        find = self.states.find
        position = find(QUEUED, self.cursor)
        while position >= 0:
            yield position
            position = find(QUEUED, position + 1)

    # ------------------------------------------------------------ changes

    def add_tasks(self, count: int, arguments: Payload) -> int:
        """Appends queued tasks; returns the index of the first."""
        position = len(self.states)
        self.states.extend(bytes(count))
        self.chunks.append((position, count, arguments))
        return self.first + position

    def assign(self, index: int, attempt: Attempt) -> None:
        """Takes a queued task out of the queue and gives it to a host."""
        position = index - self.first
        self.states[position] = ASSIGNED
        self.running[index] = attempt
        cursor = self.cursor
        if position == cursor:
            nxt = self.states.find(QUEUED, cursor + 1)
            self.cursor = len(self.states) if nxt < 0 else nxt
        elif position < cursor:
            del self.requeued[bisect_left(self.requeued, position)]

    def start(self, index: int, attempt: Attempt, started_at: float) -> None:
        """Records that an assigned attempt runs."""
        self.states[index - self.first] = RUNNING
        attempt.started_at = started_at
        if self.started_at is None:
            self.started_at = started_at

    def finish(self, index: int, code: int, attempt: Attempt, report: Report, at: float) -> None:
        """Records how the live attempt of a task ended for good."""
        self.states[index - self.first] = code
        del self.running[index]
        self.tally[code] += 1
        self._has_ended()
        done = self.done
        started = attempt.started_at if report.started_at is None else report.started_at
        note = (
            attempt.number,
            attempt.host,
            report.exit_code,
            report.signal,
            report.error if len(report.error) <= MAX_ERROR else "…" + report.error[-MAX_ERROR:],
            report.code_index,
            report.code_digest,
            attempt.reason,
            report.error_code,
            report.outputs,
            attempt.alternative,
        )
        finished = at if report.finished_at is None else report.finished_at
        done.add(index, note, started, finished, report.result, report.tail)
        if self.started_at is None:
            self.started_at = attempt.assigned_at if started is None else started
        if code != SUCCEEDED:
            self._note_bad(index, code, report)

    def requeue(self, index: int, attempt: Attempt, past: PastAttempt, counts: bool) -> None:
        """Puts a task back; `counts`: against the retries."""
        position = index - self.first
        self.states[position] = QUEUED
        del self.running[index]
        put_back(self, position)
        self.remember(position, past).failures += counts

    def remember(self, position: int, past: PastAttempt) -> Story:
        """Keeps an attempt that was not the last one; returns the task's story."""
        story = self.stories.get(position)
        if story is None:
            story = self.stories[position] = Story(0, 0, [])
        story.last = past.number
        story.add(past)
        return story

    def end(self, at: float) -> None:
        """Records that nothing is left to do, and gives back what only a live job needs."""
        self.finished_at, self.suspension = at, None
        self.running = {}
        self.done.seal()

    def cancel_queued(self, at: float) -> int:
        """Cancels everything that waits; returns how many that were. Cost: some bytes a task."""
        count = self.queued
        if not count:
            return 0
        self._has_ended()
        if self.blocked:
            self.states = self.states.translate(UNBLOCKED)
            self.requeued, self.cursor, self.blocked, self.masks = [], 0, 0, bytearray()
            self.delayed = {}
        for position in self.requeued:
            self._cancel_one(position, at)
        self.requeued.clear()
        # The rest was never handed out: single holes between those that were, and one stretch to the end.
        stretch = max(self.cursor, len(self.states.rstrip(bytes([QUEUED]))))
        hole = self.states.find(QUEUED, self.cursor, stretch)
        while hole >= 0:
            self._cancel_one(hole, at)
            hole = self.states.find(QUEUED, hole + 1, stretch)
        rest = len(self.states) - stretch
        self.states[stretch:] = bytes([CANCELLED]) * rest
        self.done.add_range(self.first + stretch, rest, at)
        self.tally[CANCELLED] += rest
        self.cursor = len(self.states)
        return count

    def block(self, mask: int) -> None:
        """Lets every task of a new job wait for tasks of other jobs: for one a bit of `mask`."""
        total = len(self.states)
        self.masks = bytearray([mask]) * total
        self.states = bytearray([BLOCKED]) * total
        self.blocked = self.cursor = total

    def unblock(self, position: int) -> None:
        """Queues a blocked task."""
        self.states[position] = QUEUED
        self.blocked -= 1
        put_back(self, position)

    def delay(self, position: int, until: float) -> None:
        """Takes a task that came back out of the queue again until a time."""
        if position < self.cursor:
            del self.requeued[bisect_left(self.requeued, position)]
        self.states[position] = BLOCKED
        self.blocked += 1
        self.delayed[position] = until

    def cancel_waiting(self, position: int, at: float, reason: str) -> None:
        """Cancels a task that waits: what it waits for cannot come any more, or has not come in time."""
        self._has_ended()
        if self.states[position] == BLOCKED:
            self.blocked -= 1
            if self.masks:
                self.masks[position] = 0
        elif position < self.cursor:
            del self.requeued[bisect_left(self.requeued, position)]
        self._cancel_one(position, at, reason)

    def _has_ended(self) -> None:
        if self.done is NOTHING_DONE:
            self.done = Completions(self.first)

    def _cancel_one(self, position: int, at: float, reason: str = "") -> None:
        self.states[position] = CANCELLED
        self.tally[CANCELLED] += 1
        story = self.stories.get(position)
        number = story.last if story else 0
        self.done.add(self.first + position, (number, "", None, None, reason, 0, "", "", "", None, 0), None, at, None)

    def _note_bad(self, index: int, code: int, report: Report) -> None:
        if self.first_bad < 0 and code != CANCELLED:
            self.first_bad = index
        if not self.exit_code_seen:
            self.exit_code_seen = report.exit_code or (128 + report.signal if report.signal else 0)


#: Of all jobs that have none; never changed.
NO_GANGS: dict[int, GangRun] = {}
#: Stands for "no task has ended yet", so that a queued job has no columns; never appended to.
NOTHING_DONE = Completions(0)
#: The same for jobs whose tasks have no start deadlines.
NOTHING_ADDED: list[tuple[int, float]] = []

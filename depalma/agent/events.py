"""What can happen to an agent and what it can be made to do. [pure]

The core takes the leader's frames and the events below, and answers with the actions below; the driver carries those
out in order. Times are seconds of the agent's own clock (CLOCK_BOOTTIME), except in reports.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from depalma.alternatives import spec_as
from depalma.codetree import CodeEntry
from depalma.model import AttemptRef, JobSpec, Payload, Report, slots_of
from depalma.protocol import (
    Assign,
    Assignment,
    CodeLog,
    Forget,
    HeartbeatAnswer,
    JobTemplate,
    Kill,
    Refused,
    ReportsCommitted,
    Suspended,
    Welcome,
)
from depalma.tails import OutputTail


class Event(Struct, frozen=True, gc=False):
    """Base of what happened on this host."""


class Connected(Event, frozen=True):
    """A Hello was sent, at `sent_s`."""

    sent_s: float


class Disconnected(Event, frozen=True):
    """The connection is gone; everything goes on until the lease is over."""


class BeatSent(Event, frozen=True):
    sequence: int
    sent_s: float


class Ended(Event, frozen=True):
    """Attempts ended by themselves or because they were told to. A result that is a digest is still to be uploaded."""

    reports: tuple[Report, ...]


class Uploaded(Event, frozen=True):
    """Result, outputs and the end of the output of an attempt are with the masters, or (`error`) will never be."""

    attempt: AttemptRef
    error: str = ""
    outputs: Payload | None = None
    error_code: str = ""
    tail: OutputTail | None = None  #: where the latter is, or why it is nowhere


class Recalled(Event, frozen=True):
    """These had been handed to a lane and have not started. Of the others on it all but the last have ended."""

    lane: int
    attempts: tuple[AttemptRef, ...]
    full: bool = False  #: they did not fit: nothing more does for now


class WorkerReady(Event, frozen=True):
    worker: int


class WorkerEnded(Event, frozen=True):
    """A worker process is gone. `unread` had not started; of the others, all results were delivered before this."""

    worker: int
    unread: tuple[AttemptRef, ...]
    reason: str
    exit_code: int | None
    signal: int | None
    at: float  #: wall clock
    tail: OutputTail | None = None  #: the end of what the task wrote that it ran
    error_code: str = ""  #: what the monitor calls such an end


class Prepared(Event, frozen=True):
    """A blob (its digest), a tree (`tree:N`) or the inputs of an attempt (`stage:JOB.TASK.ATTEMPT:DIGEST`) are on this
    disk; `digest` is the tree's."""

    need: str
    digest: str = ""


class Unprepared(Event, frozen=True):
    """A blob or a tree could not be had; what waits for it goes back to the leader, or (`for_good`) fails."""

    need: str
    error: str
    for_good: bool = False


class Evicted(Event, frozen=True):
    """A blob was removed from the cache."""

    need: str


class CodeReached(Event, frozen=True):
    """The tree of `index`, the newest known here, is complete."""

    index: int


class CodeDiffers(Event, frozen=True):
    """The code here is that of another log."""

    reason: str


class CodeRepaired(Event, frozen=True):
    """Files of these trees had been changed and are as they were: workers that may have read them must go."""

    indices: frozenset[int]


class Outdone(Event, frozen=True):
    """A worker that is forked now has imported at once what takes these long; they go when they have nothing to do."""

    workers: frozenset[int]


class LeaseLost(Event, frozen=True):
    """The monitor saw the lease end, or is dead: everything was or has to be killed."""

    reason: str


class Rejoined(Event, frozen=True):
    """Everything is dead; the agent goes on as a new incarnation."""

    incarnation: str


class Stopping(Event, frozen=True):
    """The agent was told to stop."""


class OwnerStands(Event, frozen=True):
    """Whether the owner of the machine is there (`reason`), and what that means for what runs here."""

    reason: str = ""  #: empty: nobody is
    step: str = ""  #: for people: the last one of ownership.STEPS that is taken
    lower: bool = False  #: it runs at the lowest priority
    suspend: bool = False  #: it stands still
    end: bool = False  #: it is to end, and runs elsewhere, if it is restartable
    grace_s: float = 0.0  #: and has this long for it
    end_all: bool = False  #: also if it is not


class Ending(Event, frozen=True):
    """What still runs is about to be ended, because the agent was told to stop."""


class Tick(Event, frozen=True):
    """Some time has passed (about 0.1 s while anything is there)."""


AnyEvent = (
    Connected
    | Disconnected
    | BeatSent
    | Ended
    | Uploaded
    | Recalled
    | WorkerReady
    | WorkerEnded
    | Prepared
    | Unprepared
    | Evicted
    | CodeReached
    | CodeDiffers
    | CodeRepaired
    | Outdone
    | LeaseLost
    | Rejoined
    | Stopping
    | OwnerStands
    | Ending
    | Tick
    | Welcome
    | Refused
    | HeartbeatAnswer
    | Assign
    | Kill
    | Forget
    | Suspended
    | ReportsCommitted
    | CodeLog
)


class Job:
    """What the attempts of a job share here."""

    __slots__ = (
        "average_s", "code_index", "depth", "id", "is_function", "key", "live", "needs", "problem", "spec", "template",
        "ways", "weight",
    )  # fmt: skip

    def __init__(self, template: JobTemplate, needs: tuple[str, ...], problem: str) -> None:
        self.template = template
        self.id: int = template.job
        self.key = self.id  #: what is kept of it for its tasks is under this: each of its alternatives has its own
        self.ways: dict[int, Job] = {}  #: its alternatives, by number
        self.spec: JobSpec = template.spec
        self.is_function = template.spec.kind == "function"
        self.code_index: int = max(0, template.code_index)
        self.needs = needs  #: blobs and trees that every attempt waits for
        self.problem = problem  #: why this host cannot run it; empty = it can
        self.average_s = -1.0  #: how long its tasks take; negative = not known yet
        self.depth = 1  #: how many of them a worker may be given at once
        self.live = 0
        self.weight = min(1.0, slots_of(template.spec.cpus))  #: how much of a slot each takes here

    @property
    def is_live(self) -> bool:
        """Returns whether it has attempts here, as any of its alternatives."""
        return self.live > 0 or any(way.live for way in self.ways.values())

    def as_alternative(self, number: int) -> Job:
        """Returns what those of its tasks share that run as the alternative of this number."""
        if not number:
            return self
        way = self.ways.get(number)
        if way is None:
            template = replace(self.template, spec=spec_as(self.spec, number))
            way = self.ways[number] = Job(template, self.needs, self.problem)
            way.key = -(1_000 * self.id + number)
        return way


class Attempt:
    """One attempt that this host knows and that has not been reported."""

    __slots__ = (
        "announced", "argument", "assigned_s", "doomed", "grace_s", "job", "lane", "missing", "reason", "ref", "state",
    )  # fmt: skip

    def __init__(self, ref: AttemptRef, job: Job, argument: Assignment, assigned_s: float) -> None:
        self.ref = ref
        self.job = job
        self.argument = argument
        self.assigned_s = assigned_s
        self.state = "preparing"  #: preparing, waiting, sent (to a lane), uploading
        self.missing = 0  #: needs that are not here yet
        self.lane = -1
        self.announced = False  #: the leader was told that it runs
        self.doomed = ""  #: the outcome to report once it is dead; `forget` = report nothing
        self.reason = ""
        self.grace_s: float = job.spec.grace_s  #: between SIGTERM and SIGKILL


class Action(Struct, frozen=True, gc=False):
    """Base of what the driver is to do."""


class Launch(Action, frozen=True):
    """Start commands on a slot, one after the other, behind those that were given to it before."""

    lane: int
    slot: int
    attempts: tuple[Attempt, ...]


class StopCommand(Action, frozen=True):
    """End a command that has started."""

    attempt: AttemptRef
    grace_s: float


class StartWorker(Action, frozen=True):
    """Start a worker process that serves one code index."""

    worker: int
    code_index: int


class SendTasks(Action, frozen=True):
    """Hand attempts to a worker, in this order; those that do not fit come back as Recalled."""

    worker: int
    attempts: tuple[Attempt, ...]


class Recall(Action, frozen=True):
    """Take back what has not started; answered by Recalled, always."""

    lane: int


class StopWorker(Action, frozen=True):
    worker: int
    grace_s: float


class Suspend(Action, frozen=True):
    """Have what runs on a lane (None: on all, and what comes later) stand still, as long as there is any reason."""

    lane: int | None
    reason: str


class Resume(Action, frozen=True):
    """Take a reason back."""

    lane: int | None
    reason: str


class Lower(Action, frozen=True):
    """Have everything run at the lowest priority, or as usual again."""

    lowered: bool


class EndForkServers(Action, frozen=True):
    """Of these code indices: what workers are forked from may have imported what was wrong there."""

    indices: frozenset[int]


class Prepare(Action, frozen=True):
    """Get a blob or build a tree; answered by Prepared or Unprepared."""

    need: str


class Upload(Action, frozen=True):
    """Bring a result (`digest`), the files that match `outputs` and (`tail`) the end of its output to the masters;
    answered by Uploaded."""

    attempt: AttemptRef
    digest: str
    size_bytes: int
    outputs: tuple[str, ...] = ()
    tail: bool = False


class KeepReports(Action, frozen=True):
    """Write reports down until they are committed; `send`: and send them."""

    reports: tuple[Report, ...]
    send: bool


class SendReports(Action, frozen=True):
    """Send reports that are kept already."""

    reports: tuple[Report, ...]


class Announce(Action, frozen=True):
    """Tell the leader that these run; the last value is for how many seconds."""

    tasks: tuple[tuple[int, int, int, float], ...]


class RenewLease(Action, frozen=True):
    until_s: float


class ApplyCode(Action, frozen=True):
    entries: tuple[CodeEntry, ...]
    again: bool = False


class Reconnect(Action, frozen=True):
    """Close this connection and come back."""

    reason: str


class ResetCode(Action, frozen=True):
    """The code here is that of another log: throw it away and begin at 0."""


class CutOff(Action, frozen=True):
    """Kill everything, then exit or come back as a new incarnation, as configured (`must_rejoin`: come back)."""

    reason: str
    must_rejoin: bool


class Leave(Action, frozen=True):
    """Kill everything and exit: this cluster does not want this agent."""

    reason: str


AnyAction = (
    Launch
    | StopCommand
    | StartWorker
    | SendTasks
    | Recall
    | StopWorker
    | Suspend
    | Resume
    | Lower
    | EndForkServers
    | Prepare
    | Upload
    | KeepReports
    | SendReports
    | Announce
    | RenewLease
    | ApplyCode
    | Reconnect
    | ResetCode
    | CutOff
    | Leave
)

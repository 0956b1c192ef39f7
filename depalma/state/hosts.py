"""One workstation as the cluster knows it. [pure]"""

from __future__ import annotations

from collections.abc import Container, Mapping

from msgspec import Struct

from depalma.gpuparts import WHOLE
from depalma.model import AttemptRef, HostFacts, HostState
from depalma.ownership import OwnerPolicy
from depalma.state.gpus import Taken, choose, may_have, usable
from depalma.state.jobs import Attempt
from depalma.state.shapes import GPUS, MEMORY, Needs, Shape, described, held, shown

#: Incarnations that are over, remembered so that a late message of one is not taken for a new agent.
KEEP_OVER = 16
#: Acknowledgements kept a host; older ones are implied by `code_index`.
KEEP_ACKNOWLEDGEMENTS = 1000
#: Ends of host-wide commands kept a host.
KEEP_RUNS = 20
_STEP_WORDS = {
    "lowered": "run at the lowest priority",
    "suspended": "stand still",
    "warned": "were told to end",
    "requeued": "move elsewhere",
}


class CodeLag(Struct, frozen=True, array_like=True, gc=False):
    """Why a host is behind the code log."""

    since: float
    reason: str
    index: int  #: what was newest then: with that it has caught up
    kicked: bool = False  #: it gets no work until it has


class CodeRun(Struct, frozen=True, array_like=True, gc=False):
    """How a host-wide command ended on a host."""

    exit_code: int
    output: str  #: its last lines
    at: float


class Drain(Struct, array_like=True, gc=False):
    """What was asked for: no new work. It holds whatever becomes of the agent, until it is taken back."""

    at: float
    deadline_at: float | None  #: seconds since the epoch; what runs then is moved. None = it may end by itself
    reason: str
    by: str
    done_at: float | None = None  #: since when nothing of the host's work is left


class Presence(Struct, frozen=True, array_like=True, gc=False):
    """The owner uses the machine: no new work, and what runs makes way."""

    since: float
    reason: str
    step: str = ""  #: how far: one of the words of ownership.STEPS
    suspended: bool = False  #: what was not told to end stands still


class Host:
    """A host. Only commands change it.

    `state` is what is known of its agent; what was asked for (`drain`, `removing`) stands beside it, because it holds
    over restarts and losses of the agent. `shown_state` is the one word for people.

    `attempts` holds exactly the attempts that live there, so "is this report's attempt the live one, here, in this
    incarnation" is one look-up.
    """

    __slots__ = (
        "acknowledgements",
        "added_at",
        "attempts",
        "by_job",
        "code_index",
        "configured_slots",
        "drain",
        "facts",
        "from_file",
        "gpus",
        "groups",
        "incarnation",
        "labels",
        "lag",
        "name",
        "over",
        "owner_given",
        "owner_policy",
        "presence",
        "priority",
        "reason",
        "removing",
        "resources",
        "runs",
        "since",
        "state",
        "taken",
        "used",
    )

    def __init__(
        self,
        name: str,
        groups: tuple[str, ...],
        labels: dict[str, str],
        priority: int,
        slots: int,
        gpus: int,
        added_at: float,
    ) -> None:
        self.name = name
        self.groups = groups
        self.labels = labels
        self.priority = priority
        self.configured_slots = slots  #: 0 = what the agent says
        self.gpus = gpus
        self.added_at = added_at
        self.state: HostState = "down"
        self.reason = "its agent has not connected yet"
        self.since = added_at  #: of the state
        self.incarnation = ""  #: of the agent process that counts; empty = none yet
        self.over: list[str] = []  #: the latest incarnations that will never count again
        self.facts: HostFacts | None = None
        self.code_index = 0  #: highest acknowledged
        self.acknowledgements: dict[int, str] = {}  #: code index → signature
        self.lag: CodeLag | None = None  #: it is behind the code log, and not only for a moment
        self.runs: dict[int, CodeRun] = {}  #: code index → how that command ended here
        self.attempts: dict[AttemptRef, Attempt] = {}
        self.by_job: dict[int, int] = {}  #: how many of them are of which job
        self.used: float = 0  #: slots that they take, those waiting there included
        self.resources: dict[str, int] = {}  #: what it has so many of
        self.taken: Taken = {}  #: what its attempts have of all that is counted, and of each GPU
        self.from_file = True  #: the cluster file lists it; False = added at run time
        self.drain: Drain | None = None
        self.removing = ""  #: why it goes as soon as nothing of it can live; empty = it stays

        self.owner_policy = OwnerPolicy()
        self.owner_given = False  #: somebody has said what it is
        self.presence: Presence | None = None  #: the agent's word, until it or its next life says more

    @property
    def slots(self) -> int:
        """Returns its room for tasks; 0 while neither the cluster file nor an agent has said."""
        if self.configured_slots:
            return self.configured_slots
        return self.facts.slots if self.facts else 0

    @property
    def takes_work(self) -> bool:
        """Returns whether it may be given tasks."""
        kicked = self.lag is not None and self.lag.kicked
        free = self.drain is None and not self.removing and self.presence is None
        return self.state == "up" and free and not kicked

    def suspends(self, *, restartable: bool) -> bool:
        """Returns whether tasks that run there stand still; those that were told to end do not."""
        presence = self.presence
        if presence is None or not presence.suspended:
            return False
        return presence.step not in ("warned", "requeued") or not (restartable or self.owner_policy.requeue_all)

    @property
    def shown_state(self) -> HostState:
        """Returns the word for people: what is wrong with the agent comes before what was asked for."""
        if self.state == "up" and (self.drain is not None or self.removing):
            return "drained" if self.drain is not None and self.drain.done_at is not None else "draining"
        if self.state == "up" and self.presence is not None:
            return "owner"
        if self.state == "up" and self.lag is not None:
            return "kicked" if self.lag.kicked else "lagging"
        return self.state

    @property
    def shown_reason(self) -> str:
        """Returns why it is as it is shown."""
        wanted = self.removing
        if self.drain is not None and not wanted:
            wanted = (self.drain.reason or "drained") + (f" (by {self.drain.by})" if self.drain.by else "")
        if self.state == "up" and self.presence is not None and not wanted:
            step = _STEP_WORDS.get(self.presence.step)
            return self.presence.reason + (f"; tasks {step}" if step else "")
        if self.state == "up":
            return wanted or (self.lag.reason if self.lag is not None else self.reason)
        return "; ".join(text for text in (self.reason, wanted) if text)

    @property
    def shown_since(self) -> float:
        """Returns since when it is as it is shown."""
        if self.shown_state in ("lagging", "kicked") and self.lag is not None:
            return self.lag.since
        if self.shown_state == "owner" and self.presence is not None:
            return self.presence.since
        if self.shown_state == self.state or self.drain is None:
            return self.since
        return self.drain.at if self.drain.done_at is None else self.drain.done_at

    @property
    def gpu_count(self) -> int:
        """Returns how many GPUs it has."""
        return self.gpus or (self.facts.gpus if self.facts is not None else 0)

    def capacity(self, name: str) -> int:
        """Returns how many it has of something that is counted; hundredths of GPUs."""
        if name == MEMORY:
            return self.facts.memory_bytes if self.facts is not None else 0
        if name == GPUS:
            return self.gpu_count * WHOLE
        return self.resources.get(name, 0)

    def lacks(self, needs: Needs) -> str:
        """Returns in words what there is too little of even when nothing runs; empty when there is enough."""
        for name, number in needs:
            if self.capacity(name) < number:
                return f"has {described(name, self.capacity(name))}, a task needs {shown(name, number)}"
        return ""

    def has_room(self, needs: Needs, taken: Mapping[str | int, int]) -> bool:
        """Returns whether one more task with these needs may run beside what is `taken`."""
        for name, number in needs:
            if taken.get(name, 0) + number > self.capacity(name):
                return False
            if name == GPUS and usable(self.gpu_count, taken, number) < number:
                return False
        return True

    def free(self, name: str, number: int, taken: Mapping[str | int, int]) -> int:
        """Returns how much of something is left for tasks that take `number` each, beside what is `taken`."""
        left = self.capacity(name) - taken.get(name, 0)
        return min(left, usable(self.gpu_count, taken, number)) if name == GPUS else left

    def choose_gpus(
        self,
        shape: Shape,
        taken: Mapping[str | int, int],
        avoid: Container[int] = (),
        wanted: tuple[int, ...] = (),
    ) -> tuple[int, ...] | None:
        """Returns the GPUs that a task of the shape gets beside what is `taken`: those that are `wanted`, if any are;
        None if it cannot have them."""
        for name, number in shape.needs:
            if name == GPUS and wanted:
                fits = may_have(self.gpu_count, taken, number, wanted)
                return wanted if fits and not any(gpu in avoid for gpu in wanted) else None
            if name == GPUS:
                return choose(self.gpu_count, taken, number, avoid)
        return ()

    def put(self, ref: AttemptRef, attempt: Attempt, shape: Shape) -> None:
        """Takes an attempt, with what tasks of its shape take."""
        self.attempts[ref] = attempt
        job = ref[0]
        self.by_job[job] = self.by_job.get(job, 0) + 1
        self.used += shape.weight
        if shape.needs:
            for name, number in held(shape.needs, attempt.gpus):
                self.taken[name] = self.taken.get(name, 0) + number

    def release(self, job: int, attempt: Attempt, shape: Shape) -> None:
        """Follows up the removal of an attempt of the job from `attempts`."""
        self.used -= shape.weight
        if shape.needs:
            for name, number in held(shape.needs, attempt.gpus):
                self.taken[name] -= number
                if not self.taken[name]:
                    del self.taken[name]
        left = self.by_job[job] - 1
        if left:
            self.by_job[job] = left
        else:
            del self.by_job[job]

    def turn(self, state: HostState, reason: str, at: float) -> None:
        """Changes the state, with the reason and since when."""
        self.state = state
        self.reason = reason
        self.since = at

    def retire(self) -> None:
        """Remembers that the incarnation is over."""
        if self.incarnation and self.incarnation not in self.over:
            self.over.append(self.incarnation)
            del self.over[:-KEEP_OVER]

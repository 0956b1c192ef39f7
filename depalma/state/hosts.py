"""One workstation as the cluster knows it. [pure]"""

from __future__ import annotations

from msgspec import Struct

from depalma.model import AttemptRef, HostFacts, HostState
from depalma.state.jobs import Attempt

#: Incarnations that are over, remembered so that a late message of one is not taken for a new agent.
KEEP_OVER = 16
#: Acknowledgements kept a host; older ones are implied by `code_index`.
KEEP_ACKNOWLEDGEMENTS = 1000
#: Ends of host-wide commands kept a host.
KEEP_RUNS = 20


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


class Host:
    """A host. Only commands change it.

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
        "facts",
        "gpus",
        "groups",
        "incarnation",
        "labels",
        "lag",
        "name",
        "over",
        "priority",
        "reason",
        "runs",
        "since",
        "state",
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
        self.used = 0  #: slots that they take, those waiting there included

    @property
    def slots(self) -> int:
        """Returns its room for tasks; 0 while neither the cluster file nor an agent has said."""
        if self.configured_slots:
            return self.configured_slots
        return self.facts.slots if self.facts else 0

    def put(self, ref: AttemptRef, attempt: Attempt, weight: int) -> None:
        """Takes an attempt that takes `weight` slots."""
        self.attempts[ref] = attempt
        job = ref[0]
        self.by_job[job] = self.by_job.get(job, 0) + 1
        self.used += weight

    def release(self, job: int, weight: int) -> None:
        """Follows up the removal of an attempt of the job from `attempts`."""
        self.used -= weight
        left = self.by_job[job] - 1
        if left:
            self.by_job[job] = left
        else:
            del self.by_job[job]

    def clear(self) -> None:
        """Drops all attempts."""
        self.attempts.clear()
        self.by_job.clear()
        self.used = 0

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

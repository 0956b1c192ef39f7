"""What the HTTP interface needs of the master around it (declared here, where it is used)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from aiohttp import web

from depalma.blobs import Blobs
from depalma.config import ClusterConfig, Secrets
from depalma.consensus import Member
from depalma.jobarchive.keeper import JobArchive
from depalma.leader.hub import Hub
from depalma.leader.questions import Questions
from depalma.leader.visits import Visits
from depalma.loopwatch import LoopWatch
from depalma.model import AttemptRef, Load, Report
from depalma.policies.places import HostRoom
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AnyCommand, Applied
from depalma.trust import Trust


class Replica(Protocol):
    """This master's part in the consensus."""

    @property
    def is_leader(self) -> bool:
        """Whether it leads, as far as it knows."""

    @property
    def term(self) -> int:
        """The newest term it has seen."""

    @property
    def leader_id(self) -> str | None:
        """The leader it follows, itself included."""

    @property
    def commit_index(self) -> int:
        """The last log index that a majority has."""

    @property
    def has_joined(self) -> bool:
        """Whether it has once held everything that was committed; until then it cannot help to elect."""

    @property
    def applied_index(self) -> int:
        """The last log index that is in the state."""

    async def change_members(self, members: tuple[Member, ...], command: bytes, *, timeout_s: float) -> object:
        """Makes these the members, one more or less; returns the command's outcome.

        Errors: MembershipRefused, NotLeader, OutcomeUnknown.
        """

    async def hand_over(self, target: str | None = None) -> str:
        """Lets another master lead; returns which. Errors: TransferFailed, NotLeader, OutcomeUnknown."""

    def contacts(self) -> Mapping[str, float | None]:
        """Returns seconds since each other master was heard."""

    async def snapshot(self) -> Path:
        """Returns the file of a snapshot of what is applied now. Errors: SnapshotFailed, OutcomeUnknown."""

    def refused_connections(self) -> Mapping[str, int]:
        """Returns how many connections its Raft port refused, by reason."""

    def certificate_seconds_left(self) -> float:
        """Returns how long its own certificate is still valid; negative after that."""


class Machine(Protocol):
    """The replicated state."""

    @property
    def state(self) -> ClusterState:
        """To be read on the loop's thread only."""

    @property
    def state_hash(self) -> str:
        """Equal on all masters at equal versions."""


class Sessions(Protocol):
    """The agents' connections; only a leader has any."""

    questions: Questions
    visits: Visits

    def load_of(self, host: str) -> Load:
        """Returns the last load that the host told; zeros if it is not connected."""

    def why_ending(self, host: str, ref: AttemptRef) -> str:
        """Returns why the host was told to end an attempt, to run elsewhere; empty if this leader told it nothing."""

    def last_seen_s(self, host: str) -> float | None:
        """Returns for how long the host has been silent; None if this leader never heard it."""

    def retry_code(self, hosts: set[str]) -> list[str]:
        """Makes hosts that are behind the code log (all, if none is named) try again; returns those that were asked."""

    async def serve(self, websocket: web.WebSocketResponse, host: str) -> None:
        """Runs one agent's connection to its end."""

    async def gone(self, host: str, incarnation: str, reason: str, reports: tuple[Report, ...] = ()) -> None:
        """Returns when it is committed how these attempts ended and that this incarnation of the host is lost."""


class Rates(Protocol):
    """How much goes through this master, over the last seconds."""

    finished_total: int
    submitted_total: int

    @property
    def mean_s(self) -> Mapping[int, float]:
        """How long a task of a job runs, where that is known."""

    def finished_per_s(self) -> float:
        """Returns tasks finished a second."""

    def submitted_per_s(self) -> float:
        """Returns tasks submitted a second."""

    def note_submitted(self, tasks: int) -> None:
        """Counts tasks that were submitted."""


class Services(Protocol):
    """One master process, seen by its HTTP interface."""

    @property
    def master_id(self) -> str:
        """Its id in the cluster file."""

    @property
    def config(self) -> ClusterConfig:
        """The cluster file."""

    @property
    def secrets(self) -> Secrets:
        """Tokens; never shown, never logged."""

    @property
    def replica(self) -> Replica:
        """Its part in the consensus."""

    @property
    def machine(self) -> Machine:
        """The replicated state."""

    @property
    def blobs(self) -> Blobs:
        """Large values."""

    @property
    def archive(self) -> JobArchive:
        """Finished jobs that the state has forgotten, as far as this master has them."""

    @property
    def hub(self) -> Hub:
        """Wake-ups at changes."""

    @property
    def sessions(self) -> Sessions:
        """The agents' connections."""

    def rooms(self) -> dict[str, HostRoom]:
        """Returns the room on all hosts that are connected to this master."""

    @property
    def rates(self) -> Rates:
        """Soft counters."""

    @property
    def loopwatch(self) -> LoopWatch:
        """How long the loop stood still."""

    @property
    def trust(self) -> Trust | None:
        """Whom to believe when masters are spoken to by https."""

    def refused_requests(self) -> Mapping[str, int]:
        """Returns how many connections the API's port refused, by reason."""

    async def execute(self, command: AnyCommand) -> Applied:
        """Returns when the command is committed and applied here.

        Errors: Rejected (by the state), NotLeader (not proposed), OutcomeUnknown (ask again, same request id).
        """

    async def barrier(self) -> None:
        """Returns when the state here is at least as new as every write acknowledged before the call.

        Errors: NotLeader, OutcomeUnknown.
        """

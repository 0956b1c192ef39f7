"""What the leader's duties need of the process around them (declared here, where it is used)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from depalma.blobs import Blobs
from depalma.config import ClusterConfig, Secrets
from depalma.leader.hub import Hub
from depalma.leader.rates import Rates
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AnyCommand, Applied


class Archive(Protocol):
    """The archives of the masters."""

    async def keep_on_majority(self, jobs: Sequence[int]) -> set[int]:
        """Returns those of the finished jobs that a majority of masters has archived, after asking all for it."""


class Context(Protocol):
    """A master, seen by the duties of its reign."""

    master_id: str
    config: ClusterConfig
    secrets: Secrets
    blobs: Blobs
    hub: Hub
    rates: Rates
    clock: Callable[[], float]  #: monotonic, counts suspend
    wall: Callable[[], float]  #: seconds since the epoch, for `at` fields
    spent: Callable[[], float]  #: processor time of this thread, in seconds

    @property
    def state(self) -> ClusterState:
        """The replicated state; to be read on the loop's thread only."""

    @property
    def term(self) -> int:
        """The term of this reign."""

    @property
    def leading(self) -> bool:
        """Whether this master leads, as far as it knows."""

    @property
    def archive(self) -> Archive:
        """Where finished jobs stay that are forgotten."""

    async def record_masters(self) -> None:
        """Writes down who the masters are, if nobody has. Errors: MembershipRefused, NotLeader, OutcomeUnknown."""

    async def execute(self, command: AnyCommand) -> Applied:
        """Proposes and waits. Errors: Rejected, NotLeader, OutcomeUnknown."""

    async def barrier(self) -> None:
        """Returns when it is certain that this master led after the call began. Errors: NotLeader, OutcomeUnknown."""

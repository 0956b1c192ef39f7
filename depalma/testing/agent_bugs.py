"""Known bugs to plant into the agents of a simulated cluster, and into what a leader does for them (see bugs.py)."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from depalma.agent.core import AgentCore
from depalma.leader.admission import Admission
from depalma.leader.leases import Leases
from depalma.leader.reign import Reign
from depalma.protocol import HeartbeatAnswer, Hello
from depalma.state.hosts import Host
from depalma.testing.sim_hosts import SimHosts


@dataclass(frozen=True, slots=True)
class AgentBug:
    """What replaces the product's own."""

    core: type[AgentCore] = AgentCore
    reign: type[Reign] = Reign

    def plant(self, hosts: SimHosts) -> None:
        """Makes these hosts, and those who lead them, have the bug."""
        hosts.make_core = self.core
        hosts.masters.make_reign = self.reign


class _CountsFromAnswer(AgentCore):
    """The lease runs from when the answer is read, not from when the heartbeat was sent."""

    def _on_beat_answer(self, frame: HeartbeatAnswer, now: float) -> None:
        known = frame.sequence in self._beats
        super()._on_beat_answer(frame, now)
        if known and self.lease_until:
            self._renew(now + self.lease_s)


class _HastyReign(Reign):
    """Work moves when the lease is over, without the margin."""

    def begin(self) -> None:
        times = self._leases._times
        self._leases._times = msgspec.structs.replace(times, move_s=times.stop_s)
        super().begin()


class _ImpatientLeases(Leases):
    def begin(self, now: float) -> None:
        super().begin(now - 2 * self._times.move_s)


class _ImpatientReign(Reign):
    """A new leader takes hosts that it has not heard for silent since long ago."""

    def begin(self) -> None:
        self._leases.__class__ = _ImpatientLeases
        super().begin()


class _GullibleAdmission(Admission):
    """Whoever comes while nobody is connected is taken to be the agent that was."""

    def _refuse_another(self, hello: Hello, host: Host) -> None:
        super()._refuse_another(msgspec.structs.replace(hello, over=None), host)


class _GullibleReign(Reign):
    def begin(self) -> None:
        self.sessions._admission.__class__ = _GullibleAdmission
        super().begin()


AGENT_BUGS: dict[str, AgentBug] = {
    "lease-from-answer": AgentBug(core=_CountsFromAnswer),
    "moved-at-lease": AgentBug(reign=_HastyReign),
    "any-twin-taken": AgentBug(reign=_GullibleReign),
    "new-leader-impatient": AgentBug(reign=_ImpatientReign),
}

"""What the leader knows of the connected hosts and the dispatcher has to know: their room, and how busy they are."""

from __future__ import annotations

from depalma.leader.context import Context
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import Load
from depalma.policies.busy import foreign_share
from depalma.policies.places import HostRoom

#: Tasks that may wait on a host beyond its slots, whatever the plan would like.
AHEAD_LIMIT = 1_000
#: Weight of a new measurement of what else runs on a host.
_WEIGHT = 0.5
#: Loads come about once a second; rounds may come much faster.
LOOK_S = 0.25
_UNKNOWN = (Load(), 0.0)


class Rooms:
    """Soft: a new leader measures anew."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self._context = context
        self._sessions = sessions
        self._next_s = 0.0
        self._made_of = (-1, -1)
        self._rooms: dict[str, HostRoom] = {}
        self.busy = False  #: something else runs on one of them at least
        self._foreign: dict[AgentSession, tuple[Load, float]] = {}  #: the load that was seen last, and the share

    def now(self) -> dict[str, HostRoom]:
        """Returns the room on all connected hosts. Made anew only when something has changed, or loads may have:
        a round looks at this, and most rounds are about a few tasks."""
        state = self._context.state
        state.fits.begin(state.hosts)
        now, made_of = self._context.clock(), (self._sessions.news, state.fits.version)
        if now < self._next_s and made_of == self._made_of:
            return self._rooms
        hosts = state.hosts
        sessions = [session for session in self._sessions.connected() if session.host in hosts]
        if now >= self._next_s:
            self._next_s = now + LOOK_S
            self._measure(sessions)
        self._made_of = made_of
        self._rooms = {
            session.host: HostRoom(
                incarnation=session.incarnation,
                slots=hosts[session.host].slots,
                ahead=0 if session.no_ahead_until > now else AHEAD_LIMIT,
                load=session.load,
                foreign=self._foreign.get(session, _UNKNOWN)[1],
            )
            for session in sessions
        }
        self.busy = any(room.foreign > 0 for room in self._rooms.values())
        return self._rooms

    def _measure(self, sessions: list[AgentSession]) -> None:
        """Takes loads that are new into the shares. Agents on one machine are not foreign to each other."""
        known, self._foreign = self._foreign, {}
        tasks_percent: dict[str, float] = {}
        for session in sessions:
            address = session.facts.address
            tasks_percent[address] = tasks_percent.get(address, 0.0) + session.load.tasks_cpu_percent
        for session in sessions:
            load, share = known.get(session, (None, 0.0))
            if load is not session.load:
                neighbours = tasks_percent[session.facts.address] - session.load.tasks_cpu_percent
                measured = foreign_share(session.load, neighbours)
                share = measured if load is None else share + _WEIGHT * (measured - share)
            self._foreign[session] = session.load, share

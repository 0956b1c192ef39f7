"""What the leader knows of the connected hosts and the dispatcher has to know: their room, and how busy they are."""

from __future__ import annotations

from depalma.leader.context import Context
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import Load
from depalma.policies.busy import foreign_share
from depalma.policies.places import HostRoom
from depalma.state.hosts import Host

#: Tasks that may wait on a host beyond its slots, whatever the plan would like.
AHEAD_LIMIT = 1_000
#: Weight of a new measurement of what else runs on a host.
_WEIGHT = 0.5


class _Window:
    """What our tasks may have used of a host while its last load was measured."""

    __slots__ = ("before", "foreign", "load", "peak")

    def __init__(self) -> None:
        self.load: Load | None = None
        self.peak = 0  #: most slots used since that load came
        self.before = 0  #: and between it and the one before
        self.foreign = 0.0

    def look(self, host: Host, load: Load) -> None:
        """Takes note of the slots in use, and of a load that is new."""
        self.peak = max(self.peak, host.used)
        if load is self.load:
            return
        # A new load was measured before it came: what was used in the window before may be in it.
        used, cpus = max(self.peak, self.before), host.facts.cpus if host.facts is not None else 0
        now = foreign_share(load, cpus, used)
        self.foreign = now if self.load is None else self.foreign + _WEIGHT * (now - self.foreign)
        self.load, self.before, self.peak = load, self.peak, host.used


class Rooms:
    """Soft: a new leader measures anew."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self._context = context
        self._sessions = sessions
        self._windows: dict[AgentSession, _Window] = {}

    def now(self) -> dict[str, HostRoom]:
        """Returns the room on all connected hosts."""
        now = self._context.clock()
        hosts = self._context.state.hosts
        sessions = [session for session in self._sessions.connected() if session.host in hosts]
        self._windows = {session: self._windows.get(session) or _Window() for session in sessions}
        rooms = {}
        for session in sessions:
            host, window = hosts[session.host], self._windows[session]
            window.look(host, session.load)
            rooms[host.name] = HostRoom(
                incarnation=session.incarnation,
                slots=host.slots,
                ahead=0 if session.no_ahead_until > now else AHEAD_LIMIT,
                load=session.load,
                foreign=window.foreign,
            )
        return rooms

"""What the leader knows of the connected hosts and the dispatcher has to know: their room, and how busy they are."""

from __future__ import annotations

from depalma.leader.context import Context
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import Load
from depalma.policies.busy import foreign_share, is_gpu_busy
from depalma.policies.places import HostRoom

#: Tasks that may wait on a host beyond its slots, whatever the plan would like.
AHEAD_LIMIT = 1_000
#: Weight of a new measurement of what else runs on a host.
_WEIGHT = 0.5
#: Loads come about once a second; rounds may come much faster.
LOOK_S = 0.25
#: Agents ask for the load of GPUs every ten seconds: what a task of ours did there is forgotten by then.
GPU_REST_S = 20.0
_UNKNOWN = (Load(), 0.0)


class Rooms:
    """Soft: a new leader measures anew."""

    def __init__(self, context: Context, sessions: Sessions) -> None:
        self._context = context
        self._sessions = sessions
        self._next_s = 0.0
        self._free_since_s: dict[AgentSession, dict[int, float]] = {}  #: since when no task has a GPU
        self._made_of = (-1, -1)
        self._rooms: dict[str, HostRoom] = {}
        self.busy = False  #: something else runs on one of them, or on a GPU, at least
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
        holdings = self._sessions.orders.holdings
        self._made_of = made_of
        self._rooms = {
            session.host: HostRoom(
                incarnation=session.incarnation,
                slots=hosts[session.host].slots,
                ahead=0 if session.no_ahead_until > now else AHEAD_LIMIT,
                load=session.load,
                foreign=self._foreign.get(session, _UNKNOWN)[1],
                busy_gpus=self._busy_gpus(session, now) if session.load.gpus else (),
                holds=holdings.of(session.host),
            )
            for session in sessions
        }
        self.busy = any(room.foreign > 0 or room.busy_gpus for room in self._rooms.values())
        return self._rooms

    def note_assigned(self, session: AgentSession) -> None:
        """To be called when the state has new attempts on a host: a task may be over before rooms are made again, and
        its GPU still measured as busy then."""
        if session.load.gpus and session.host in self._context.state.hosts:
            self._free_gpus(session, self._context.clock())

    def _free_gpus(self, session: AgentSession, now: float) -> dict[int, float]:
        """Returns since when no task has had each GPU that none has."""
        taken = self._context.state.hosts[session.host].taken
        free = self._free_since_s.setdefault(session, {})
        for gpu in range(len(session.load.gpus)):
            if gpu in taken:
                free.pop(gpu, None)
            else:
                free.setdefault(gpu, now)
        return free

    def _busy_gpus(self, session: AgentSession, now: float) -> tuple[int, ...]:
        """Returns the GPUs that are in use although no task of ours has had them for long enough to be measured."""
        free = self._free_gpus(session, now)
        return tuple(
            gpu
            for gpu, load in enumerate(session.load.gpus)
            if gpu in free and now - free[gpu] >= GPU_REST_S and is_gpu_busy(load)
        )

    def _measure(self, sessions: list[AgentSession]) -> None:
        """Takes loads that are new into the shares. Agents on one machine are not foreign to each other."""
        known, self._foreign = self._foreign, {}
        if self._free_since_s:
            live = set(sessions)
            self._free_since_s = {each: since for each, since in self._free_since_s.items() if each in live}
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

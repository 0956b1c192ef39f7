"""Agents of a simulated cluster: the product's own core (`agent/core.py`), which talks with the product's own sessions
of whoever leads, over connections that are cut and slow, with clocks that drift. Agents, monitors and whole hosts are
killed and stand still; a process of one host at a time, as the design has it (two at once are a machine that is gone).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from depalma import protocol
from depalma.agent import events as ev
from depalma.agent.core import AgentCore
from depalma.model import AttemptRef, HostFacts, Load, Report
from depalma.tails import OutputTail, not_kept
from depalma.testing.cluster import Violation
from depalma.testing.sim_masters import SLOTS, SimMaster, drifting
from depalma.testing.sim_processes import KILLED_WITHIN_S, Processes
from depalma.testing.sim_wire import Cuts, Line, ServerSocket

if TYPE_CHECKING:
    from depalma.testing.sim_hosts import SimHosts

_FACTS = HostFacts(SLOTS, 2, 8 << 30, 1, "0.1.0", "3.11", "simulated")
#: the session's rhythm and patience, as in agent/session.py and connection.py
_LOOK_S, _TICK_S, _PATIENCE_S, _GIVE_UP_S = 0.05, 0.1, 0.3, 2.0
#: for so long a monitor tells that its agent is gone
_TELL_S = 6.0


class Connection:
    """One WebSocket of an agent to a master."""

    def __init__(self, agent: SimAgent, master: SimMaster, cuts: Cuts) -> None:
        timeline, here, there = agent.hosts.timeline, agent.name, master.master_id
        self.master = master
        self._agent = agent
        self._sent_s: deque[float] = deque()
        self._down = Line(timeline, cuts.delay_s, partial(cuts.cut, there, here), lambda data: agent.came(self, data))
        self._up = Line(timeline, cuts.delay_s, partial(cuts.cut, here, there), self._arrived)
        self._socket = ServerSocket(master.loop, self._down.put)
        master.accept(agent.host, self._socket)

    def send(self, frame: protocol.FromAgent) -> None:
        """To the master."""
        self._sent_s.append(self._agent.hosts.now)
        self._up.put(protocol.encode(frame))

    def close(self) -> None:
        """From the agent's side, or by the system when the agent has died."""
        self._sent_s.append(self._agent.hosts.now)
        self._up.put(None)

    def _arrived(self, data: bytes | None) -> None:
        sent_s = self._sent_s.popleft()
        if self.master.alive:
            if data is not None and isinstance(protocol.decode_from_agent(data), protocol.Hello | protocol.Heartbeat):
                self._agent.heard_s = max(self._agent.heard_s, sent_s)
            self._socket.came(data)


class SimAgent:
    """One machine: an agent process that comes and goes, its session, and what outlives it (processes, journal, clock).

    `name`: the machine's; `host`: what it says that it is called, if that is something else.
    """

    def __init__(self, hosts: SimHosts, name: str, rates: tuple[float, ...], *, exits: bool, host: str = "") -> None:
        self.name = name
        self.host = host or name
        self.hosts = hosts
        self.core: AgentCore | None = None
        self.frozen = False
        self.retired = False
        self.heard_s = 0.0  #: when it sent the last word that any master heard and a lease may run from
        self.clock = drifting(hosts.masters.cluster.clock, hosts.random, rates)
        self.processes = Processes(hosts.timeline, hosts.random, self.clock, hosts.witness, self.tell)
        self._exits = exits  #: instead of coming back as a new incarnation
        self._life = 0
        self._incarnations = 0
        self._over: list[str] = []
        self._epoch = 0  #: what was said to an earlier one is for nobody
        self._journal: dict[AttemptRef, Report] = {}
        self._held: list[Callable[[], None]] = []  #: what came while it stood still
        self._events: deque[ev.AnyEvent] = deque()
        self._handling = False
        self._connection: Connection | None = None
        self._whole = False
        self._beat = 0
        self._beat_s = self._next_beat_s = self._next_tick_s = 0.0
        self._unanswered_s: float | None = None

    # ------------------------------------------------------------ life

    @property
    def idle(self) -> bool:
        """Whether it is there, and nothing runs and nothing is left to report."""
        return self.core is not None and self.core.connected and not self.core.attempts and not self.core.pending

    def holds_lease(self, incarnation: str = "") -> bool:
        """Whether this incarnation (the one of now) believes that it may run something."""
        core = self.core
        if core is None or incarnation not in ("", core.incarnation):
            return False
        return self.clock.monotonic() < core.lease_until

    def is_over(self, incarnation: str) -> bool:
        """Whether a later one has begun since, with nothing running."""
        return incarnation != f"{self.name}-{self._incarnations}"

    def start(self) -> None:
        """A process begins, with the reports that the last one left."""
        if self.core is not None or self.retired:
            return
        self._life += 1
        self._epoch += 1
        self.core = self.hosts.make_core(slots=SLOTS, python="3.11", incarnation=self._incarnation())
        self.core.pending.update(self._journal)
        self._whole, self._unanswered_s = True, None
        self._look(self._life)

    def kill(self, why: str, *, tells: bool = True) -> None:
        """SIGKILL, or its own end: the monitor kills everything and tells the masters."""
        if self.core is None:
            return
        incarnation = self.core.incarnation
        self._end()
        self.processes.monitor(partial(self._bury, incarnation, why, tells))

    def lose_power(self) -> None:
        """The whole host is off at once; nobody tells anything, and the journal was not synced."""
        if self.core is None:
            return
        self._end(silently=True)
        self.processes.kill_everything()
        if self.hosts.random.random() < 0.5:
            self._journal.clear()
            self._over.clear()
        self._start_later()

    def lose_monitor(self) -> None:
        """The agent kills what is left and begins anew."""
        if self.core is None:
            return

        def found_out() -> None:
            self.processes.kill_everything()
            self.tell(ev.LeaseLost("the monitor died"))

        self.hosts.timeline.after(self.hosts.random.uniform(0.0, KILLED_WITHIN_S), found_out)

    def retire(self) -> None:
        """Off for good."""
        self.lose_power()
        self.retired = True

    def stop(self) -> None:
        """SIGTERM: what has not started goes back, then it ends."""
        life = self._life
        self._deliver(ev.Stopping())

        def leave() -> None:
            if self._life == life:
                self.kill("stopped")

        # Until the monitor has taken it, the agent goes on as before.
        self.hosts.timeline.after(0.2, lambda: self.processes.monitor(leave))

    def thaw(self) -> None:
        """The agent goes on."""
        self.frozen = False
        held, self._held = self._held, []
        for event in held:
            self._happens(event)

    def _incarnation(self) -> str:
        if self.processes.live:
            raise Violation(f"I3: {self.name} begins anew while it runs {list(self.processes.live)}")
        if self._incarnations:
            self._over.append(f"{self.name}-{self._incarnations}")
        self._incarnations += 1
        return f"{self.name}-{self._incarnations}"

    def _end(self, *, silently: bool = False) -> None:
        self.core = None
        self.frozen = False
        self._life += 1
        self._epoch += 1
        self._held.clear()
        self._events.clear()
        connection, self._connection = self._connection, None
        if connection is not None and not silently:
            connection.close()

    def _bury(self, incarnation: str, why: str, tells: bool) -> None:
        self.processes.kill_everything()
        reports = tuple(self._journal.values())
        if incarnation and tells:
            self._tell_gone(incarnation, why, reports, self.hosts.now + _TELL_S)
        self._start_later()

    def _start_later(self) -> None:
        self.hosts.timeline.after(self.hosts.random.choice([0.05, 0.5, 2.0]), self.start)

    def _tell_gone(self, incarnation: str, why: str, reports: tuple[Report, ...], until_s: float) -> None:
        """Asks each leader that can be reached, until one has taken it."""
        again = partial(self._tell_gone, incarnation, why, reports, until_s)
        leaders = self.hosts.within_reach(self.name)
        if not leaders:
            if self.hosts.now < until_s:
                self.hosts.timeline.after(0.2, again)
            return
        master = self.hosts.random.choice(leaders)
        answered = list[bool]()

        def wait() -> None:
            if not any(answered) and self.hosts.now < until_s:
                again()

        def say() -> None:
            master.ask(lambda: master.reign.sessions.gone(self.host, incarnation, why, reports), answered.append)

        self.hosts.timeline.after(self.hosts.cuts.delay_s(), say)
        self.hosts.timeline.after(1.0, wait)

    # ------------------------------------------------------------ the core, and what it wants done

    def tell(self, event: ev.AnyEvent) -> None:
        """Something happened on this host: the agent hears of it a moment later, unless it is another one by then."""
        epoch = self._epoch
        self.hosts.timeline.after(
            0.0001, lambda: self._happens(lambda: self._deliver(event) if self._epoch == epoch else None)
        )

    def _happens(self, event: Callable[[], None]) -> None:
        if self.frozen:
            self._held.append(event)
        else:
            event()

    def _deliver(self, event: ev.AnyEvent) -> None:
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events and self.core is not None:
            for action in self.core.handle(self._events.popleft(), self.clock.monotonic()):
                self._do(action)
        self._handling = False

    def _do(self, action: ev.AnyAction) -> None:
        monitor, processes = self.processes.monitor, self.processes
        match action:
            case ev.Launch():
                monitor(partial(processes.launch, action))
            case ev.StopCommand(attempt=ref):
                monitor(partial(processes.stop_command, ref))
            case ev.Recall(lane) if processes.is_worker(lane):
                processes.recall_tasks(lane)
            case ev.Recall(lane):
                monitor(partial(processes.recall_commands, lane))
            case ev.StartWorker(worker):
                processes.start_worker(worker)
            case ev.SendTasks():
                processes.send_tasks(action)
            case ev.StopWorker(worker):
                processes.stop_worker(worker)
            case ev.Suspend(int() as lane) | ev.Resume(int() as lane):
                line = self.core.lanes.lanes[lane].queue if self.core is not None else ()
                what = lane if processes.is_worker(lane) else line[0].ref if line else 0
                monitor(partial(processes.stand, what, isinstance(action, ev.Suspend)))
            case ev.RenewLease(until_s):
                monitor(partial(processes.renew, until_s))
            case ev.KeepReports(reports, send):
                self._journal.update({(one.job, one.task, one.attempt): one for one in reports})
                if send:
                    self._send(protocol.Reports(reports))
            case ev.Upload(attempt=ref):
                self._hand_over(ref)
            case ev.SendReports(reports):
                self._send(protocol.Reports(reports))
            case ev.Announce(tasks):
                wall = self.hosts.masters.cluster.clock.time()
                self._send(protocol.Started(tuple((*task[:3], wall - task[3]) for task in tasks)))
            case ev.Reconnect():
                self._disconnect()
            case ev.CutOff(must_rejoin=must_rejoin):
                self._cut_off(must_rejoin=must_rejoin)
            case ev.Leave():
                self.kill("the agent left")
            case _:
                raise AssertionError(f"not simulated: {action}")

    def _hand_over(self, ref: AttemptRef) -> None:
        """The end of its output is with the masters after a while, or it is given up."""
        epoch, tail = self._epoch, not_kept("no majority took it") if ref[1] % 8 == 3 else OutputTail(b"end")

        def done() -> None:
            if self._epoch == epoch:
                self._deliver(ev.Uploaded(ref, tail=tail))

        self.hosts.timeline.after(0.05 * (ref[1] % 5), lambda: self._happens(done))

    def _cut_off(self, *, must_rejoin: bool) -> None:
        self._epoch += 1
        self._whole = False
        self._disconnect()
        self._journal.clear()
        life, epoch = self._life, self._epoch

        def killed() -> None:
            if (self._life, self._epoch) != (life, epoch):
                return
            self.processes.kill_everything()  # with the monitor or without it
            if self._exits and not must_rejoin:
                self.kill("the agent left")
            else:
                self.processes.monitor(lambda: self.hosts.timeline.after(0.01, lambda: self._happens(rejoin)))

        def rejoin() -> None:
            if (self._life, self._epoch) == (life, epoch):
                self._deliver(ev.Rejoined(self._incarnation()))
                self._whole = True

        self.hosts.timeline.after(self.hosts.random.uniform(0.0, KILLED_WITHIN_S), killed)

    # ------------------------------------------------------------ the session

    def _look(self, life: int) -> None:
        if life != self._life or self.core is None:
            return
        self.hosts.timeline.after(_LOOK_S, partial(self._look, life))
        if self.frozen:
            return
        now = self.hosts.now
        if now >= self._next_tick_s - 1e-6:  # it is looked at twice in a tick
            self._next_tick_s = now + _TICK_S
            self._deliver(ev.Tick())
            self._journal = {**self.core.pending, **self.core.early} if self.core is not None else self._journal
        if self._whole and self.core is not None:
            self._look_after_connection(now)

    def _look_after_connection(self, now: float) -> None:
        assert self.core is not None
        connection = self._connection
        if connection is not None and not connection.master.alive and self.hosts.random.random() < 0.5:
            self._disconnect()
        elif connection is not None and self._unanswered_s is not None:
            silent_s = now - self._unanswered_s
            others = [one for one in self.hosts.within_reach(self.name) if one is not connection.master]
            if silent_s > _GIVE_UP_S or (silent_s > _PATIENCE_S and others and self.core.connected):
                self._disconnect()
        if self._connection is None:
            self._connect()
        elif self.core.connected and now >= self._next_beat_s:
            self._next_beat_s = now + self._beat_s
            self._beat += 1
            sent_s = self.clock.monotonic()
            self._deliver(ev.BeatSent(self._beat, sent_s))
            self._send(protocol.Heartbeat(self._beat, sent_s, Load(), self.core.free_slots if self.core else 0))

    def _connect(self) -> None:
        leaders = self.hosts.within_reach(self.name)
        if not leaders or self.core is None:
            return
        self._connection = connection = Connection(self, self.hosts.random.choice(leaders), self.hosts.cuts)
        sent_s = self.clock.monotonic()
        self._unanswered_s = self.hosts.now
        connection.send(msgspec.structs.replace(self.core.hello(self.host, _FACTS), over=tuple(self._over)))
        self._deliver(ev.Connected(sent_s))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._unanswered_s = None
            self._deliver(ev.Disconnected())

    def _send(self, frame: protocol.FromAgent) -> None:
        if self._connection is not None and self.core is not None and self.core.connected:
            if not isinstance(frame, protocol.Started) and self._unanswered_s is None:
                self._unanswered_s = self.hosts.now
            self._connection.send(frame)

    def came(self, connection: Connection, data: bytes | None) -> None:
        """Bytes of a connection are here."""
        self._happens(lambda: self._receive(connection, data))

    def _receive(self, connection: Connection, data: bytes | None) -> None:
        if connection is not self._connection:
            return
        if data is None:
            self._disconnect()
            return
        frame = protocol.decode_to_agent(data)
        self._unanswered_s = None
        if isinstance(frame, protocol.Welcome):
            self._beat_s = frame.heartbeat_s
        if not isinstance(frame, protocol.Masters | protocol.Question | protocol.ToVisit):
            self._deliver(frame)

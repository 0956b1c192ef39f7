"""The leader's side of the agents' connections: who is admitted, what frames mean, who is asked.

A heartbeat is answered only after a read barrier that began when it came in: a master that was deposed, cut off or
frozen cannot prolong a lease, because it cannot commit (design section 2, promise 3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable

import msgspec
from aiohttp import WSMsgType, web

from depalma import protocol
from depalma.consensus import CommandTooLarge, NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.joining import is_signed
from depalma.leader.admission import Admission, receive_hello, stranger
from depalma.leader.context import Context
from depalma.leader.leases import Leases
from depalma.leader.orders import Orders, frames_of
from depalma.leader.questions import Questions
from depalma.leader.reports import in_parts
from depalma.leader.session import AgentSession, Goodbye
from depalma.leader.suspensions import Suspensions
from depalma.leader.visits import Visits
from depalma.lease import RENEWALS
from depalma.masters import urls
from depalma.model import AttemptRef, Load, Report
from depalma.protocol import (
    CodeAcknowledged,
    CodeLog,
    CodeProblem,
    Forget,
    FromAgent,
    Heartbeat,
    HeartbeatAnswer,
    Hello,
    InVisit,
    LoadTold,
    Masters,
    Output,
    OwnerNews,
    Processes,
    Refused,
    Reports,
    ReportsCommitted,
    Started,
    VisitOver,
    Welcome,
)
from depalma.state.codelog import MAX_TEXT
from depalma.state.commands import (
    AckCode,
    FailCode,
    FinishOutcome,
    FinishTasks,
    HostLost,
    HostRecovered,
    NoteOwner,
    StartTasks,
)
from depalma.state.gangs import rest_of_gangs

log = logging.getLogger(__name__)

#: After an agent gave waiting tasks back it gets none ahead for so long.
NO_AHEAD_S = 5.0


class Sessions:
    """All agent connections of this master; only a leader has any."""

    def __init__(self, context: Context, leases: Leases) -> None:
        self._context = context
        self._leases = leases
        self.orders = Orders(context)
        self.by_host: dict[str, AgentSession] = {}
        self.news = 0  #: counts what makes the room on connected hosts another one, loads and the state left out
        self.questions = Questions(context, self.by_host)
        self.suspensions = Suspensions(context, self.orders, self.by_host)
        self.visits = Visits(self.by_host)
        self._admission = Admission(context, leases, self.by_host)
        self._beats: list[tuple[AgentSession, Heartbeat]] = []
        self._beat_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_room: Callable[[], None] = lambda: None  #: called when a host may take work that could not before

    # ------------------------------------------------------------ what the API asks

    def load_of(self, host: str) -> Load:
        """Returns the last load that the host told; zeros if it is not connected."""
        session = self.by_host.get(host)
        return session.load if session is not None else Load()

    def why_ending(self, host: str, ref: AttemptRef) -> str:
        """Returns why the host was told to end an attempt that lives there; empty if this leader did not tell it to."""
        killed = self.by_host[host].killed if host in self.by_host else {}
        return killed.get((ref, "moved"), "")

    def last_seen_s(self, host: str) -> float | None:
        """Returns for how long the host has been silent; None if this leader never heard it."""
        return self._leases.last_seen_s(host, self._context.clock())

    async def gone(self, host: str, incarnation: str, reason: str, reports: tuple[Report, ...] = ()) -> None:
        """Records that a supervisor killed everything of a dead agent: its work moves at once, no lease to wait for.

        `reports`: what had ended before, and the agent had no time to tell.
        """
        try:
            for part in in_parts(reports):
                await self._context.execute(FinishTasks(host, incarnation, part, self._context.wall()))
            await self._context.execute(HostLost(host, incarnation, reason, self._context.wall()))
        except Rejected as refusal:
            log.info("host %s, incarnation %s is gone already: %s", host, incarnation, refusal)

    # ------------------------------------------------------------ a connection

    async def serve(self, websocket: web.WebSocketResponse, host: str) -> None:
        """Runs one agent's connection to its end."""
        try:
            hello = await receive_hello(websocket, host)
            session = await self._admit(hello, websocket)
        except Goodbye as goodbye:
            log.info("agent of host %s refused: %s", host, goodbye.refusal.reason)
            await websocket.send_bytes(protocol.encode(goodbye.refusal))
            await websocket.close()
            return
        writer = asyncio.create_task(session.write_outbox())
        try:
            await self._read(session, websocket)
        finally:
            writer.cancel()
            session.abandon()
            self.visits.lost(session)
            if self.by_host.get(host) is session:
                del self.by_host[host]
                self.news += 1
            log.info("agent of host %s disconnected", host)

    async def _admit(self, hello: Hello, websocket: web.WebSocketResponse) -> AgentSession:
        await self._admission.take_up(hello)
        if not self._context.leading:
            raise Goodbye(Refused("this master does not lead any more"))
        if hello.host not in self._context.state.hosts:
            raise Goodbye(stranger(hello.host))
        session = AgentSession(hello.host, hello.incarnation, hello.facts, websocket)
        session.tells_history, session.suspends_jobs = hello.tells_history, hello.suspends_jobs
        session.takes_visits = hello.takes_visits
        self.welcome(session)
        # No await between here and the end: commits that come later find the session, earlier ones are in the state.
        earlier = self.by_host.get(hello.host)
        if earlier is not None:
            earlier.close()
        self.by_host[hello.host] = session
        self.news += 1
        self._leases.heard(hello.host, self._context.clock())
        self._reconcile(session, hello)
        log.info("agent of host %s connected (incarnation %s)", hello.host, hello.incarnation)
        self.on_room()
        return session

    def welcome(self, session: AgentSession) -> None:
        """Tells the agent what holds for it; again when that has changed."""
        settings = self._context.config.settings
        host = self._context.state.hosts[session.host]
        session.slots_told, session.policy_told = host.configured_slots, host.owner_policy
        known = host.presence
        lease_s = self._leases.lease_of(host.facts)
        session.send(
            Welcome(
                self._context.term,
                self._context.master_id,
                lease_s,
                min(settings.lease_times.renew_s, lease_s / RENEWALS),
                tuple(urls(self._context.state, self._context.config).values()),
                session.slots_told,
                takes_problems=True,
                owner_policy=session.policy_told,
                owner_known=OwnerNews(known.reason, known.step, known.suspended) if known else OwnerNews(),
            )
        )

    def dismiss(self, session: AgentSession, refusal: Refused) -> None:
        """Ends a connection for good: the agent is told why, and counts as not connected from now on."""
        log.info("agent of host %s is sent away: %s", session.host, refusal.reason)
        if self.by_host.get(session.host) is session:
            del self.by_host[session.host]
            self.news += 1
        session.dismiss(refusal)  # its lease goes on: what it runs is lost when it says so, or when that is over

    def _reconcile(self, session: AgentSession, hello: Hello) -> None:
        """Makes agent and state agree: what never arrived is sent again, what is no longer the host's is ended."""
        state = self._context.state
        counted = set(state.hosts[session.host].attempts)
        running, ended = set(hello.running), set(hello.unreported)
        stray = running - counted
        if stray:
            session.send(Forget(self.orders.next_order(), self._context.term, tuple(sorted(stray))))
        self.suspensions.begin(session)
        self.assign(session, sorted(counted - running - ended))
        doomed = [ref for ref in counted if state.jobs[ref[0]].cancelled]
        self.orders.kill(session, sorted(doomed), outcome="cancelled", reason="job cancelled")
        for job in {ref[0] for ref in counted if state.jobs[ref[0]].gangs}:
            for (host, reason), refs in rest_of_gangs(state.jobs[job]).items():
                if host == session.host:
                    self.orders.kill(session, refs, outcome="cancelled", reason=reason)
        # What the agent has and did not manage to say is sent again: it is acknowledged again.
        session.code_sent = min(hello.code_index, state.hosts[session.host].code_index)
        self.send_code(session)

    def assign(self, session: AgentSession, refs: Iterable[AttemptRef]) -> None:
        """Sends what was committed as soon as the arguments are there; who calls does not wait for that."""
        self._spawn(self.orders.assign(session, refs))

    def tell_masters(self) -> None:
        """Tells the agents which masters there are now, so that they find the next leader."""
        named = tuple(urls(self._context.state, self._context.config).values())
        for session in self.by_host.values():
            session.send(Masters(named))

    def send_code(self, session: AgentSession, *, again: bool = False) -> None:
        """Sends the entries of the code log that this connection has not carried yet."""
        for entries in frames_of(self._context.state.code[session.code_sent :]):
            session.code_sent = entries[-1].index
            session.send(CodeLog(self.orders.next_order(), self._context.term, entries, again))

    def retry_code(self, hosts: set[str]) -> list[str]:
        """Makes hosts that are behind (all, if none is named) try again what failed; returns those that were asked."""
        asked = []
        state = self._context.state
        for name, session in self.by_host.items():
            host = state.hosts.get(name)
            if (not hosts or name in hosts) and host is not None and host.code_index < state.code_index:
                session.code_sent = host.code_index
                self.send_code(session, again=True)
                asked.append(name)
        return sorted(asked)

    # ------------------------------------------------------------ frames

    async def _read(self, session: AgentSession, websocket: web.WebSocketResponse) -> None:
        async for message in websocket:
            if message.type is not WSMsgType.BINARY:
                break
            try:
                frame = protocol.decode_from_agent(message.data)
            except msgspec.MsgspecError as error:
                log.warning("host %s sent a frame that cannot be read (%s); closing", session.host, error)
                break
            self._handle(session, frame)

    def _handle(self, session: AgentSession, frame: FromAgent) -> None:
        match frame:
            case Reports():
                self._spawn(self._record(session, frame))
            case Heartbeat():
                self._heartbeat(session, frame)
            case Started():
                command = StartTasks(session.host, session.incarnation, frame.tasks, self._context.wall())
                self._spawn(self._propose(session, command))
            case CodeAcknowledged():
                self._code_acknowledged(session, frame)
            case CodeProblem():
                self._spawn(self._code_failed(session, frame))
            case OwnerNews(reason, step, suspended):
                told = NoteOwner(session.host, session.incarnation, reason, step, suspended, self._context.wall())
                self._spawn(self._propose(session, told))
            case Processes() | LoadTold() | Output():
                session.answered(frame)
            case InVisit() | VisitOver():
                self.visits.told(session, frame)
            case Hello():
                log.warning("host %s sent a second hello; closing", session.host)
                session.close()

    async def _record(self, session: AgentSession, frame: Reports) -> None:
        context = self._context
        host = context.state.hosts.get(session.host)
        live = host.attempts if host is not None else {}  # of a job that is over nothing would be dropped any more
        context.rates.note_reports([each for each in frame.reports if (each.job, each.task, each.attempt) in live])
        if any(report.outcome == "returned" for report in frame.reports):
            session.no_ahead_until = context.clock() + NO_AHEAD_S
            self.news += 1
        for part in in_parts(frame.reports):
            command = FinishTasks(session.host, session.incarnation, part, context.wall())
            outcome = await self._propose(session, command)
            if isinstance(outcome, FinishOutcome):
                over = (*outcome.recorded, *outcome.stale)
                session.note_over(over)
                session.send(ReportsCommitted(over))

    def _heartbeat(self, session: AgentSession, frame: Heartbeat) -> None:
        self._leases.heard(session.host, self._context.clock())
        session.load = frame.load
        session.free_slots = frame.free_slots
        self._beats.append((session, frame))
        if self._beat_task is None:
            self._beat_task = self._spawn(self._answer_heartbeats())

    async def _answer_heartbeats(self) -> None:
        """One barrier for all heartbeats that have come in when it begins."""
        try:
            while self._beats:
                beats, self._beats = self._beats, []
                try:
                    await self._context.barrier()
                except (NotLeader, OutcomeUnknown) as error:
                    log.info("%d heartbeats are not answered: %s", len(beats), error)
                    continue
                term = self._context.term
                for session, frame in beats:
                    session.send(HeartbeatAnswer(frame.sequence, frame.sent_s, term))
                    host = self._context.state.hosts.get(session.host)
                    if host is not None and host.state == "suspect":
                        # It was frozen for less than its lease and kept its connection: no hello says it is back.
                        back = HostRecovered(session.host, session.incarnation, self._context.wall())
                        self._spawn(self._propose(session, back))
        finally:
            self._beat_task = None

    def _code_acknowledged(self, session: AgentSession, frame: CodeAcknowledged) -> None:
        secrets = self._context.secrets
        if not is_signed(secrets, session.host, frame.index, frame.tree_digest, frame.signature):
            log.warning("host %s acknowledged code %d with a wrong signature", session.host, frame.index)
            return
        command = AckCode(
            session.host,
            session.incarnation,
            frame.index,
            frame.tree_digest,
            frame.signature,
            self._context.wall(),
            frame.exit_code,
            frame.output[-MAX_TEXT:],
        )
        self._spawn(self._propose(session, command))

    async def _code_failed(self, session: AgentSession, frame: CodeProblem) -> None:
        reason, output = frame.reason[-MAX_TEXT:], frame.output[-MAX_TEXT:]
        wall = self._context.wall()
        command = FailCode(session.host, session.incarnation, frame.index, reason, wall, frame.exit_code, output)
        await self._propose(session, command)

    async def _propose(
        self, session: AgentSession, command: FinishTasks | StartTasks | AckCode | FailCode | HostRecovered | NoteOwner
    ) -> object:
        """Proposes what an agent said; if it cannot be recorded the agent is made to connect and say it again."""
        try:
            return (await self._context.execute(command)).value
        except (NotLeader, OutcomeUnknown, CommandTooLarge) as error:
            log.info("what host %s said is not recorded: %s", session.host, error)
            session.close()
        except Rejected as refusal:
            log.warning("what host %s said was refused: %s", session.host, refusal)
            if refusal.code == "wrong_tree" and not session.code_sent_whole:
                # Its folder is that of another log: seeing ours from the first entry on, it begins anew.
                session.code_sent_whole, session.code_sent = True, 0
                self.send_code(session)
        return None

    # ------------------------------------------------------------ the reign

    def close_all(self) -> None:
        """Ends every connection: the agents look for the new leader."""
        self.visits.close_all(f"master {self._context.master_id} leads no more")
        for session in self.by_host.values():
            session.close()
        self.by_host.clear()
        self.news += 1

    def connected(self) -> Iterable[AgentSession]:
        """Returns the live sessions."""
        return self.by_host.values()

    def _spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Not an expected refusal but a defect of ours: the process must not limp on (design section 5).
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a leader's duty failed", "exception": task.exception(), "task": task}
            )

"""The leader's side of the agents' connections: who is admitted, what frames mean, who is asked.

A heartbeat is answered only after a read barrier that began when it came in: a master that was deposed, cut off or
frozen cannot prolong a lease, because it cannot commit (design section 2, promise 3).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Coroutine, Iterable

import msgspec
from aiohttp import WSMsgType, web

from depalma import protocol
from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.leader.leases import Leases
from depalma.leader.orders import Orders
from depalma.leader.session import AgentSession
from depalma.lease import RENEWALS
from depalma.masters import urls
from depalma.model import AttemptRef, Load, ProcessView
from depalma.protocol import (
    AskOutput,
    AskProcesses,
    CodeAcknowledged,
    CodeLog,
    Forget,
    FromAgent,
    Heartbeat,
    HeartbeatAnswer,
    Hello,
    Masters,
    Output,
    Processes,
    Refused,
    Reports,
    ReportsCommitted,
    Started,
    Welcome,
)
from depalma.state.commands import AckCode, FinishOutcome, FinishTasks, HostLost, HostRecovered, HostUp, StartTasks

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
#: After an agent gave waiting tasks back it gets none ahead for so long.
NO_AHEAD_S = 5.0


class _Goodbye(Exception):
    """The agent is not admitted; the frame says why."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class Sessions:
    """All agent connections of this master; only a leader has any."""

    def __init__(self, context: Context, leases: Leases) -> None:
        self._context = context
        self._leases = leases
        self.orders = Orders(context)
        self.by_host: dict[str, AgentSession] = {}
        self._beats: list[tuple[AgentSession, Heartbeat]] = []
        self._beat_task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_room: Callable[[], None] = lambda: None  #: called when a host may take work that could not before

    # ------------------------------------------------------------ what the API asks

    def load_of(self, host: str) -> Load:
        """Returns the last load that the host told; zeros if it is not connected."""
        session = self.by_host.get(host)
        return session.load if session is not None else Load()

    def last_seen_s(self, host: str) -> float | None:
        """Returns for how long the host has been silent; None if this leader never heard it."""
        return self._leases.last_seen_s(host, self._context.clock())

    async def ask_processes(self, job: int | None, timeout_s: float) -> tuple[list[ProcessView], list[str]]:
        """Returns the processes on all connected hosts, and the hosts that did not answer in time."""
        hosts = list(self.by_host.values())
        answers = await asyncio.gather(
            *(self._ask(session, lambda number: AskProcesses(number, job), timeout_s) for session in hosts)
        )
        found: list[ProcessView] = []
        missing = []
        for session, answer in zip(hosts, answers, strict=True):
            if isinstance(answer, Processes):
                found.extend(answer.processes)
            else:
                missing.append(session.host)
        return found, missing

    async def ask_output(
        self, host: str, ref: AttemptRef, stream: str, offset: int, limit_bytes: int, timeout_s: float
    ) -> Output | None:
        """Returns a piece of an attempt's output, or None if its host is not there or does not answer."""
        session = self.by_host.get(host)
        if session is None:
            return None
        answer = await self._ask(
            session, lambda number: AskOutput(number, *ref, stream, offset, limit_bytes), timeout_s
        )
        return answer if isinstance(answer, Output) else None

    async def _ask(
        self, session: AgentSession, question: Callable[[int], AskProcesses | AskOutput], timeout_s: float
    ) -> Processes | Output | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await session.ask(question)
        except (TimeoutError, ConnectionError):
            return None

    async def gone(self, host: str, incarnation: str, reason: str) -> None:
        """Records that a supervisor killed everything of a dead agent: its work moves at once, no lease to wait for."""
        try:
            await self._context.execute(HostLost(host, incarnation, reason, self._context.wall()))
        except Rejected as refusal:
            log.info("host %s, incarnation %s is gone already: %s", host, incarnation, refusal)

    # ------------------------------------------------------------ a connection

    async def serve(self, websocket: web.WebSocketResponse, host: str) -> None:
        """Runs one agent's connection to its end."""
        try:
            hello = await self._hello(websocket, host)
            session = await self._admit(hello, websocket)
        except _Goodbye as goodbye:
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
            if self.by_host.get(host) is session:
                del self.by_host[host]
            log.info("agent of host %s disconnected", host)

    async def _hello(self, websocket: web.WebSocketResponse, host: str) -> Hello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                message = await websocket.receive()
            frame = protocol.decode_from_agent(message.data) if message.type is WSMsgType.BINARY else None
        except TimeoutError:
            raise _Goodbye(Refused(f"no hello within {HELLO_TIMEOUT_S} s")) from None
        except msgspec.MsgspecError as error:
            raise _Goodbye(Refused(f"the hello cannot be read: {error}", stop=True)) from error
        if not isinstance(frame, Hello):
            raise _Goodbye(Refused("the first frame must be a hello"))
        if frame.protocol != protocol.PROTOCOL_VERSION:
            wanted = protocol.PROTOCOL_VERSION
            raise _Goodbye(Refused(f"protocol {frame.protocol} given; this master speaks {wanted}", stop=True))
        if frame.host != host:
            raise _Goodbye(Refused(f"the hello names host {frame.host!r}, the request {host!r}", stop=True))
        return frame

    async def _admit(self, hello: Hello, websocket: web.WebSocketResponse) -> AgentSession:
        await self._take_up(hello)
        if not self._context.leading:
            raise _Goodbye(Refused("this master does not lead any more"))
        session = AgentSession(hello.host, hello.incarnation, hello.facts, websocket)
        settings = self._context.config.settings
        lease_s = self._leases.lease_of(self._context.state.hosts[hello.host].facts)
        session.send(
            Welcome(
                self._context.term,
                self._context.master_id,
                lease_s,
                min(settings.lease_times.renew_s, lease_s / RENEWALS),
                tuple(urls(self._context.state, self._context.config).values()),
            )
        )
        # No await between here and the end: commits that come later find the session, earlier ones are in the state.
        earlier = self.by_host.get(hello.host)
        if earlier is not None:
            earlier.close()
        self.by_host[hello.host] = session
        self._leases.heard(hello.host, self._context.clock())
        self._reconcile(session, hello)
        log.info("agent of host %s connected (incarnation %s)", hello.host, hello.incarnation)
        self.on_room()
        return session

    async def _take_up(self, hello: Hello) -> None:
        """Brings the state's view of the host up to this incarnation, or refuses it."""
        context = self._context
        host = context.state.hosts.get(hello.host)
        if host is None:
            if any(listed.name == hello.host for listed in context.config.hosts):
                raise _Goodbye(Refused("the hosts of the cluster file are not recorded yet"))  # first moments
            known = f"host {hello.host!r} is not in the cluster; add it to the cluster file"
            raise _Goodbye(Refused(known, stop=True))
        current = self.by_host.get(hello.host)
        if current is not None and current.incarnation != hello.incarnation:
            silent = self._leases.silent_s(hello.host, context.clock())
            if silent < context.config.settings.lease_s:
                raise _Goodbye(Refused(f"another agent of host {hello.host!r} is connected"))
        try:
            if host.incarnation != hello.incarnation or host.state in ("lost", "down"):
                # What a lease is must not depend on the cluster file of whoever leads when it is over.
                facts = msgspec.structs.replace(hello.facts, lease_s=context.config.settings.lease_s)
                up = HostUp(hello.host, hello.incarnation, facts, context.wall(), hello.code_index)
                await context.execute(up)
            elif host.state == "suspect":
                await context.execute(HostRecovered(hello.host, hello.incarnation, context.wall()))
            else:
                # A welcome begins a lease, so only one who leads for certain may say it: see heartbeats.
                await context.barrier()
        except Rejected as refusal:
            raise _Goodbye(Refused(str(refusal), restart_incarnation=True)) from refusal
        except (NotLeader, OutcomeUnknown) as error:
            raise _Goodbye(Refused(f"this master could not record the host: {error}")) from error

    def _reconcile(self, session: AgentSession, hello: Hello) -> None:
        """Makes agent and state agree: what never arrived is sent again, what is no longer the host's is ended."""
        state = self._context.state
        counted = set(state.hosts[session.host].attempts)
        running, ended = set(hello.running), set(hello.unreported)
        stray = running - counted
        if stray:
            session.send(Forget(self.orders.next_order(), self._context.term, tuple(sorted(stray))))
        self._spawn(self.orders.assign(session, sorted(counted - running - ended)))
        doomed = [ref for ref in counted if state.jobs[ref[0]].cancelled]
        self.orders.kill(session, sorted(doomed), outcome="cancelled", reason="job cancelled")
        session.code_sent = hello.code_index
        self.send_code(session)

    def tell_masters(self) -> None:
        """Tells the agents which masters there are now, so that they find the next leader."""
        named = tuple(urls(self._context.state, self._context.config).values())
        for session in self.by_host.values():
            session.send(Masters(named))

    def send_code(self, session: AgentSession) -> None:
        """Sends the entries of the code log that this connection has not carried yet."""
        entries = self._context.state.code[session.code_sent :]
        if entries:
            session.code_sent = entries[-1].index
            session.send(CodeLog(self.orders.next_order(), self._context.term, tuple(entries)))

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
            case Processes() | Output():
                session.answered(frame)
            case Hello():
                log.warning("host %s sent a second hello; closing", session.host)
                session.close()

    async def _record(self, session: AgentSession, frame: Reports) -> None:
        context = self._context
        context.rates.note_reports(frame.reports)
        if any(report.outcome == "returned" for report in frame.reports):
            session.no_ahead_until = context.clock() + NO_AHEAD_S
        command = FinishTasks(session.host, session.incarnation, frame.reports, context.wall())
        outcome = await self._propose(session, command)
        if isinstance(outcome, FinishOutcome):
            session.send(ReportsCommitted((*outcome.recorded, *outcome.stale)))

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
                    if self._context.state.hosts[session.host].state == "suspect":
                        # It was frozen for less than its lease and kept its connection: no hello says it is back.
                        back = HostRecovered(session.host, session.incarnation, self._context.wall())
                        self._spawn(self._propose(session, back))
        finally:
            self._beat_task = None

    def _code_acknowledged(self, session: AgentSession, frame: CodeAcknowledged) -> None:
        key = self._context.secrets.agent_token.encode()
        said = f"{session.host}\0{frame.index}\0{frame.tree_digest}".encode()
        if not hmac.compare_digest(hmac.new(key, said, hashlib.sha256).hexdigest(), frame.signature):
            log.warning("host %s acknowledged code %d with a wrong signature", session.host, frame.index)
            return
        command = AckCode(
            session.host,
            session.incarnation,
            frame.index,
            frame.tree_digest,
            frame.signature,
            self._context.wall(),
        )
        self._spawn(self._propose(session, command))

    async def _propose(
        self, session: AgentSession, command: FinishTasks | StartTasks | AckCode | HostRecovered
    ) -> object:
        """Proposes what an agent said; if it cannot be recorded the agent is made to connect and say it again."""
        try:
            return (await self._context.execute(command)).value
        except (NotLeader, OutcomeUnknown) as error:
            log.info("what host %s said is not recorded: %s", session.host, error)
            session.close()
        except Rejected as refusal:
            log.warning("what host %s said was refused: %s", session.host, refusal)
        return None

    # ------------------------------------------------------------ the reign

    def close_all(self) -> None:
        """Ends every connection: the agents look for the new leader."""
        for session in self.by_host.values():
            session.close()
        self.by_host.clear()

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

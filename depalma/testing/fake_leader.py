"""A master as an agent sees one, and real agent processes to put before it.

The fake speaks the real protocol over real sockets and decides nothing: a test says what it sends, when it is silent,
and what it commits. For tests and benchmarks of the agent alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from depalma import protocol as wire
from depalma.agent import proctree
from depalma.agent.execution import NO_SLOT
from depalma.model import AttemptRef, JobSpec, LoadHistory, Report
from depalma.ownership import OwnerPolicy

TOKEN = "t" * 40
_WAIT_S = 30.0


async def wait_until(look: Callable[[], Any], what: str, *, for_s: float = _WAIT_S) -> Any:
    """Returns the first true value of `look`. Errors: AssertionError that says what was seen last."""
    end = time.monotonic() + for_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"after {for_s} s there is no {what}; last seen: {seen!r}")
        await asyncio.sleep(0.005)


def ref_of(report: Report) -> AttemptRef:
    """Returns which attempt a report is about."""
    return report.job, report.task, report.attempt


class FakeLeader:
    """One fake master. Use as an async context manager; `url` is where it is.

    Its lease is longer than anything waits here: no process loses it because the machine let it stand still, and what
    ends within the deadlines of `wait_until` has not ended by the lease. Who tests the lease gives a shorter one.
    """

    def __init__(self, *, term: int = 1, lease_s: float = 60.0, heartbeat_s: float = 0.1) -> None:
        self.term = term
        self.lease_s = lease_s
        self.heartbeat_s = heartbeat_s
        self.url = ""
        self.masters: list[str] = []  #: what its welcome names; itself if empty
        self.leads = True
        self.leader_url = ""  #: what it answers with 421 when it does not lead
        self.answers = True  #: heartbeats are answered
        self.commits = True  #: reports are committed as they come
        self.gives_again = True  #: what no slot became free for comes again, as masters do, instead of being reported
        self.owner_policy = OwnerPolicy()
        self.owner: list[wire.OwnerNews] = []
        self.suspended: tuple[int, ...] = ()  #: jobs that stand still; told first on every connection, as masters do
        self.refusal: wire.Refused | None = None
        self.hellos: list[wire.Hello] = []
        self.reports: dict[AttemptRef, Report] = {}
        self.report_frames: list[wire.Reports] = []
        self.started: dict[AttemptRef, float] = {}
        self.beats: list[wire.Heartbeat] = []
        self.answers_to: dict[int, wire.Answer] = {}
        self.visits: list[wire.FromVisit] = []
        self.acknowledged: list[wire.CodeAcknowledged] = []
        self.problems: list[wire.CodeProblem] = []
        self.gone: list[dict[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.refused_blobs = 0  #: requests for blobs that are not there
        self.cut_after_bytes = 0  #: answers with a blob break off at this place of it; 0 = they do not
        self.ranges: list[str] = []  #: what was asked for of blobs; `check` when doubts came with it
        self.asked = 0  #: requests for a connection
        self._socket: web.WebSocketResponse | None = None
        self._orders = itertools.count(1)
        self._requests = itertools.count(1)
        self._told: set[int] = set()
        self._specs: dict[int, wire.JobTemplate] = {}
        self._assigned: dict[AttemptRef, wire.Assignment] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeLeader:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/agent", self._agent)
        app.router.add_post("/v1/agent/gone", self._gone)
        app.router.add_get("/v1/blobs/{digest}", self._get_blob)
        app.router.add_put("/v1/blobs/{digest}", self._put_blob)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()
        if self._runner is not None:
            await self._runner.cleanup()

    # ------------------------------------------------------------ what a test says

    @property
    def connected(self) -> bool:
        """Returns whether the agent that said hello last is connected and welcomed."""
        return self._socket is not None and not self._socket.closed

    async def drop(self) -> None:
        """Closes the connection."""
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    async def send(self, frame: wire.ToAgent) -> None:
        """Sends any frame."""
        assert self._socket is not None, "no agent is connected"
        await self._socket.send_bytes(wire.encode(frame))

    async def renew(self) -> None:
        """Makes the agent begin anew, with nothing running, and forgets what was seen of it."""
        before = self.hellos[-1].incarnation
        self.suspended = ()
        self.refusal = wire.Refused("the next test begins", stop=True, restart_incarnation=True)
        await self.drop()
        await wait_until(lambda: self.connected and self.hellos[-1].incarnation != before, "new incarnation")
        for seen in (self.reports, self.started, self.answers_to, self.blobs, self._assigned):
            seen.clear()
        for list_seen in (self.report_frames, self.beats, self.acknowledged, self.problems, self.ranges, self.gone):
            list_seen.clear()
        self.answers = self.commits = self.gives_again = True
        self.refused_blobs = self.cut_after_bytes = 0

    def job(self, number: int, spec: JobSpec, *, code_index: int = 0, tree_digest: str = "") -> None:
        """Makes a job known; its template goes with its first task."""
        self._specs[number] = wire.JobTemplate(number, spec, code_index, tree_digest)

    async def assign(self, *tasks: wire.Assignment, term: int | None = None) -> None:
        """Sends tasks of known jobs."""
        self._assigned.update({(task.job, task.task, task.attempt): task for task in tasks})
        fresh = {task.job for task in tasks} - self._told
        self._told |= fresh
        templates = tuple(self._specs[job] for job in sorted(fresh))
        await self.send(wire.Assign(next(self._orders), self.term if term is None else term, templates, tasks))

    async def run(
        self, spec: JobSpec, *, job: int = 1, argument: bytes | None = None, for_s: float = _WAIT_S
    ) -> Report:
        """Runs one task and returns its report."""
        self.job(job, spec)
        await self.assign(wire.Assignment(job, 0, 1, 1, argument))
        return await self.report((job, 0, 1), for_s=for_s)

    async def report(self, ref: AttemptRef, *, for_s: float = _WAIT_S) -> Report:
        """Waits for the report of an attempt."""
        report: Report = await wait_until(lambda: self.reports.get(ref), f"report of {ref}", for_s=for_s)
        return report

    async def kill(self, refs: Iterable[AttemptRef], outcome: str = "cancelled", reason: str = "asked to") -> None:
        """Orders attempts to be ended."""
        await self.send(wire.Kill(next(self._orders), self.term, tuple(refs), outcome, reason))

    async def forget(self, refs: Iterable[AttemptRef]) -> None:
        """Orders attempts to be forgotten."""
        await self.send(wire.Forget(next(self._orders), self.term, tuple(refs)))

    async def suspend(self, *jobs: int) -> None:
        """Says which jobs are suspended."""
        self.suspended = jobs
        await self.send(wire.Suspended(next(self._orders), self.term, jobs))

    async def code(self, *entries: Any, again: bool = False) -> None:
        """Sends entries of the code log."""
        await self.send(wire.CodeLog(next(self._orders), self.term, entries, again))

    async def ask_output(self, ref: AttemptRef, stream: str = "stdout", offset: int = 0) -> wire.Output:
        """Asks for output and returns the answer."""
        number = next(self._requests)
        await self.send(wire.AskOutput(number, *ref, stream, offset, 1 << 20))
        answer = await wait_until(lambda: self.answers_to.get(number), "output")
        assert isinstance(answer, wire.Output)
        return answer

    async def ask_processes(self, job: int | None = None) -> wire.Processes:
        """Asks for processes and returns the answer."""
        number = next(self._requests)
        await self.send(wire.AskProcesses(number, job))
        answer = await wait_until(lambda: self.answers_to.get(number), "processes")
        assert isinstance(answer, wire.Processes)
        return answer

    async def ask_load(self, last_s: float) -> LoadHistory:
        """Asks for the load of the last seconds and returns the answer."""
        number = next(self._requests)
        await self.send(wire.AskLoadHistory(number, last_s))
        answer = await wait_until(lambda: self.answers_to.get(number), "history")
        assert isinstance(answer, wire.LoadTold)
        return answer.history

    def put(self, data: bytes) -> str:
        """Stores a blob and returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    # ------------------------------------------------------------ what an agent sees

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if not self.leads:
            return web.json_response(
                {"title": "not the leader"}, status=421, headers={"Depalma-Leader": self.leader_url}
            )
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"title": "token"}, status=401)
        socket = web.WebSocketResponse(max_msg_size=wire.MAX_FRAME_BYTES, compress=False, timeout=0.2)
        await socket.prepare(request)
        hello = wire.decode_from_agent((await socket.receive()).data)
        assert isinstance(hello, wire.Hello)
        self._socket = None
        self.hellos.append(hello)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            await socket.send_bytes(wire.encode(refusal))
            await socket.close()
            return socket
        self._told.clear()
        await socket.send_bytes(wire.encode(self._welcome()))
        await socket.send_bytes(wire.encode(wire.Suspended(next(self._orders), self.term, self.suspended)))
        self._socket = socket
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await self._frame(socket, wire.decode_from_agent(message.data))
        return socket

    def _welcome(self) -> wire.Welcome:
        masters = tuple(self.masters or [self.url])
        known = self.owner[-1] if self.owner else wire.OwnerNews()
        return wire.Welcome(
            self.term, "fake", self.lease_s, self.heartbeat_s, masters,
            takes_problems=True, owner_policy=self.owner_policy, owner_known=known,
        )  # fmt: skip

    async def set_owner(self, **fields: Any) -> None:
        """Says that the owner allows something else."""
        self.owner_policy = OwnerPolicy(**fields)
        await self.send(self._welcome())

    async def _frame(self, socket: web.WebSocketResponse, frame: wire.FromAgent) -> None:
        match frame:
            case wire.Heartbeat():
                self.beats.append(frame)
                if self.answers:
                    answer = wire.HeartbeatAnswer(frame.sequence, frame.sent_s, self.term)
                    await socket.send_bytes(wire.encode(answer))
            case wire.Reports():
                again = [self._assigned[ref_of(report)] for report in frame.reports if self._comes_again(report)]
                reports = tuple(report for report in frame.reports if not self._comes_again(report))
                if reports:
                    self.report_frames.append(wire.Reports(reports))
                self.reports.update({ref_of(report): report for report in reports})
                if self.commits:
                    await socket.send_bytes(wire.encode(wire.ReportsCommitted(tuple(map(ref_of, frame.reports)))))
                if again:
                    await self.assign(*again)
            case wire.Started():
                self.started.update({(job, task, attempt): at for job, task, attempt, at in frame.tasks})
            case wire.CodeAcknowledged():
                self.acknowledged.append(frame)
            case wire.OwnerNews():
                self.owner.append(frame)
            case wire.CodeProblem():
                self.problems.append(frame)
            case wire.Processes() | wire.LoadTold() | wire.Output():
                self.answers_to[frame.request] = frame
            case wire.InVisit() | wire.VisitOver():
                self.visits.append(frame)
            case _:
                raise AssertionError(f"unexpected {frame}")

    def _comes_again(self, report: Report) -> bool:
        wanted = self.gives_again and self.commits  # until it knows that this is committed, the agent refuses it
        return wanted and report.error == NO_SLOT and ref_of(report) in self._assigned

    async def _gone(self, request: web.Request) -> web.Response:
        if not self.leads:
            return web.Response(status=421, headers={"Depalma-Leader": self.leader_url})
        self.gone.append(await request.json())
        return web.Response(status=204)

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        data = self.blobs.get(request.match_info["digest"])
        self.refused_blobs += data is None
        if data is None:
            return web.Response(status=404)
        begin = request.http_range.start or 0
        self.ranges.append(f"{begin}-" + ("check" if "check" in request.query else ""))
        answer = web.StreamResponse(status=206 if begin else 200, headers={"Content-Length": str(len(data) - begin)})
        await answer.prepare(request)
        cut = self.cut_after_bytes
        await answer.write(data[begin:cut] if cut else data[begin:])
        if cut and request.transport is not None:
            request.transport.abort()
        return answer

    async def _put_blob(self, request: web.Request) -> web.Response:
        data = await request.read()
        if hashlib.sha256(data).hexdigest() != request.match_info["digest"]:
            return web.Response(status=400)
        self.put(data)
        return web.Response(status=201)


class AgentProcess:
    """A real agent process before given masters. Its log is in `folder/agent.log`."""

    def __init__(self, folder: Path, masters: list[str], *, slots: int = 2, **settings: object) -> None:
        self.folder = folder
        self.root = folder / "agent"
        self.log = folder / "agent.log"
        secrets = folder / "secrets"
        secrets.mkdir(parents=True, exist_ok=True)
        (secrets / "agent.token").write_text(TOKEN)
        ports = [int(url.rsplit(":", 1)[1]) for url in masters]
        lines = ["masters:"]
        lines += [
            f"  - {{id: m{p}, host: 127.0.0.1, port: {p}, raft_port: {p % 60000 + 1}, dir: /nowhere}}" for p in ports
        ]
        lines += [f"hosts:\n  - {{name: h1, slots: {slots}, dir: '{self.root}'}}", f"secrets: '{secrets}'"]
        lines += ["settings:", *[f"  {name}: {value}" for name, value in {"heartbeat_s": 0.1, **settings}.items()]]
        self.config = folder / "cluster.yaml"
        self.config.write_text("\n".join(lines))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the agent."""
        argv = [sys.executable, "-m", "depalma.remote", "--config", str(self.config), "--name", "h1"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self) -> int:
        """Returns its process id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Signals the agent alone."""
        os.kill(self.pid, number)

    def monitor_pid(self) -> int:
        """Returns the process id of its monitor, 0 if there is none."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):  # it has ended this moment
                if b"monitor.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return 0

    def below(self) -> list[str]:
        """Returns the command lines of what lives below it."""
        words = (proctree.read(f"/proc/{pid}/cmdline") for pid, _ in proctree.descendants(self.pid))
        return [line.removesuffix(b"\0").replace(b"\0", b" ").decode(errors="replace") for line in words if line]

    async def exit_code(self, *, for_s: float = _WAIT_S) -> int:
        """Waits for the agent to end and returns its exit code."""
        process = self.process
        assert process is not None
        await wait_until(lambda: process.poll() is not None, "end of the agent", for_s=for_s)
        return int(process.returncode)

    async def stop(self) -> None:
        """Ends it in any case, its monitor too."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                await self.exit_code()
            except AssertionError:
                self.process.kill()
                self.process.wait()
        self.process = None

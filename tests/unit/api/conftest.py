"""A whole HTTP interface over a state that applies commands at once, on a port of its own.

Real are: the state machine, the blobs, the sessions of agents, aiohttp. Only the log is left out: one process, no disk.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
import pytest
from aiohttp import web

from depalma import protocol
from depalma.api.app import make_app
from depalma.api.connection import Connections
from depalma.blobs import Blobs, BlobStore
from depalma.config import ClusterConfig, MasterConfig, Secrets, Settings
from depalma.consensus import Member, NotLeader, recovery
from depalma.consensus.snapshot_format import Header
from depalma.errors import Rejected
from depalma.jobarchive.keeper import JobArchive, Limits
from depalma.leader.hub import CODE, HOSTS, LEADER, Hub, Key
from depalma.leader.leases import Leases
from depalma.leader.rates import Rates
from depalma.leader.rooms import Rooms
from depalma.leader.sessions import Sessions
from depalma.lease import lease_times
from depalma.loopwatch import LoopWatch
from depalma.model import HostFacts, JobSpec, LoadHistory, Report
from depalma.protocol import AskLoadHistory, AskOutput, AskProcesses, Hello, LoadTold, Output, Processes
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import (
    AddHost,
    AnyCommand,
    Applied,
    AssignTasks,
    FinishTasks,
    HostUp,
    StartTasks,
    SubmitJob,
    encode,
)
from depalma.state.commands import Rejected as RefusedCommand
from depalma.state.machine import Machine

SECRETS = Secrets(token="u" * 40, agent_token="a" * 40, raft_secret=b"r" * 40, folder=Path("secrets"))
FACTS = HostFacts(slots=4, cpus=4, memory_bytes=2**33, gpus=0, version="0", python="3.11", address="127.0.0.1")


@dataclass
class LoneReplica:
    """The consensus of one: what is proposed is committed."""

    is_leader: bool = True
    term: int = 1
    leader_id: str | None = "m1"
    commit_index: int = 0
    applied_index: int = 0
    has_joined: bool = True
    directory: Path = Path()
    machine: Machine | None = None
    #: what the members were to become, one after the other
    changes: list[tuple[Member, ...]] = field(default_factory=list)
    fails: Exception | None = None

    async def change_members(self, members: tuple[Member, ...], command: bytes, *, timeout_s: float) -> object:
        assert self.machine is not None
        self.changes.append(members)
        self.applied_index += 1
        return self.machine.apply(command, self.applied_index)

    async def hand_over(self, target: str | None = None) -> str:
        if self.fails is not None:
            raise self.fails
        self.is_leader, self.leader_id = False, target or self.changes[-1][-1].id
        assert self.leader_id is not None
        return self.leader_id

    async def snapshot(self) -> Path:
        assert self.machine is not None
        path = self.directory / f"{uuid4().hex}.snap"
        recovery.write_file(path, Header(7, self.term, self.applied_index, "lab"), self.machine.snapshot())
        return path

    def contacts(self) -> dict[str, float | None]:
        return {}

    def refused_connections(self) -> dict[str, int]:
        return {"plain_text": 2, "expired": 0}

    def certificate_seconds_left(self) -> float:
        return 86_400.4


class OneMaster:
    """Implements the services of the API, and the context of the agents' sessions."""

    def __init__(self, directory: Path, port: int, settings: Settings, others: tuple[MasterConfig, ...]) -> None:
        self.master_id = "m1"
        own = MasterConfig(id="m1", host="127.0.0.1", port=port, dir=str(directory))
        self.config = ClusterConfig(masters=(own, *others), settings=settings)
        self.secrets = SECRETS
        self.machine = Machine()
        self.replica = LoneReplica(directory=directory, machine=self.machine)
        self.hub = Hub()
        self.rates = Rates(time.monotonic)
        self.loopwatch = LoopWatch()
        self.blobs = Blobs.for_master(self.config, SECRETS, "m1", BlobStore(directory / "blobs"))
        limits = Limits(settings.archive_days, settings.archive_bytes)
        self.archive = JobArchive("m1", directory, limits, lambda: self.state, self.blobs, lambda jobs: None)
        self.clock: Callable[[], float] = time.monotonic
        self.wall: Callable[[], float] = time.time
        self.spent: Callable[[], float] = time.thread_time
        self.sessions = Sessions(self, Leases(lease_times(10, 0.25)))
        self.barriers = 0
        self.trust = None
        self.rooms = Rooms(self, self.sessions).now

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    @property
    def term(self) -> int:
        return self.replica.term

    @property
    def leading(self) -> bool:
        return self.replica.is_leader

    def refused_requests(self) -> dict[str, int]:
        return {"plain_text": 3}

    async def execute(self, command: AnyCommand) -> Applied:
        if not self.replica.is_leader:
            raise NotLeader(self.replica.leader_id)
        await asyncio.sleep(0)
        return self.apply(command)

    async def barrier(self) -> None:
        if not self.replica.is_leader:
            raise NotLeader(self.replica.leader_id)
        self.barriers += 1

    def apply(self, command: AnyCommand) -> Applied:
        self.replica.applied_index += 1
        self.replica.commit_index += 1
        outcome = self.machine.apply(encode(command), self.replica.applied_index)
        changes = self.machine.drain_changes()
        keys: list[Key] = [("job", job) for job in changes.jobs]
        self.archive.take(changes.forgotten)
        self.hub.publish([*keys, *([HOSTS] if changes.hosts else []), *([CODE] if changes.code else [])])
        if isinstance(outcome, RefusedCommand):
            raise Rejected(outcome.message, code=outcome.code)
        return outcome

    def stop_leading(self, leader: str | None = None) -> None:
        self.replica.is_leader, self.replica.leader_id = False, leader
        self.hub.publish([LEADER])


@dataclass
class Bench:
    """What a test works with: the master, a client of it, and short ways to make things happen."""

    master: OneMaster
    http: aiohttp.ClientSession
    url: str
    app: web.Application
    _attempts: dict[tuple[int, int], int] = field(default_factory=dict)

    async def get(self, path: str, status: int = 200, **kwargs: Any) -> Any:
        return await self.call("GET", path, status, **kwargs)

    async def post(self, path: str, body: Any = None, status: int = 200, **kwargs: Any) -> Any:
        return await self.call("POST", path, status, json=body, **kwargs)

    async def call(self, method: str, path: str, status: int, **kwargs: Any) -> Any:
        async with self.http.request(method, self.url + path, **kwargs) as answer:
            data = await answer.read()
            assert answer.status == status, (answer.status, data)
            if status >= 400:
                assert answer.content_type == "application/problem+json"
            return msgspec.json.decode(data) if data else None

    def submit(self, **spec: Any) -> int:
        job = JobSpec(**{"kind": "command", "argv": ("true",), **spec})
        value = self.master.apply(SubmitJob("", job, time.time())).value
        assert isinstance(value, int)
        return value

    def host_up(self, name: str = "h1", groups: tuple[str, ...] = ()) -> None:
        self.master.apply(AddHost("", name, groups, {}, 0, 4, 0, time.time()))
        self.master.apply(HostUp(name, f"{name}-1", FACTS, time.time()))

    def assign(self, job: int, *tasks: int, host: str = "h1") -> None:
        refs = []
        for task in tasks:
            number = self._attempts[job, task] = self._attempts.get((job, task), 0) + 1
            refs.append((job, task, number))
        self.master.apply(AssignTasks(1, host, f"{host}-1", tuple(refs), time.time()))

    def start(self, job: int, task: int, host: str = "h1") -> None:
        ref = (job, task, self._attempts[job, task], time.time())
        self.master.apply(StartTasks(host, f"{host}-1", (ref,), time.time()))

    def finish(self, job: int, *tasks: int, host: str = "h1", outcome: str = "succeeded", **report: Any) -> None:
        reports = tuple(Report(job, task, self._attempts[job, task], outcome, **report) for task in tasks)
        self.master.apply(FinishTasks(host, f"{host}-1", reports, time.time()))


@dataclass
class Agent:
    """A connected agent that answers questions about processes and output."""

    websocket: aiohttp.ClientWebSocketResponse
    output: bytes = b""
    ended: bool = False
    error: str = ""
    processes: tuple[Any, ...] = ()
    history: LoadHistory | None = None
    asked: list[AskOutput | AskLoadHistory] = field(default_factory=list)
    silent: bool = False

    async def serve(self) -> None:
        async for message in self.websocket:
            frame = protocol.decode_to_agent(message.data)
            if self.silent:
                continue
            if isinstance(frame, AskProcesses):
                await self._say(Processes(frame.request, self.processes))
            elif isinstance(frame, AskLoadHistory):
                self.asked.append(frame)
                assert self.history is not None
                await self._say(LoadTold(frame.request, self.history))
            elif isinstance(frame, AskOutput):
                self.asked.append(frame)
                data = self.output[frame.offset : frame.offset + frame.limit_bytes]
                await self._say(Output(frame.request, data, len(self.output), self.ended, self.error))

    async def _say(self, frame: Any) -> None:
        await self.websocket.send_bytes(protocol.encode(frame))


@pytest.fixture
def settings() -> Settings:
    return Settings(max_body_bytes=256 * 1024, max_blob_bytes=4 * 1024 * 1024)


@pytest.fixture
def others() -> tuple[MasterConfig, ...]:
    """Further masters in the cluster file; a module that wants some defines its own."""
    return ()


@pytest.fixture
async def bench(tmp_path: Path, settings: Settings, others: tuple[MasterConfig, ...]) -> AsyncIterator[Bench]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    master = OneMaster(tmp_path, port, settings, others)
    app = make_app(master)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None
    site = await asyncio.get_running_loop().create_server(Connections(runner.server), sock=listener)
    headers = {"Authorization": f"Bearer {SECRETS.token}"}
    archiving = asyncio.create_task(master.archive.run())
    async with aiohttp.ClientSession(headers=headers) as http:
        yield Bench(master, http, f"http://127.0.0.1:{port}", app)
    archiving.cancel()
    site.close()
    await runner.cleanup()
    await master.archive.close()
    await master.blobs.close()


@asynccontextmanager
async def connect(bench: Bench, host: str = "h1", *, tells_history: bool = True) -> AsyncIterator[Agent]:
    """An agent that the master has welcomed."""
    headers = {"Authorization": f"Bearer {SECRETS.agent_token}", protocol.HOST_HEADER: host}
    async with bench.http.ws_connect(f"{bench.url}/v1/agent", headers=headers) as websocket:
        hello = Hello(protocol.PROTOCOL_VERSION, host, f"{host}-1", FACTS, 0, (), (), tells_history)
        await websocket.send_bytes(protocol.encode(hello))
        welcome = protocol.decode_to_agent((await websocket.receive()).data)
        assert isinstance(welcome, protocol.Welcome), welcome
        agent = Agent(websocket)
        serving = asyncio.create_task(agent.serve())
        yield agent
        serving.cancel()


@pytest.fixture(name="connect")
def connect_fixture() -> Callable[..., Any]:
    return connect


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts are asked for so long that it does not matter when this process stands still."""
    monkeypatch.setattr("depalma.api.hosts.ASK_S", 30.0)


@pytest.fixture
async def agent(bench: Bench) -> AsyncIterator[Agent]:
    bench.host_up()
    async with connect(bench) as agent:
        yield agent


async def wait_until(look: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Returns the first true value of `look()`. Fails with the last one it saw."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"last seen: {seen!r}"
        await asyncio.sleep(0.005)
    return seen


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., Any]:
    return wait_until

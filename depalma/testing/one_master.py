"""A real master in this process, and agents that speak the protocol by hand: for tests of the leader's side.

The master is one replica with a real disk and real sockets; what an agent says, and when, is the test's.
"""

from __future__ import annotations

import asyncio
import secrets as random_secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp

from depalma import protocol
from depalma.config import ClusterConfig, HostConfig, MasterConfig, Settings, load_secrets
from depalma.local.folder import free_ports
from depalma.master import Master
from depalma.model import AttemptRef, HostFacts, JobSpec, Load, Report
from depalma.protocol import FromAgent, Heartbeat, Hello, ToAgent
from depalma.state.commands import SubmitJob
from depalma.testing.certificates import throwaway_secrets

F = TypeVar("F")
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=1, gpus=0, version="0.1.0", python="3.11", address="127.0.0.1")
COMMAND = JobSpec(kind="command", argv=("true",))


def free_port() -> int:
    """Returns a port of loopback that nobody listens on, and that no outgoing connection takes meanwhile."""
    return free_ports(1)[0]


@asynccontextmanager
async def running_master(directory: Path, **settings: float) -> AsyncIterator[Master]:
    """A master that leads, with hosts h1 and h2 in its cluster file."""
    config = ClusterConfig(
        masters=(
            MasterConfig(id="m1", host="127.0.0.1", port=free_port(), raft_port=free_port(), dir=str(directory / "m1")),
        ),
        hosts=(HostConfig(name="h1"), HostConfig(name="h2")),
        settings=Settings(**settings),  # type: ignore[arg-type]
    )
    secrets = load_secrets(throwaway_secrets(directory / "secrets", ["m1"], cluster=config.cluster), "m1")
    master = Master(config, secrets, "m1")
    await master.start()
    try:
        await eventually(lambda: master.leading and "h2" in master.state.hosts)
        yield master
        assert not master.failed.done(), master.failed.result()
    finally:
        await master.stop()


async def eventually(ready: Callable[[], bool], timeout_s: float = 30) -> None:
    """Returns when `ready()`; fails with the deadline."""
    async with asyncio.timeout(timeout_s):
        while not ready():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


@dataclass
class Agent:
    """One connection; frames are kept until a test takes them."""

    websocket: aiohttp.ClientWebSocketResponse
    frames: list[ToAgent]

    async def say(self, frame: FromAgent) -> None:
        """Sends a frame."""
        await self.websocket.send_bytes(protocol.encode(frame))

    async def next(self, kind: type[F], timeout_s: float = 30) -> F:
        """Returns the next frame of a kind, passing over others but keeping them."""
        async with asyncio.timeout(timeout_s):
            while True:
                for position, frame in enumerate(self.frames):
                    if isinstance(frame, kind):
                        del self.frames[position]
                        return frame
                message = await self.websocket.receive()
                assert message.type is aiohttp.WSMsgType.BINARY, f"waiting for {kind.__name__}: {message}"
                self.frames.append(protocol.decode_to_agent(message.data))

    async def closed(self) -> bool:
        """Returns once the leader has closed the connection."""
        async with asyncio.timeout(30):
            while True:
                message = await self.websocket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return True
                self.frames.append(protocol.decode_to_agent(message.data))


@asynccontextmanager
async def agent(
    master: Master,
    *,
    host: str = "h1",
    incarnation: str = "one",
    running: tuple[AttemptRef, ...] = (),
    unreported: tuple[AttemptRef, ...] = (),
    version: int = protocol.PROTOCOL_VERSION,
    facts: HostFacts = FACTS,
    code_index: int = 0,
) -> AsyncIterator[Agent]:
    """An agent that has said hello."""
    headers = {"Authorization": f"Bearer {master.secrets.agent_token}", protocol.HOST_HEADER: host}
    url = master.config.url(master.config.masters[0]) + "/v1/agent"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers) as websocket:
        one = Agent(websocket, [])
        await one.say(Hello(version, host, incarnation, facts, code_index, running, unreported))
        yield one


async def submit(master: Master, spec: JobSpec = COMMAND) -> int:
    """Returns the id of a new job."""
    applied = await master.execute(SubmitJob(random_secrets.token_hex(8), spec, master.wall()))
    assert isinstance(applied.value, int)
    return applied.value


def succeeded(ref: AttemptRef) -> Report:
    """Returns the report of an attempt that ended well."""
    return Report(*ref, "succeeded", exit_code=0, started_at=1.0, finished_at=1.5)


async def beating_until(one: Agent, kind: type[F]) -> F:
    """Returns the next frame of a kind while sending heartbeats, as a live agent does."""
    waiting = asyncio.create_task(one.next(kind))
    sequence = 0
    while not waiting.done():
        sequence += 1
        await one.say(Heartbeat(sequence, 0.0, Load(), 1))
        await asyncio.wait({waiting}, timeout=0.05)
    return waiting.result()

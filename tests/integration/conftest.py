"""A real agent before a leader of the test's own: one a test (`leader`, `agent`), or one a file (`pair`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until


@asynccontextmanager
async def running(leader: FakeLeader, folder: Path, settings: dict[str, Any]) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(folder, [leader.url], **settings)
    process.start()
    try:
        await wait_until(lambda: leader.connected, "connection")
        yield process
    finally:
        await process.stop()


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    """Its `slots`, and settings of the cluster file; a file that wants others has a fixture of this name."""
    return {}


@pytest.fixture
async def leader() -> AsyncIterator[FakeLeader]:
    """A leader that does what the test says."""
    async with FakeLeader() as fake:
        yield fake


@pytest.fixture
async def agent(leader: FakeLeader, tmp_path: Path, agent_settings: dict[str, Any]) -> AsyncIterator[AgentProcess]:
    """An agent process that is connected to the leader. Its folder is `tmp_path`."""
    async with running(leader, tmp_path, agent_settings) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(
    tmp_path_factory: pytest.TempPathFactory, agent_settings: dict[str, Any]
) -> AsyncIterator[tuple[FakeLeader, AgentProcess]]:
    """One leader and one agent for all tests of a file: starting one takes longer than most of them."""
    async with FakeLeader() as fake, running(fake, tmp_path_factory.mktemp("agent"), agent_settings) as process:
        yield fake, process

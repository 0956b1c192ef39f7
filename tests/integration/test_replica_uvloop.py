"""Replicas run on uvloop too, which masters use if it is installed; its transports are not asyncio's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from depalma.testing.replicas import Replicas

uvloop = pytest.importorskip("uvloop")


def test_three_replicas_commit_and_fail_over_on_uvloop(tmp_path: Path) -> None:
    async def work() -> list[bytes]:
        async with Replicas(tmp_path) as cluster:
            await cluster.start()
            assert await cluster.propose(b"before") == 1
            await cluster.stop(cluster.leader_name())
            assert await cluster.propose(b"after") == 2
            await cluster.wait_for_agreement()
            return next(cluster.ledgers[name].entries for name in cluster.running)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == [b"before", b"after"]

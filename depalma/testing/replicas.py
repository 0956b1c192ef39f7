"""Real replicas on loopback and real disks, all in one process: for tests of what a simulation cannot show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from depalma.certificates import CertificateFiles
from depalma.consensus import Member, NotLeader, OutcomeUnknown, Replica, ReplicaSettings
from depalma.local.folder import free_ports
from depalma.testing.certificates import CLUSTER, throwaway_secrets
from depalma.testing.ledger import Ledger


async def wait_until(condition: Callable[[], object], *, within_s: float = 30.0, what: Callable[[], object]) -> None:
    """Return once the condition holds. Raises AssertionError with what was last seen if it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s; last seen: {what()}"
        await asyncio.sleep(0.01)


class Replicas:
    """Replicas m1, m2, … of a Ledger, each in its own folder below `directory`."""

    def __init__(self, directory: Path, *, size: int = 3, ports: list[int] | None = None, **settings: Any) -> None:
        self._directory = directory
        self._settings = settings
        ports = ports or free_ports(size)
        self.members = tuple(Member(id=f"m{i}", host="127.0.0.1", raft_port=port) for i, port in enumerate(ports, 1))
        self.secrets = throwaway_secrets(directory / "secrets", [member.id for member in self.members])
        self.running: dict[str, Replica] = {}
        self.ledgers: dict[str, Ledger] = {}
        #: why replicas stopped by themselves
        self.fatal: dict[str, BaseException] = {}

    def settings(self, name: str) -> ReplicaSettings:
        """The settings of one replica."""
        return ReplicaSettings(id=name, members=self.members, directory=self._directory / name, **self._settings)

    def certificates(self, name: str) -> CertificateFiles:
        """The certificates of one replica."""
        return CertificateFiles.of(self.secrets, CLUSTER, name)

    async def start(self, *names: str) -> None:
        """Start these replicas, or all."""
        for name in names or [member.id for member in self.members]:
            self.ledgers[name] = Ledger()
            replica = Replica(
                self.settings(name),
                self.ledgers[name],
                certificates=self.certificates(name),
                on_fatal=partial(self.fatal.__setitem__, name),
            )
            await replica.start()
            self.running[name] = replica

    async def stop(self, *names: str) -> None:
        """Stop these replicas, or all."""
        for name in names or list(self.running):
            await self.running.pop(name).stop()

    def leader(self) -> Replica | None:
        """The replica that leads in the highest term."""
        leading = [replica for replica in self.running.values() if replica.is_leader]
        return max(leading, key=lambda replica: replica.term, default=None)

    def leader_name(self) -> str:
        """Its name."""
        return next(name for name, replica in self.running.items() if replica is self.leader())

    async def wait_for_leader(self) -> Replica:
        """The leader, once there is one."""
        await wait_until(self.leader, what=self.describe)
        leader = self.leader()
        assert leader is not None
        return leader

    async def propose(self, command: bytes, *, within_s: float = 30.0) -> object:
        """Propose at whoever leads, until a proposal is acknowledged. It may then stand in the log twice."""
        deadline = time.monotonic() + within_s
        while True:
            leader = await self.wait_for_leader()
            try:
                return await leader.propose(command, timeout_s=2.0)
            except (NotLeader, OutcomeUnknown):
                assert time.monotonic() < deadline, self.describe()

    async def wait_for_agreement(self) -> None:
        """Return once all that run hold the same."""
        await wait_until(
            lambda: len({self.ledgers[name].state_hash() for name in self.running}) == 1, what=self.describe
        )

    def describe(self) -> str:
        """One line about every replica."""
        return "; ".join(
            f"{name}: term {r.term} leader {r.leader_id} applied {r.applied_index}" for name, r in self.running.items()
        )

    async def __aenter__(self) -> Replicas:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

#!/usr/bin/env python3
"""Makes the journal and snapshot of one replica, as this release writes them, to be kept as test data.

    python tests/data/make_consensus.py tests/data/consensus-N

Run it when a release changes how the log or the state is stored, before the change; later releases must read the
result (tests/unit/consensus/test_formats.py). Three replicas of the real state run in this process; one is cut off
while it leads, so that its journal holds voided entries too. Its folder is kept, with `expected.json` beside it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from depalma import items
from depalma.certificates import CertificateFiles
from depalma.consensus import Member, NotLeader, OutcomeUnknown, Replica, ReplicaSettings
from depalma.model import HostFacts, JobSpec, Payload, Report
from depalma.state import commands as c
from depalma.state.machine import Machine
from depalma.testing.certificates import CLUSTER, throwaway_secrets

KEPT = "m1"
FACTS = HostFacts(4, 4, 8 << 30, 1, "0.1.0", "3.11", "10.0.0.11")


class Cluster:
    """Three replicas on loopback."""

    def __init__(self, directory: Path) -> None:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.members = tuple(
            Member(id=f"m{n}", host="127.0.0.1", raft_port=s.getsockname()[1]) for n, s in enumerate(sockets, 1)
        )
        for held in sockets:
            held.close()
        self.directory = directory
        self.secrets = throwaway_secrets(directory / "secrets", [member.id for member in self.members])
        self.replicas: dict[str, Replica] = {}
        self.machines: dict[str, Machine] = {}

    async def start(self, *names: str) -> None:
        """Starts these."""
        for name in names:
            settings = ReplicaSettings(
                id=name,
                members=self.members,
                directory=self.directory / name,
                snapshot_every_entries=50,
                keep_entries=50,
                segment_bytes=4_000,
            )
            self.machines[name] = Machine()
            self.replicas[name] = Replica(
                settings,
                self.machines[name],
                certificates=CertificateFiles.of(self.secrets, CLUSTER, name),
                on_fatal=lambda error: sys.exit(str(error)),
            )
            await self.replicas[name].start()

    async def stop(self, *names: str) -> None:
        """Stops these."""
        for name in names:
            await self.replicas.pop(name).stop()

    async def leader(self, *wanted: str) -> Replica:
        """Returns the leader, which is one of `wanted`: another that is elected is stopped and started again."""
        while True:
            for name, replica in list(self.replicas.items()):
                if replica.is_leader and (not wanted or name in wanted):
                    return replica
                if replica.is_leader:
                    await self.stop(name)
                    await asyncio.sleep(1.0)
                    await self.start(name)
            await asyncio.sleep(0.05)

    async def do(self, command: c.AnyCommand) -> object:
        """Commits a command; the same request twice is answered once."""
        while True:
            try:
                outcome = await (await self.leader()).propose(c.encode(command))
            except (NotLeader, OutcomeUnknown):
                continue
            assert isinstance(outcome, c.Applied), outcome
            return outcome.value

    async def agree(self) -> None:
        """Returns when all that run hold the same."""

        def reached() -> set[tuple[str, int]]:
            return {(self.machines[name].state_hash, self.replicas[name].commit_index) for name in self.replicas}

        while len(reached()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def history(cluster: Cluster, at: float) -> None:
    """A bit of everything that the state can hold."""
    for name in ("h1", "h2", "h3"):
        host = c.AddHost(f"add-{name}-{at}", f"{name}-{at:g}", ("render",), {"os": "debian"}, 5, 4, 1, at)
        await cluster.do(host)
        await cluster.do(c.HostUp(host.name, f"{name}-life", FACTS, at + 1))
    await cluster.do(c.AddCode(f"code-{at}", "words", "module", "ab" * 32, 1000, "ada", at + 2))
    jobs = []
    for number in range(6):
        function = bool(number % 2)
        small, large = Payload(inline=items.pack([b"x"] * 8)), Payload(digest="cd" * 32, size_bytes=9000)
        spec = JobSpec(
            kind="function" if function else "command",
            name=f"job {number}",
            user="ada",
            argv=() if function else ("render", "{}"),
            function="words:count" if function else "",
            count=8,
            arguments=small if number < 4 else large,
            retries=1,
            open=number == 5,
            hold=number == 4,
            code_index=0,
            tags=("night",),
        )
        jobs.append(await cluster.do(c.SubmitJob(f"submit-{at}-{number}", spec, at + 3)))
    host = f"h1-{at:g}"
    for job in jobs[:4]:
        refs = tuple((job, task, 1) for task in range(4))
        await cluster.do(c.AssignTasks(1, host, "h1-life", refs, at + 4, "least loaded"))  # type: ignore[arg-type]
        await cluster.do(c.StartTasks(host, "h1-life", ((job, 0, 1, at + 5),), at + 5))  # type: ignore[arg-type]
        reports = (
            Report(job, 0, 1, "succeeded", 0, result=Payload(inline=b"result"), started_at=at + 5, finished_at=at + 6),  # type: ignore[arg-type]
            Report(job, 1, 1, "failed", 3, error="ValueError: no", code_index=1, code_digest="ef" * 32),  # type: ignore[arg-type]
            Report(job, 2, 1, "timed_out", None, 9),  # type: ignore[arg-type]
        )
        await cluster.do(c.FinishTasks(host, "h1-life", reports, at + 7))
    await cluster.do(c.AddTasks(f"add-{at}", jobs[5], Payload(inline=items.pack([b"more"] * 3)), 3, at + 8))  # type: ignore[arg-type]
    await cluster.do(c.CloseJob(f"close-{at}", jobs[5], at + 9))  # type: ignore[arg-type]
    await cluster.do(c.CancelJobs(f"cancel-{at}", (jobs[3],), at + 10, "ada"))  # type: ignore[arg-type]
    await cluster.do(c.HostSuspect(f"h2-{at:g}", "h2-life", "silent", at + 11))
    await cluster.do(c.HostLost(f"h2-{at:g}", "h2-life", "silent", at + 12))


async def make(cluster: Cluster) -> None:
    """Writes the three folders; that of KEPT has a snapshot, voided entries, and a journal that goes on."""
    await cluster.start("m1", "m2", "m3")
    first = await cluster.leader(KEPT)
    await history(cluster, 1000.0)
    await cluster.agree()
    await cluster.stop("m2", "m3")
    lost = c.SubmitJob("never committed", JobSpec(kind="command", argv=("lost",)), 1500.0)
    answers = await asyncio.gather(*(first.propose(c.encode(lost), timeout_s=0.3) for _ in range(3)),
                                   return_exceptions=True)  # fmt: skip
    assert all(isinstance(answer, OutcomeUnknown) for answer in answers), answers
    await cluster.stop(KEPT)
    await cluster.start("m2", "m3")
    await history(cluster, 2000.0)
    await cluster.start(KEPT)
    await cluster.agree()
    await history(cluster, 3000.0)
    await cluster.agree()


def expected(cluster: Cluster) -> dict[str, object]:
    """Returns what a later release must find in the kept folder."""
    machine, replica = cluster.machines[KEPT], cluster.replicas[KEPT]
    return {
        "applied_index": replica.applied_index,
        "term": replica.term,
        "state_hash": machine.state_hash,
        "tasks": {
            job.id: {index: job.state_of(index) for index in range(job.first, job.first + job.total)}
            for job in machine.state.jobs.values()
        },
        "hosts": {host.name: host.state for host in machine.state.hosts.values()},
        "events": machine.state.events.next_index,
    }


async def run(target: Path) -> None:
    """Makes the data in a temporary folder and keeps what is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        await make(cluster)
        found = expected(cluster)
        await cluster.stop(*cluster.replicas)
        shutil.copytree(Path(folder) / KEPT, target / KEPT, ignore=shutil.ignore_patterns("lock"))
    (target / "expected.json").write_text(json.dumps(found, indent=2) + "\n")
    for file in sorted((target / KEPT).iterdir()):
        print(file.name, file.stat().st_size)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))

"""The master server: one replica of the cluster's state, and the service around it.

`depalma-master --config FILE --id m1` runs in the foreground and logs to stderr. SIGTERM stops it in order.
Exit codes: 0 stopped, 1 it cannot go on (disk, damaged files, broken invariant: the last line says what to do),
2 wrong arguments or configuration, 3 the cluster has removed it. A supervisor should restart it after 1 with a pause,
and not after 2 and 3.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web

from depalma import config as config_module
from depalma.api.app import make_app
from depalma.api.connection import Connections
from depalma.api.listener import Listener, ServerKeys
from depalma.blobkeeping import BlobKeeper
from depalma.blobs import Blobs, BlobStore
from depalma.certificates import CertificateFiles
from depalma.config import ClusterConfig, Secrets
from depalma.consensus import Explained, Member, NotLeader, OutcomeUnknown, Removed, Replica, ReplicaSettings
from depalma.errors import ConfigError, Rejected
from depalma.jobarchive.keeper import JobArchive, Limits
from depalma.leader.hub import CODE, HOSTS, LEADER, Hub, Key
from depalma.leader.rates import Rates
from depalma.leader.reign import Reign
from depalma.leader.sessions import Sessions
from depalma.loopwatch import LoopWatch
from depalma.masters import known_masters, urls
from depalma.model import MasterAddress
from depalma.policies.places import HostRoom
from depalma.state.cluster_state import Changes, ClusterState
from depalma.state.commands import AddTasks, AnyCommand, Applied, ChangeMasters, SubmitJob, encode
from depalma.state.commands import Rejected as RefusedCommand
from depalma.state.job_commands import SubmitGraph
from depalma.state.jobs import Job
from depalma.state.machine import Machine
from depalma.trust import Trust

log = logging.getLogger("depalma.master")

#: What `accept` says when the system is short of something: it passes, and is no reason to stop.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


#: Descriptors that a master asks for, if it may: each connection takes one, and many systems give 1024 unasked.
_DESCRIPTORS = 65_536


def _take_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _boot_clock() -> float:
    """Monotonic seconds that go on while the machine sleeps: leases are about real time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ResidentMachine(Machine):
    """The state of a process that lives on with it."""

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Replaces the state, as Machine does; the collector never looks at what came."""
        super().restore(pieces)
        # It is large and acyclic. A hundred thousand jobs were a stall of half a second, and a child that writes a
        # snapshot shares the pages that nobody touches.
        gc.freeze()


class Disposal:
    """Frees forgotten jobs some results at a time.

    While a child writes a snapshot, each page that is freed is copied first: 400 MB at once were a stall of 2 s.
    """

    ROWS = 1_000

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def take(self, jobs: list[Job]) -> None:
        """Frees them within the coming turns of the loop."""
        if jobs and not self._jobs:
            asyncio.get_running_loop().call_soon(self._free)
        self._jobs += jobs
        jobs.clear()

    def _free(self) -> None:
        left = self.ROWS
        while self._jobs and left > 0:
            freed = self._jobs[-1].done.release(left)
            if freed < left:
                self._jobs.pop()
            left -= max(1, freed)
        if self._jobs:
            asyncio.get_running_loop().call_soon(self._free)


class Master:
    """Wires one replica, the API and the duties of a leader; implements what those declare they need."""

    def __init__(self, config: ClusterConfig, secrets: Secrets, master_id: str, *, joining: bool = False) -> None:
        own = config.master(master_id)
        self.master_id = master_id
        self.config = config
        self.secrets = secrets
        self.clock = _boot_clock
        self.wall = time.time
        self.spent = time.thread_time
        self.hub = Hub()
        self.rates = Rates(time.monotonic)
        self.loopwatch = LoopWatch()
        self.machine = ResidentMachine()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        directory = own.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files = CertificateFiles.of(secrets.folder, config.cluster, master_id)
        self.trust = None if config.settings.api_tls == "off" else Trust(self._files.authority)
        self.replica = Replica(
            _replica_settings(config, master_id, joining=joining),
            self.machine,
            certificates=self._files,
            on_fatal=self.fail,
        )
        self.blobs = Blobs.for_master(config, secrets, master_id, BlobStore(directory / "blobs"), self.trust)
        grace_s = max(config.settings.blob_grace_s, 3 * config.settings.lease_s * (1 + config.settings.lease_margin))
        self._keeper = BlobKeeper(self.blobs, lambda: self.machine.state, self._newest_version, grace_s)
        self._keeping: asyncio.Task[None] | None = None
        self._reign = Reign(self)
        self.archive = JobArchive(
            master_id,
            directory,
            Limits(config.settings.archive_days, config.settings.archive_bytes),
            lambda: self.machine.state,
            self.blobs,
            Disposal().take,
        )
        self._archiving: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._listener: Listener | None = None
        self._own = own

    # ------------------------------------------------------------ what the API and the duties ask

    @property
    def state(self) -> ClusterState:
        """The replicated state; to be read on the loop's thread only."""
        return self.machine.state

    @property
    def term(self) -> int:
        """The current term."""
        return self.replica.term

    @property
    def leading(self) -> bool:
        """Whether this master leads, as far as it knows."""
        return self.replica.is_leader

    @property
    def sessions(self) -> Sessions:
        """The agents' connections (only a leader has any)."""
        return self._reign.sessions

    def rooms(self) -> dict[str, HostRoom]:
        """Returns the room on all hosts that are connected to this master."""
        return self._reign.rooms.now()

    async def execute(self, command: AnyCommand) -> Applied:
        """Proposes a command and returns its outcome. Errors: Rejected, NotLeader, OutcomeUnknown."""
        outcome = await self.replica.propose(encode(command))
        if isinstance(outcome, RefusedCommand):
            raise Rejected(outcome.message, code=outcome.code)
        if not isinstance(outcome, Applied):
            raise TypeError(f"{type(command).__name__} answered {outcome!r}")
        if isinstance(command, SubmitJob):
            self.rates.note_submitted(command.spec.count)
        elif isinstance(command, SubmitGraph):
            self.rates.note_submitted(sum(spec.count for spec in command.specs))
        elif isinstance(command, AddTasks):
            self.rates.note_submitted(command.count)
        return outcome

    async def barrier(self) -> None:
        """Returns when it is certain that this master led after the call began. Errors: NotLeader, OutcomeUnknown."""
        if not self.replica.is_leader:
            raise NotLeader(self.replica.leader_id)
        await self.replica.barrier()

    def refused_requests(self) -> dict[str, int]:
        """Returns how many connections the API's port refused, by reason."""
        return dict(self._listener.refused) if self._listener is not None else {}

    async def record_masters(self) -> None:
        """Writes down who the masters are, if nobody has. Errors: MembershipRefused, NotLeader, OutcomeUnknown."""
        if self.state.masters and self.replica.members_recorded:
            return
        members = self.replica.members
        masters = tuple(MasterAddress(m.id, m.host, m.port, m.raft_port) for m in members)
        await self.replica.change_members(members, encode(ChangeMasters("", masters, self.wall())))

    async def _newest_version(self) -> int | None:
        """Returns a version that is at least that of everything acknowledged so far; None if nobody knows."""
        if self.replica.is_leader:
            with contextlib.suppress(NotLeader, OutcomeUnknown):
                await self.replica.barrier()
                return self.state.version
            return None
        leader = self.replica.leader_id
        contact_s = self.replica.contacts().get(leader) if leader else None
        if leader is None or contact_s is None or contact_s > 1.0:
            return None
        return await self.blobs.version_of(leader)

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Opens the disk, joins the masters, serves the API."""
        self.replica.add_applied_listener(self._applied)
        self.replica.add_leadership_listener(self._leadership)
        await self.replica.start()
        if self.state.masters:
            self._masters_changed()
        # All that were restored: nobody can have asked for one yet.
        self._keeper.named.changed(self.state.changes.jobs)
        self.state.changes.jobs.clear()
        self.loopwatch.start()
        self._runner = web.AppRunner(make_app(self), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        assert self._runner.server is not None
        keys = None if self.trust is None else ServerKeys(self._files, self.trust)
        plain = self.config.settings.api_tls != "on"
        self._listener = Listener(Connections(self._runner.server), keys, plain=plain)
        await self._listener.start(self._own.host, self._own.port)
        self._keeping = asyncio.create_task(self._keeper.run(), name="blobs")
        self._keeping.add_done_callback(self._keeping_ended)
        self._archiving = asyncio.create_task(self.archive.run(), name="archive")
        self._archiving.add_done_callback(self._keeping_ended)
        url = self.config.url(self._own)
        log.info("master %s serves %s, raft on port %d", self.master_id, url, self._own.raft_port)

    def _keeping_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    async def stop(self) -> None:
        """Leaves in order."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._archiving is not None:
            self._archiving.cancel()
        self._reign.end()
        self.loopwatch.stop()
        if self._listener is not None:
            await self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.archive.close()
        await self.blobs.close()
        await self.replica.stop()

    def fail(self, error: BaseException) -> None:
        """Ends the process with an error that cannot be handled: it must not go on with a state it cannot trust."""
        if not self.failed.done():
            self.failed.set_result(error)

    def _leadership(self, leads: bool, term: int) -> None:
        self._reign.end()
        # Fresh soft state each time: what an earlier reign believed is no use to this one.
        self._reign = Reign(self)
        if leads:
            log.info("master %s leads in term %d", self.master_id, term)
            self._reign.begin()
        self.hub.publish([LEADER])

    def _applied(self, applied_index: int) -> None:
        changes = self.machine.drain_changes()
        self._keeper.named.changed(changes.jobs)
        self.archive.take(changes.forgotten)
        self.hub.publish(_keys(changes))
        if changes.masters:
            self._masters_changed()
        if self.replica.is_leader:
            self._reign.changed(changes)

    def _masters_changed(self) -> None:
        where = urls(self.state, self.config)
        log.info("the masters are %s", ", ".join(f"{name} at {url}" for name, url in where.items()))
        where.pop(self.master_id, None)
        self.blobs.set_peers(where)
        if {m.id for m in known_masters(self.state, self.config)} != {m.id for m in self.config.masters}:
            named = ", ".join(m.id for m in self.config.masters)
            log.warning("the cluster file names other masters (%s): it only says where this one is", named)


def _keys(changes: Changes) -> Iterable[Key]:
    keys: list[Key] = [("job", job) for job in changes.jobs]
    if changes.hosts:
        keys.append(HOSTS)
    if changes.code:
        keys.append(CODE)
    if changes.masters:
        keys.append(LEADER)
    return keys


def _replica_settings(config: ClusterConfig, master_id: str, *, joining: bool) -> ReplicaSettings:
    return ReplicaSettings(
        id=master_id,
        members=tuple(Member(id=m.id, host=m.host, raft_port=m.raft_port, port=m.port) for m in config.masters),
        joining=joining,
        directory=config.master(master_id).directory / "raft",
        cluster=config.cluster,
        election_s=config.settings.election_s,
        snapshot_every_entries=config.settings.snapshot_every_entries,
    )


async def serve(config: ClusterConfig, secrets: Secrets, master_id: str, *, joining: bool = False) -> int:
    """Runs a master until SIGTERM, SIGINT or an error that it cannot handle. Returns the exit code."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    master = Master(config, secrets, master_id, joining=joining)
    loop.set_exception_handler(lambda _, context: _unhandled(master, context))
    try:
        await master.start()
    except ConfigError as error:
        log.critical("master %s cannot start: %s", master_id, error)
        return 2
    except Removed as error:
        log.critical("master %s cannot start: %s", master_id, error)
        return 3
    except Exception as error:  # the last line an operator sees must say which master and why
        expected = isinstance(error, OSError | Explained)
        log.critical("master %s cannot start: %s", master_id, error, exc_info=not expected)
        return 1
    master.failed.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    if master.failed.done():
        fatal = master.failed.result()
        if isinstance(fatal, Removed):
            log.critical("master %s stops: %s", master_id, fatal)
            return 3
        traceback = None if isinstance(fatal, Explained) else fatal
        log.critical("master %s stops: %s: %s", master_id, type(fatal).__name__, fatal, exc_info=traceback)
        return 1
    log.info("master %s stops in order", master_id)
    await master.stop()
    return 0


def _unhandled(master: Master, context: dict[str, object]) -> None:
    """A defect in a callback or a duty: the process stops rather than limp on; the others take over."""
    error = context.get("exception")
    message = str(context.get("message"))
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        # asyncio goes on listening a second later; connections that are there keep working.
        log.warning("%s: %s; new connections wait", message, error)
    elif isinstance(error, ConnectionError | TimeoutError):
        log.info("%s: %s", message, error)
    elif isinstance(error, BaseException):
        master.fail(error)
    else:
        log.warning("event loop: %s", message)


def main(argv: list[str] | None = None) -> int:
    """Entry of `depalma-master`."""
    parser = argparse.ArgumentParser(prog="depalma-master", description="Runs one master of a Depalma cluster.")
    parser.add_argument("--config", required=True, type=Path, help="the cluster file")
    parser.add_argument("--id", required=True, help="which of its masters to run")
    parser.add_argument(
        "--join", action="store_true", help="wait to be added to a cluster that runs (depalmactl master add)"
    )
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = config_module.load(arguments.config)
        config.master(arguments.id)
        folder = config_module.secrets_folder(arguments.config, config)
        secrets = config_module.load_secrets(folder, arguments.id, made_by=arguments.config)
    except ConfigError as error:
        print(f"depalma-master: {error}", file=sys.stderr)  # noqa: T201
        return 2
    _take_descriptors()
    # Long-lived state is large and acyclic: collecting it again and again would stall the loop.
    gc.freeze()
    # Small steps, each of a ms or two: on a loaded machine a step of 40 ms was a stall of 300. The work is the same: an
    # object is looked at twice while it is young, and then once in a thousand million new ones.
    gc.set_threshold(1_000, 5, 200_000)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(serve(config, secrets, arguments.id, joining=arguments.join))
    return 130


if __name__ == "__main__":
    sys.exit(main())

"""What a master does while it leads: dispatch, leases, the code log, cancellations, forgetting, webhooks.

Everything here is soft: a new leader starts with nothing of it and loses nothing by that.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from depalma.config import HostConfig
from depalma.consensus import MembershipRefused, NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.leader.dispatching import DispatchLoop
from depalma.leader.forgetting import Forgetting
from depalma.leader.history import IdleJobs
from depalma.leader.laggards import Laggards
from depalma.leader.leases import Leases
from depalma.leader.rooms import Rooms
from depalma.leader.sessions import Sessions
from depalma.leader.timekeeping import keep_time
from depalma.leader.webhooks import Messengers
from depalma.leader.wishes import Wishes
from depalma.model import AttemptRef
from depalma.ownership import OwnerPolicy
from depalma.state.cluster_state import Changes
from depalma.state.commands import AddHost, AnyCommand, CloseJob, HostLost, HostSuspect, LagCode, SetOwner
from depalma.state.gangs import rest_of_gangs
from depalma.state.jobs import Job

log = logging.getLogger(__name__)

WATCH_S = 0.2  #: how often leases are looked at
IDLE_S = 60.0  #: how often it is looked for idle jobs


class Reign:
    """Begins when its master leads with everything applied, ends when it does not lead any more."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._leases = Leases(context.config.settings.lease_times)
        self.sessions = Sessions(context, self._leases)
        self._wishes = Wishes(context, self.sessions)
        self._laggards = Laggards(context.config.settings.code_lag_s, context.config.settings.code_kick_s)
        self.rooms = Rooms(context, self.sessions)
        self._dispatching = DispatchLoop(context, self.sessions, self.rooms)
        self.sessions.on_room = self._dispatching.wake
        self._forgetting = Forgetting(context)
        self._messengers = Messengers(context, self._ended)
        self._tasks: list[asyncio.Task[None]] = []
        self._killed: set[int] = set()  #: cancelled jobs of which the agents were told

    def begin(self) -> None:
        """Starts the duties."""
        self._leases.begin(self._context.clock())
        self._context.rates.begin()
        self._wishes.begin()
        self._tasks = [
            asyncio.create_task(self._dispatching.run(), name="dispatch"),
            asyncio.create_task(self._watch_hosts(), name="leases"),
            asyncio.create_task(self._watch_code(), name="code log"),
            asyncio.create_task(keep_time(self._context), name="time"),
            asyncio.create_task(self._forgetting.run(), name="history"),
            asyncio.create_task(self._close_idle(), name="idle jobs"),
            asyncio.create_task(self._know_hosts(), name="hosts of the cluster file"),
            asyncio.create_task(self._know_masters(), name="masters"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        self._messengers.begin()
        self._dispatching.wake()

    def end(self) -> None:
        """Stops the duties and sends the agents away."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        self._messengers.end()
        self.sessions.close_all()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"duty '{task.get_name()}' failed", "exception": task.exception(), "task": task}
            )

    def changed(self, changes: Changes) -> None:
        """Takes note of what was just applied."""
        state = self._context.state
        for job_id in changes.jobs:
            job = state.jobs.get(job_id)
            if job is None or job.is_final:
                self._context.rates.forget_job(job_id)
                self._killed.discard(job_id)
                if job is not None:
                    self._forgetting.note_ended()
            elif job.cancelled and job.running:
                # Once: it gets no more tasks, and who connects later is told then. At each report of 64,000 tasks that
                # end it took 20 ms.
                if job_id not in self._killed:
                    self._killed.add(job_id)
                    self._kill_cancelled(job_id)
            elif job.gangs:
                self._end_gangs(job)
            self.sessions.suspensions.changed(job_id)  # after the kill: what is to die does not go on before
        if changes.masters:
            self.sessions.tell_masters()
        self._wishes.changed(changes.hosts)
        if changes.code:
            for session in self.sessions.connected():
                self.sessions.send_code(session)
        if changes.webhooks:
            self._messengers.changed(changes.webhooks)
        self._dispatching.wake()

    def _kill_cancelled(self, job_id: int) -> None:
        by_host: dict[str, list[AttemptRef]] = {}
        for task, attempt in self._context.state.jobs[job_id].running.items():
            by_host.setdefault(attempt.host, []).append((job_id, task, attempt.number))
        for host, refs in by_host.items():
            session = self.sessions.by_host.get(host)
            if session is not None:
                self.sessions.orders.kill(session, refs, outcome="cancelled", reason="job cancelled")

    def _end_gangs(self, job: Job) -> None:
        """Ends what is left of gangs that cannot go on: one of their members has ended badly."""
        for (host, reason), refs in rest_of_gangs(job).items():
            session = self.sessions.by_host.get(host)
            if session is not None:
                self.sessions.orders.kill(session, refs, outcome="cancelled", reason=reason)

    # ------------------------------------------------------------ hosts

    async def _watch_hosts(self) -> None:
        """The leader looks, the log decides: every command names the incarnation that was looked at."""
        while True:
            await asyncio.sleep(WATCH_S)
            # All are judged at one moment, and before anything is recorded: meanwhile others may come back, as an
            # incarnation with a lease of its own.
            await asyncio.gather(*map(self._try, self._silent()))
            self._wishes.look()

    def _silent(self) -> list[HostLost | HostSuspect]:
        now, wall = self._context.clock(), self._context.wall()
        hosts = self._context.state.hosts
        counted = [name for name, host in hosts.items() if host.state in ("up", "suspect", "draining", "lagging")]
        over = set(self._leases.over({name: hosts[name].facts for name in counted}, now))
        found: list[HostLost | HostSuspect] = []
        for name in sorted(over):
            reason = f"silent for {self._leases.silent_s(name, now):.1f} s, longer than lease and margin"
            found.append(HostLost(name, hosts[name].incarnation, reason, wall))
        for name in self._leases.suspects(set(counted) - over, now):
            if hosts[name].state == "up":
                reason = f"silent for {self._leases.silent_s(name, now):.1f} s"
                found.append(HostSuspect(name, hosts[name].incarnation, reason, wall))
        return found

    async def _watch_code(self) -> None:
        """Marks hosts that stay behind the code log, and kicks out those that do so for too long."""
        while True:
            await asyncio.sleep(WATCH_S)
            state = self._context.state
            connected = [session.host for session in self.sessions.connected()]
            hosts = {name: state.hosts[name] for name in connected if name in state.hosts}
            for name, reason, kicked in list(self._laggards.late(hosts, state.code_index, self._context.clock())):
                host = hosts[name]
                wall = self._context.wall()
                await self._try(LagCode(name, host.incarnation, host.code_index, reason, kicked, wall))

    async def _know_hosts(self) -> None:
        """The hosts of the cluster file are made known once; from then on the state owns the list."""
        for host in self._context.config.hosts:
            state = self._context.state
            if host.name not in state.hosts and host.name not in state.removed:
                await self._try(
                    AddHost(
                        f"cluster-file:{host.name}",
                        host.name,
                        host.groups,
                        host.labels,
                        host.priority,
                        host.slots,
                        host.gpus,
                        self._context.wall(),
                        resources=host.resources,
                    )
                )
            await self._know_owner(host)

    async def _know_owner(self, listed: HostConfig) -> None:
        """What the cluster file says of a host's owner holds until somebody says otherwise."""
        host = self._context.state.hosts.get(listed.name)
        if host is not None and not host.owner_given and listed.owner != OwnerPolicy():
            changes = msgspec.structs.asdict(listed.owner)
            request = f"cluster-file-owner:{listed.name}:{self._context.state.version}"
            await self._try(SetOwner(request, listed.name, changes, self._context.wall(), from_file=True))

    async def _know_masters(self) -> None:
        """From the first leader on, the log says who the masters are, and no cluster file can."""
        try:
            await self._context.record_masters()
        except (MembershipRefused, NotLeader, OutcomeUnknown) as error:
            log.info("recording the masters: %s", error)

    async def _try(self, command: AnyCommand) -> None:
        try:
            await self._context.execute(command)
        except (Rejected, NotLeader, OutcomeUnknown) as error:
            log.info("%s: %s", type(command).__name__, error)

    async def _close_idle(self) -> None:
        context, settings = self._context, self._context.config.settings
        idle = IdleJobs(settings.open_job_idle_s)
        while True:
            await asyncio.sleep(IDLE_S)
            wall, jobs = context.wall(), context.state.jobs
            for job in idle.over(jobs.values(), context.clock()):
                log.info("job %d is open, and had nothing to do for %g s: closing it", job, settings.open_job_idle_s)
                await self._try(CloseJob(f"idle:{job}:{context.state.version}", job, wall))

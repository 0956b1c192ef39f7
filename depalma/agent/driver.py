"""The agent: everything that touches the world, around the core."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from depalma import pausing
from depalma.agent import events as ev
from depalma.agent import masterlist, proctree
from depalma.agent.aside import Aside
from depalma.agent.blobs import Blobs
from depalma.agent.certificate import keeping
from depalma.agent.chores import keep_tidy
from depalma.agent.codefolder import CodeFolder
from depalma.agent.codekeeper import CodeKeeper
from depalma.agent.codesync import CodeSync
from depalma.agent.connection import Finder, headers_of
from depalma.agent.core import AgentCore
from depalma.agent.environments import Environments
from depalma.agent.gone import TELL_S
from depalma.agent.link import MonitorLink
from depalma.agent.lives import Lives, boot_id, machine_id
from depalma.agent.loadmeter import LoadMeter
from depalma.agent.measure import describe_limits, facts, python_version
from depalma.agent.owner import Owner
from depalma.agent.questions import Questions
from depalma.agent.runner import Runner
from depalma.agent.session import Session
from depalma.agent.stage import Stage
from depalma.agent.store import ReportJournal, empty_folder, lock_folder
from depalma.agent.supplies import Supplies
from depalma.agent.sweeping import Sweeper
from depalma.agent.tailkeeper import TailKeeper
from depalma.agent.visits import Visits
from depalma.config import ClusterConfig, HostConfig
from depalma.model import AttemptRef
from depalma.monitor import boottime
from depalma.protocol import Masters, Question, Refused, Started, ToAgent, ToVisit, Welcome
from depalma.trust import Trust

log = logging.getLogger(__name__)

EXIT_FAULT, EXIT_REFUSED, EXIT_CUT_OFF = 1, 3, 4
_TICK_S = 0.1
_CHORES_S = 1.0
_MONITOR_SILENT_PINGS = 10  # one a second
_STOP_GRACE_S = 2.0
_LOCK_WAIT_S = 15.0
_MONITOR_START_S = 10.0
_TELL_IDLE_S = 1.0


def is_failure(context: Mapping[str, Any]) -> bool:
    """Returns whether what the loop reports is an error of ours: it also reports remarks, which carry no exception.

    aiohttp remarks "Unclosed connection" when an attempt to connect is given up half way, as happens when several
    masters are asked at once and another one answers first.
    """
    return isinstance(context.get("exception"), BaseException)


class Agent:
    """One agent process. `run` is its whole life."""

    def __init__(self, config: ClusterConfig, host: HostConfig, token: str, trust: Trust | None = None) -> None:
        self._config = config
        self._trust = trust
        self._settings = config.settings
        self._host = host
        self._token = token
        slots = host.slots or os.cpu_count() or 1
        self._root = Path(host.dir or f"~/.local/state/depalma/agent-{host.name}").expanduser().absolute()
        self._facts = facts(slots, host.gpus, host.host)
        self._core = AgentCore(slots=slots, python=python_version(), incarnation=secrets.token_hex(8))
        self._events: deque[ev.AnyEvent] = deque()
        self._handling = True  #: until everything is there that takes part
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uploads: dict[AttemptRef, asyncio.Task[Any]] = {}
        self._exit = asyncio.Event()
        self._exit_code = 0
        self._dead = asyncio.Event()
        self._monitor_ready = asyncio.Event()
        self._unanswered_pings = 0
        self._do = self._action_table()

    # ------------------------------------------------------------ life

    async def run(self) -> int:
        """Runs until told to stop. Returns the exit code."""
        proctree.become_subreaper()
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self._lock = await asyncio.to_thread(lock_folder, self._root, _LOCK_WAIT_S)
        if killed := await asyncio.to_thread(proctree.kill_strays, str(self._root)):
            log.warning("killed %d processes that an earlier agent left behind", killed)
        self._lives = Lives(self._root, machine_id(), boot_id())
        self._lives.begin(self._core.incarnation)
        pausing.name_folder(self._root, self._host.name)
        self._journal = ReportJournal(self._root / "reports")
        self._link = MonitorLink(self._from_monitor, self._monitor_died)
        limits_bytes = self._settings.output_limit_bytes, self._settings.max_blob_bytes
        self._runner = Runner(self._root, self._host.name, self._link, self.deliver, *limits_bytes)
        settings = self._settings
        keep = settings.output_keep_days, settings.output_keep_bytes, settings.output_keep_tag_days
        self._sweeper = Sweeper(self._runner.output, *keep)
        headers = headers_of(self._token, self._host.name)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as http:
            self._finder = Finder(
                http,
                [self._config.url(master) for master in self._config.masters],
                self._host.name,
                trust=self._trust,
                learned=masterlist.read(self._root),
                on_learned=partial(masterlist.write, self._root),
            )
            self._meter = meter = LoadMeter(str(self._root), lambda: self._link.pid)
            deliver, receive, name = self.deliver, self._receive, self._host.name
            self._session = Session(
                self._finder, self._core, self._facts, name, deliver, receive, lambda: meter.latest, self._lives
            )
            self._blobs = Blobs(self._root, http, self._finder.ordered, self._settings.max_blob_bytes, self._trust)
            self._stage = Stage(self._root, self._settings.max_blob_bytes)
            core, session = self._core, self._session
            self._questions = Questions(name, self._runner, self._link, core, meter, session.send)
            self._visits = Visits(self._runner, self._link, core, session.send_bulk)
            self._code = self._code_keeper()
            self._owner = Owner(self._root, self.deliver, session.send)
            tails = TailKeeper(self._runner.output, self._blobs)
            self._supplies = Supplies(self._blobs, self._code.sync, self._stage, tails, core.uses_blob, self.deliver)
            self._handling = False
            self._adopt_old_reports()
            self._start_monitor()
            meter.start()
            await self._learn_limits()
            await self._owner.look()  # a pause holds from the first moment on
            certificate = await keeping(self._trust, http, self._finder, name)
            self._spawn(self._sweeper.watch())
            self._spawn(keep_tidy(self._root, self._stage, self._trust, core.attempts))
            works = (self._tick_forever(), session.beat(), session.run(), self._code.watch(), self._owner.watch())
            for work in (*certificate, *works):
                self._spawn(work)
            log.info("host %s, incarnation %s, %d slots", self._host.name, self._core.incarnation, self._facts.slots)
            await self._exit.wait()
            await self._end()
        return self._exit_code

    def _code_keeper(self) -> CodeKeeper:
        self._aside = Aside(self._root, self._host.name, self._link)
        folder = CodeFolder(self._root)
        environments = Environments(folder, self._blobs, self._aside, self._settings.environments_kept)
        sync = CodeSync(folder, self._blobs, environments)
        self._runner.environment_of = lambda index: environments.path(sync.requirements(index))
        limit_bytes = self._settings.output_limit_bytes
        return CodeKeeper(sync, self._core, self.deliver, self._session.send, self._host.name, self._token, limit_bytes)

    def stop(self) -> None:
        """Orderly stop (SIGTERM): what has not started goes back, what runs is ended, nothing stays behind."""
        if not self._core.stopping:
            log.info("told to stop")
            self.deliver(ev.Stopping())
            self._spawn(self._leave_orderly())

    async def _leave_orderly(self) -> None:
        for _ in range(50):  # a second at most for the last reports
            if not (self._core.connected and (self._core.pending or self._core.early)):
                break
            await asyncio.sleep(0.02)
        self._exit.set()

    async def _end(self) -> None:
        """Has the monitor end everything and tell the masters, and waits for that as long as it is worth."""
        orderly = self._exit_code == 0
        if orderly:
            self._link.send(("identity", {"patience_s": self._patience_s()}))
        self._meter.stop()
        self._aside.forget_all()  # what is ended now has not failed
        if orderly:
            self.deliver(ev.Ending())
        else:
            self._link.kill_tree()  # the monitor may stand still, and the lease be over
        self._link.send(("stop", "stopped" if orderly else "the agent left", _STOP_GRACE_S if orderly else 0.0))
        self._link.flush()
        if not await asyncio.to_thread(self._link.wait, 15.0):
            log.warning("the monitor (process %d) still tries to reach a master", self._link.pid)
            self._link.kill_tree()  # or it stands still
        self._link.end()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._session.close()
        await self._session.ended()
        self._journal.close()
        os.close(self._lock)

    def _patience_s(self) -> float:
        """Returns how long it is worth to look for a master that takes note of the end, and moves the work at once."""
        if not self._core.lease_until:
            return 0.0  # no master knows of this incarnation
        return TELL_S if self._core.connected or self._core.attempts or self._core.pending else _TELL_IDLE_S

    def _adopt_old_reports(self) -> None:
        """Reports of an earlier life are sent once more: a master that can still use them does."""
        for report in self._journal.load():
            self._core.pending[(report.job, report.task, report.attempt)] = report
        if self._core.pending:
            log.info("%d reports of an earlier life were not confirmed; they are sent again", len(self._core.pending))

    def _start_monitor(self) -> None:
        self._link.start(self._root, self._lock, self._settings.output_limit_bytes)
        self._unanswered_pings = 0
        for order in self._owner.orders():
            self._link.send(order)
        self._tell_identity()

    async def _learn_limits(self) -> None:
        """Waits until the monitor has said what it can use of control groups: the first hello tells it."""
        try:
            async with asyncio.timeout(_MONITOR_START_S):
                await self._monitor_ready.wait()
        except TimeoutError:
            log.warning("the monitor is slow to start")
            return
        self._session.facts = self._facts
        log.info("limits of tasks: %s", self._facts.limits)

    def _tell_identity(self) -> None:
        """Tells the monitor whom to tell what if this process dies."""
        who = {"host": self._host.name, "incarnation": self._core.incarnation, "token": self._token}
        if self._trust is not None:
            who["authority"] = str(self._trust.authority)
        self._link.send(
            ("identity", {**who, "masters": self._finder.ordered(), "reports": str(self._root / "reports")})
        )
        self._link.flush()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed(None, {"message": "a task failed", "exception": task.exception()})

    def _failed(self, _: object, context: dict[str, Any]) -> None:
        """An error that nobody expected: the state may be wrong, so everything ends, and whoever starts us may."""
        if not is_failure(context):
            log.warning("event loop: %s", context["message"])
            return
        log.error("a part of the agent failed, it ends: %s", context["message"], exc_info=context.get("exception"))
        self._exit_code = EXIT_FAULT
        self._exit.set()

    # ------------------------------------------------------------ events and actions

    def deliver(self, event: ev.AnyEvent) -> None:
        """Gives an event to the core and does what it answers; events that come of that are handled after it."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                for action in self._core.handle(self._events.popleft(), boottime()):
                    self._do[type(action)](action)
        finally:
            self._handling = False
        self._visits.look()
        self._link.flush()

    def _action_table(self) -> dict[type, Callable[[Any], object]]:
        return {
            ev.Launch: lambda a: self._runner.launch(a.lane, a.slot, self._sweeper.noted(a.attempts)),
            ev.StopCommand: lambda a: self._runner.stop_command(a.attempt, a.grace_s),
            ev.StartWorker: lambda a: self._runner.start_worker(
                a.worker, a.code_index, self._code.sync.folder.digest(a.code_index)
            ),
            ev.SendTasks: lambda a: self._runner.send_tasks(a.worker, self._sweeper.noted(a.attempts)),
            ev.Recall: lambda a: self._runner.recall(a.lane),
            ev.StopWorker: lambda a: self._runner.stop_worker(a.worker, a.grace_s),
            ev.Suspend: lambda a: self._runner.restrain("suspend", a.lane, a.reason),
            ev.Resume: lambda a: self._runner.restrain("resume", a.lane, a.reason),
            ev.Lower: lambda a: self._link.send(("lower", a.lowered)),
            ev.EndForkServers: lambda a: self._runner.nurseries.end(a.indices),
            ev.Prepare: lambda a: self._spawn(self._supplies.prepare(a.need)),
            ev.Upload: lambda a: self._uploads.update({a.attempt: self._spawn(self._upload(a))}),
            ev.KeepReports: self._keep_reports,
            ev.SendReports: lambda a: self._session.report(a.reports),
            ev.Announce: self._announce,
            ev.RenewLease: lambda a: self._link.renew(a.until_s),
            ev.ApplyCode: lambda a: self._spawn(self._code.apply(a.entries, again=a.again)),
            ev.ResetCode: lambda a: self._reset_code(),
            ev.Reconnect: self._reconnect,
            ev.CutOff: self._cut_off,
            ev.Leave: self._leave,
        }

    def _keep_reports(self, action: ev.KeepReports) -> None:
        try:
            self._journal.keep(action.reports)
        except OSError as error:
            log.error("reports are kept in memory only: %s", error)
        if action.send:
            self._session.report(action.reports)

    def _announce(self, action: ev.Announce) -> None:
        now = time.time()
        frame = Started(tuple((job, task, attempt, now - age_s) for job, task, attempt, age_s in action.tasks))
        self._session.send(frame)

    def _reconnect(self, action: ev.Reconnect) -> None:
        log.warning("closing the connection: %s", action.reason)
        self._session.close()

    def _leave(self, action: ev.Leave) -> None:
        log.error("the cluster refuses this agent: %s", action.reason)
        self._exit_code = EXIT_REFUSED
        self._session.whole.clear()  # it does not come back
        self._exit.set()

    async def _upload(self, action: ev.Upload) -> None:
        try:
            await self._supplies.upload(action)
        finally:
            self._uploads.pop(action.attempt, None)

    def _reset_code(self) -> None:
        self._code.reset_now()
        self._spawn(self._code.sync.reset())

    # ------------------------------------------------------------ the end of an incarnation

    def _cut_off(self, action: ev.CutOff) -> None:
        rejoin = action.must_rejoin or self._settings.on_cut_off == "rejoin"
        then = "rejoins as a new incarnation" if rejoin else "exits"
        log.error("cut off: %s: everything is killed, the agent %s", action.reason, then)
        self._session.whole.clear()
        self._session.close()
        self._dead.clear()
        self._runner.forget_all()
        self._aside.forget_all()
        self._visits.forget_all()
        for upload in self._uploads.values():
            upload.cancel()
        self._uploads.clear()
        self._journal.committed(())
        if not rejoin:
            self._exit_code = EXIT_CUT_OFF
            self._exit.set()
            return
        self._link.send(("kill_all", 0))
        self._link.kill_tree()
        self._spawn(self._rejoin())

    async def _rejoin(self) -> None:
        await self._dead.wait()
        await asyncio.to_thread(empty_folder, self._root / "blobs" / "out")
        self.deliver(ev.Rejoined(self._lives.begin(secrets.token_hex(8))))
        self._tell_identity()
        self._session.whole.set()
        log.info("nothing is left; going on as incarnation %s", self._core.incarnation)

    def _monitor_died(self) -> None:
        if self._exit.is_set():
            return
        log.error("the monitor is dead: its processes are killed, a new one is started")
        reaped: set[int] = set()
        proctree.kill_descendants(reaped)
        self._link.reaped(reaped)
        self._start_monitor()
        self._aside.forget_all()
        self.deliver(ev.LeaseLost("the monitor died"))
        self._dead.set()

    def _from_monitor(self, messages: list[tuple[Any, ...]]) -> None:
        for message in messages:
            if message[0] == "exits":
                self._runner.exits(message[1])
                self._aside.exits(message[1])
                self._visits.exits(message[1])
            elif message[0] == "ready":
                self._facts = msgspec.structs.replace(self._facts, limits=describe_limits(message[1]))
                self._monitor_ready.set()
            elif message[0] == "expired":
                self.deliver(ev.LeaseLost(f"the monitor saw the lease end {message[1]:.2f} s ago"))
            elif message[0] == "all_dead":
                self._dead.set()
            elif message[0] == "pong":
                self._unanswered_pings = 0
                self._questions.confirm(message[1])
            elif message[0] == "recalled":
                self._runner.recalled(message[1], message[2])
            elif message[0] == "trees":
                self._spawn(self._questions.answer_processes(message[1], message[2]))

    # ------------------------------------------------------------ the leader

    def _receive(self, url: str, frame: ToAgent) -> None:
        if isinstance(frame, Question):
            self._questions.ask(frame)
        elif isinstance(frame, ToVisit):
            self._visits.take(frame)
        elif not isinstance(frame, Masters):  # the session has taken note of these
            if isinstance(frame, Refused):
                log.warning("%s refuses: %s", url, frame.reason)
            self.deliver(frame)
            if isinstance(frame, Welcome):
                self._code.welcomed(frame.takes_problems)
                self._owner.welcomed(frame)
                self._tell_identity()

    # ------------------------------------------------------------ time

    def _look_after_monitor(self) -> None:
        """A monitor that is stopped or hangs can neither start nor end anything: it is replaced."""
        # Counted, not timed: this process may have been stopped itself.
        self._unanswered_pings += 1
        if self._unanswered_pings > _MONITOR_SILENT_PINGS:
            log.error("the monitor does not answer: it is killed")
            self._unanswered_pings = 0
            self._link.kill()
        self._link.send(("ping", 0))  # those that ask something have a number
        self._link.flush()

    async def _tick_forever(self) -> None:
        chores_s = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            now = boottime()
            self.deliver(ev.Tick())
            if now >= chores_s:
                chores_s = now + _CHORES_S
                self._runner.cut_output()
                self._look_after_monitor()
                # Not at each commit: a file costs more than that.
                self._journal.committed((*self._core.pending.values(), *self._core.early.values()))

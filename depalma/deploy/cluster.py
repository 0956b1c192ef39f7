"""`cluster up`, `down`, `status`: the same on all machines at once, one outcome a machine.

A machine that fails is named with its reason, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from depalma import config as cluster_file
from depalma.certificates import AUTHORITY_FILE
from depalma.client.client import Client
from depalma.config import ClusterConfig, HostConfig
from depalma.deploy import installing, plan
from depalma.deploy.installing import Facts, Parcels
from depalma.deploy.orders import Action, Answer, DaemonOrder, DaemonReport, Order, Role, decode_answer, encode
from depalma.deploy.plan import Machine
from depalma.deploy.ssh import HostFailed, Sockets, Ssh
from depalma.errors import DepalmaError, Rejected

AT_ONCE = 16
LOOK_S = 90.0
#: A keeper is given so much longer than what it waits for itself.
SPARE_S = 60.0

T = TypeVar("T")


class Options(Struct, frozen=True, kw_only=True):
    """How to go about it."""

    ssh: tuple[str, ...] = ()  #: words for ssh, before the machine's name
    wheelhouse: Path | None = None  #: wheels of the dependencies, for machines without a package index
    offline: bool = False  #: no machine is to ask an index
    python: str = ""  #: interpreter to try first on the machines
    wait_s: float = 60.0  #: for the cluster to see what was started
    patience_s: float = 30.0  #: for a daemon to end in order


class Outcome(Struct, kw_only=True):
    """How one machine is, and what was done there."""

    machine: str
    reports: list[DaemonReport] = []
    installed: bool = False
    version: str = ""
    facts: Facts | None = None  #: nothing is installed there yet, and this is its Python
    problem: str = ""

    @property
    def failed(self) -> bool:
        """Whether something is not as it should be."""
        return bool(self.problem) or any(report.problem for report in self.reports)

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return self.installed or any(report.did for report in self.reports)

    def take(self, answer: Answer) -> None:
        """Puts what the keeper reports in the place of what it said before of the same daemons; what was done stays."""
        did = {(report.role, report.id): report.did for report in self.reports if report.did}
        kept = {(report.role, report.id): report for report in self.reports}
        for report in answer.reports:
            key = report.role, report.id
            kept[key] = report if report.did else msgspec.structs.replace(report, did=did.get(key, ""))
        self.reports = list(kept.values())
        self.version = answer.version


class Deployment:
    """One cluster file and its machines. Use it as a context: connections are shared by all calls within.

    `tell` gets lines for people. Errors: ConfigError.
    """

    def __init__(self, file: Path, options: Options, tell: Callable[[str], None]) -> None:
        self.config: ClusterConfig = cluster_file.load(file)
        self.secrets = cluster_file.secrets_folder(file, self.config)
        self.release = installing.release()
        self.machines = plan.machines(self.config, self.secrets, self.release)
        self._options = options
        self._tell = tell
        self.cluster_problem = ""  #: what keeps the cluster as a whole from working
        self._wishes = {machine.target: machine for machine in self.machines}
        self.outcomes = {machine.target: Outcome(machine=machine.target) for machine in self.machines}

    def __enter__(self) -> Deployment:
        self._sockets = Sockets()
        folder = self._sockets.__enter__()
        self._ssh = {machine.target: Ssh(machine.target, folder, self._options.ssh) for machine in self.machines}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ssh")
        return self

    def __exit__(self, *_: object) -> None:
        list(self._pool.map(Ssh.close, self._ssh.values()))
        self._pool.shutdown(cancel_futures=True)
        self._sockets.__exit__()

    def without_address(self) -> list[str]:
        """Returns the hosts of the file that cannot be started from here."""
        return plan.unreachable(self.config)

    # ------------------------------------------------------------ what is asked for

    def status(self) -> list[Outcome]:
        """Looks only."""
        self._each(self.machines, partial(self._keeper, any_release=True))
        for outcome in self._good():
            if outcome.facts:
                outcome.problem = "nothing is installed"
            self._say_what_does_not_run(outcome)
        return self._all()

    def plan(self) -> list[Outcome]:
        """Looks, and says in `did` what `up` would do."""
        self._each(self.machines, self._keeper)
        for outcome in self._good():
            daemons = {(d.role, d.id): d for d in self._wishes[outcome.machine].daemons}
            known = {(report.role, report.id): report for report in outcome.reports}
            outcome.installed = outcome.facts is not None
            planned = [_planned(daemon, known.get(key)) for key, daemon in daemons.items()]
            outcome.reports = planned + [report for report in outcome.reports if not report.asked_for]
        return self._all()

    def up(self) -> list[Outcome]:
        """Makes the cluster what the file says, and waits until it works. What is so already is left alone."""
        self._each(self.machines, self._keeper)
        self._install()
        running = any(report.running for outcome in self._good() for report in outcome.reports if _is_master(report))
        self._masters(joining=running)
        if self._changes() or any(self._starts(m, daemon) for m in self._reached() for daemon in m.only("agent")):
            self._introduce()
        self._agents()
        if self._changes():
            self._await_agents()
        return self._all()

    def down(self, action: Action = "stop") -> list[Outcome]:
        """Ends all daemons of the cluster, the agents first: they still tell the masters how their tasks ended.

        What the file does not name any more is ended too.
        """
        for role in ("agent", "master"):
            self._each(self._reached(), partial(self._keeper, action=action, only=role, any_release=True))
        for outcome in self._good():
            outcome.facts = None  # nothing is installed, so nothing runs
        return self._all()

    # ------------------------------------------------------------ steps

    def _install(self) -> None:
        missing = [self._wishes[outcome.machine] for outcome in self._good() if outcome.facts]
        if not missing:
            return
        self._tell(f"installing {self.release} on {', '.join(machine.target for machine in missing)}")
        with Parcels(self._options.wheelhouse, offline=self._options.offline) as parcels:

            def work(machine: Machine) -> None:
                outcome = self.outcomes[machine.target]
                assert outcome.facts is not None
                installing.install(self._ssh[machine.target], outcome.facts, self.release, parcels)
                outcome.facts, outcome.installed = None, True
                self._keeper(machine)

            self._each(missing, work)

    def _masters(self, *, joining: bool) -> None:
        """Starts masters all at once, and restarts them one after the other, each when the one before serves again."""
        wanted = self._reached()
        restarts = {(d.role, d.id) for machine in wanted for d in machine.only("master") if self._stale(machine, d)}
        starts = [(m, [d for d in m.only("master") if (d.role, d.id) not in restarts]) for m in wanted]
        self._order([(machine, _joining(daemons, joining)) for machine, daemons in starts])
        for machine in wanted:
            for daemon in machine.only("master"):
                if (daemon.role, daemon.id) not in restarts:
                    continue
                if unwell := self._with_unwell_masters():
                    self._tell(f"{daemon.id}: not restarted, as a master on {', '.join(unwell)} is not well")
                    outcome = self.outcomes[machine.target]
                    outcome.problem = outcome.problem or f"{daemon.id} was left as it was: another master is not well"
                    continue
                self._order([(machine, [daemon])])

    def _with_unwell_masters(self) -> list[str]:
        """Returns the machines of which it is not certain that their masters are well."""
        with_masters = [self.outcomes[machine.target] for machine in self.machines if machine.only("master")]
        return [o.machine for o in with_masters if o.problem or any(_is_master(r) and r.problem for r in o.reports)]

    def _agents(self) -> None:
        self._order([(machine, machine.only("agent")) for machine in self._reached()])

    def _order(self, work: Iterable[tuple[Machine, Sequence[DaemonOrder]]]) -> None:
        """Sends `start` for those daemons that are not as they should be."""
        todo = {
            machine.target: (machine, chosen)
            for machine, daemons in work
            if (chosen := [daemon for daemon in daemons if self._has_to_be_touched(machine, daemon)])
        }
        both = [(machine, daemon) for machine, chosen in todo.values() for daemon in chosen]
        if names := [daemon.id for machine, daemon in both if not self._only_files(machine, daemon)]:
            self._tell(f"starting {', '.join(names)}")
        self._each([machine for machine, _ in todo.values()], lambda m: self._keeper(m, "start", todo[m.target][1]))

    def _report(self, machine: Machine, daemon: DaemonOrder) -> DaemonReport | None:
        reports = self.outcomes[machine.target].reports
        return next((report for report in reports if (report.role, report.id) == (daemon.role, daemon.id)), None)

    def _stale(self, machine: Machine, daemon: DaemonOrder) -> bool:
        report = self._report(machine, daemon)
        return report is not None and report.running and report.differs == "restart"

    def _starts(self, machine: Machine, daemon: DaemonOrder) -> bool:
        report = self._report(machine, daemon)
        return report is None or not report.running

    def _only_files(self, machine: Machine, daemon: DaemonOrder) -> bool:
        report = self._report(machine, daemon)
        return report is not None and report.running and report.differs == "files"

    def _has_to_be_touched(self, machine: Machine, daemon: DaemonOrder) -> bool:
        report = self._report(machine, daemon)
        return report is None or not report.running or bool(report.differs)

    def _changes(self) -> set[str]:
        """Returns the daemons that were started or restarted."""
        return {
            f"{report.role}-{report.id}"
            for outcome in self._all()
            for report in outcome.reports
            if report.did in ("started", "restarted")
        }

    # ------------------------------------------------------------ what the cluster itself says

    def client(self) -> Client:
        """Returns a client of the cluster, with the administrator's token."""
        token = (self.secrets / "token").read_text().strip()
        urls = [self.config.url(master) for master in self.config.masters]
        return Client(urls, token=token, ca=self.secrets / AUTHORITY_FILE, deadline_s=self._options.wait_s)

    def _introduce(self) -> None:
        """Waits for a leader, and makes hosts known that came into the file later."""
        try:
            with self.client() as client:
                known = {host.name for host in client.hosts()}
                for host in self.config.hosts:
                    if host.name not in known:
                        _add(client, host)
                members = {master.id for master in client.masters()}
                for master in self.config.masters:
                    if master.id not in members:
                        self._tell(f"{master.id} waits to be added: depalmactl master add {master.id} -f FILE")
        except DepalmaError as error:
            self._cluster_problem(f"the cluster does not answer: {error}")

    def _await_agents(self) -> None:
        """Waits until the cluster sees every agent that was started; one that it does not see has failed."""
        waiting = {name.removeprefix("agent-") for name in self._changes() if name.startswith("agent-")}
        deadline = time.monotonic() + self._options.wait_s
        states: dict[str, str] = {}
        try:
            with self.client() as client:
                while waiting and time.monotonic() < deadline:
                    states = {host.name: host.state for host in client.hosts()}
                    waiting = {name for name in waiting if states.get(name) in (None, "down", "lost", "suspect")}
                    time.sleep(0.2 if waiting else 0)
        except DepalmaError as error:
            self._cluster_problem(f"the cluster does not answer: {error}")
            return
        if waiting:
            self._find_reasons(waiting, states)

    def _find_reasons(self, waiting: set[str], states: dict[str, str]) -> None:
        concerned = [m for m in self.machines if any(daemon.id in waiting for daemon in m.only("agent"))]
        self._each(concerned, self._keeper)
        for outcome in self._good():
            for place, report in enumerate(outcome.reports):
                if report.role == "agent" and report.id in waiting and not report.problem:
                    text = f"runs, and the cluster calls it {states.get(report.id, 'unknown')}; see its log"
                    outcome.reports[place] = msgspec.structs.replace(report, problem=text)

    def _cluster_problem(self, text: str) -> None:
        self.cluster_problem = self.cluster_problem or text

    # ------------------------------------------------------------ the machines

    def _all(self) -> list[Outcome]:
        return [self.outcomes[machine.target] for machine in self.machines]

    def _reached(self) -> list[Machine]:
        return [self._wishes[outcome.machine] for outcome in self._good()]

    def _good(self) -> list[Outcome]:
        return [outcome for outcome in self._all() if not outcome.problem]

    def _each(self, machines: Sequence[Machine], work: Callable[[Machine], object]) -> None:
        """Does the work on those machines, so many at once; one that fails is noted and the others go on."""

        def guarded(machine: Machine) -> None:
            try:
                work(machine)
            except HostFailed as error:
                self.outcomes[machine.target].problem = str(error)
            except DepalmaError as error:
                self.outcomes[machine.target].problem = f"{type(error).__name__}: {error}"

        list(self._pool.map(guarded, machines))

    def _keeper(
        self,
        machine: Machine,
        action: Action = "look",
        daemons: Sequence[DaemonOrder] | None = None,
        *,
        only: Role | None = None,
        any_release: bool = False,
    ) -> None:
        """Sends an order about these daemons, or all, and takes the answer. Errors: HostFailed."""
        outcome = self.outcomes[machine.target]
        daemons = machine.daemons if daemons is None else daemons
        if action != "start":  # what is secret goes only where it is needed
            daemons = [msgspec.structs.replace(daemon, files={}) for daemon in daemons]
        patience_s = self._options.patience_s
        order = Order(
            action=action, cluster=self.config.cluster, daemons=tuple(daemons), patience_s=patience_s, only=only
        )
        timeout_s = LOOK_S if action == "look" else len(daemons) * (patience_s + SPARE_S) + SPARE_S
        words = (self.release, self._options.python, "any" if any_release else "")
        done = self._ssh[machine.target].run(installing.KEEPER, *words, stdin=encode(order), timeout_s=timeout_s)
        if done.code == installing.NO_PYTHON:
            raise HostFailed("there is no Python 3.11 or newer with the module venv; --python names one elsewhere")
        if done.code == installing.ORPHANED:
            raise HostFailed("daemons are on record, but what was installed is gone; `cluster up` puts it back")
        if done.code == installing.NOT_INSTALLED and (facts := Facts.read(done.output)):
            outcome.facts = facts
            return
        answer = decode_answer(done.output)
        if answer is None or done.code:
            raise HostFailed(f"the keeper failed: {done.last_error()}")
        outcome.take(answer)

    def _say_what_does_not_run(self, outcome: Outcome) -> None:
        for place, report in enumerate(outcome.reports):
            if not report.running and not report.problem:
                outcome.reports[place] = msgspec.structs.replace(report, problem="not running")


def _is_master(report: DaemonReport) -> bool:
    return report.role == "master"


def _joining(daemons: Iterable[DaemonOrder], joining: bool) -> list[DaemonOrder]:
    """A master without a state must not found a cluster of its own beside one that runs."""
    return [msgspec.structs.replace(daemon, join=joining) for daemon in daemons]


def _planned(daemon: DaemonOrder, report: DaemonReport | None) -> DaemonReport:
    if report is None or not report.running:
        return DaemonReport(role=daemon.role, id=daemon.id, running=False, did="start")
    did = {"restart": "restart", "files": "update", "": ""}[report.differs]
    return msgspec.structs.replace(report, did=did, problem="")


def _add(client: Client, host: HostConfig) -> None:
    try:
        client.add_host(
            host.name,
            groups=host.groups,
            labels=host.labels,
            priority=host.priority,
            slots=host.slots,
            gpus=host.gpus,
        )
    except Rejected as error:
        if error.code != "name_taken":  # a new leader was faster
            raise

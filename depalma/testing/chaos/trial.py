"""One run: a cluster under load, a fault, and the judgement afterwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from depalma.errors import DepalmaError
from depalma.model import FINAL_STATES, JobView
from depalma.testing.chaos import checks, work
from depalma.testing.chaos.cluster import ChaosCluster
from depalma.testing.chaos.judge import Judge
from depalma.testing.chaos.load import Caller, Load, seen
from depalma.testing.chaos.mounts import Mounts
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.report import percentile
from depalma.testing.chaos.sweep import sweep
from depalma.testing.chaos.waiting import TooLate, wait_until
from depalma.testing.chaos.watch import Watch
from depalma.testing.history import History, Operation

#: operations a second before the fault, or the run is void
FLOOR = 100.0
PAGE = 5000
#: the search for an order takes no longer, or it is no check that anybody would run
CHECK_S = 60.0


class Void(Exception):
    """The run says nothing: the load was too low before the fault, or the machine could not make the fault."""


class Trial(Judge):
    """Use it as a context: inside, the cluster is under load; at the end it is healed and judged."""

    def __init__(
        self,
        scenario: str,
        title: str,
        directory: Path,
        *,
        seed: int,
        slack: float = 1.0,
        masters: int = 3,
        agents: int = 2,
        clients: int = 8,
        floor: float = FLOOR,
        load: dict[str, Any] | None = None,
        **cluster: Any,
    ) -> None:
        super().__init__(scenario, title, directory, seed=seed, slack=slack)
        self.history = History()
        self.mounts = Mounts(directory)
        self.network = Network([f"m{i + 1}" for i in range(masters)] + [f"h{i + 1}" for i in range(agents)])
        self._cluster_options: dict[str, Any] = {"masters": masters, "agents": agents, **cluster}
        self._load_options = {"clients": clients, **(load or {})}
        self._floor = floor
        #: jobs that were there before, which nobody here has asked for
        self.foreign: set[int] = set()
        self.cluster: ChaosCluster
        self.load: Load
        self.watch: Watch

    # ------------------------------------------------------------ life

    def __enter__(self) -> Trial:
        sweep()
        self.network.__enter__()
        try:
            self.cluster = ChaosCluster(self.network, self.directory, **self._cluster_options)
            self.watch = Watch(self.cluster)
            diary = work.command(self.directory / "diary") if self.cluster.agents else None
            self.load = Load(self.cluster.client, self.history, self.random, work=diary, **self._load_options)
        except BaseException:
            self._close(failed=True)
            raise
        return self

    def begin(self) -> None:
        """Starts everything; returns when the cluster serves the load. Errors: Void."""
        self.cluster.start()
        self.cluster.wait_ready()
        self.watch.__enter__()
        self.load.start()
        self.wait_for_traffic()

    def wait_for_traffic(self, within_s: float = 60.0) -> None:
        """Returns when enough operations are answered. Errors: Void."""
        deadline = time.monotonic() + within_s
        while True:
            since_s = time.monotonic()
            time.sleep(1.0)
            rate = self.load.rate(since_s)
            if rate >= self._floor:
                return
            if time.monotonic() > deadline:
                raise Void(f"{rate:.0f} operations a second before the fault, at least {self._floor:.0f} are needed")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        judged = False
        try:
            if error is None:
                self._finish()
            judged = True
        except (TooLate, DepalmaError) as late:
            self.report.violations.append(f"{type(late).__name__}: {late}")
        finally:
            swallow = self._note(error)
            self._close(failed=not judged or error is not None or self.report.verdict != "pass")
        return swallow

    def _note(self, error: BaseException | None) -> bool:
        """Puts an error into the report; returns whether that settles it."""
        if isinstance(error, Void):
            self.report.void = str(error)
            return True
        if isinstance(error, TooLate):
            self.report.violations.append(str(error))
            return True
        return False

    def _close(self, *, failed: bool) -> None:
        try:
            if hasattr(self, "load"):
                self.load.abandon()
                if self.watch.running:
                    self.watch.__exit__()
                self.cluster.stop()
        finally:
            self.network.__exit__()
            self.mounts.close(keep=failed)
            self.report.seconds = time.monotonic() - self._began_s
            self.report.operations = len(self.history.operations)
            if failed:
                self.history.save(self.directory / "history.jsonl")
                self.report.kept = str(self.directory)
                (self.directory / "report.txt").write_text("\n".join(self.report.lines()) + "\n")
            else:
                shutil.rmtree(self.directory, ignore_errors=True)

    # ------------------------------------------------------------ looking at the load

    def acknowledged(self, after_s: float, *, not_by: str = "") -> Operation | None:
        """Returns the first write that was acknowledged after that time: by another master than `not_by`, or, without
        one, asked after it."""
        recent = self.history.operations[-2000:]
        found = [
            one
            for one in checks.acknowledged(recent)
            if one.returned_s > after_s and (one.master != not_by if not_by else one.invoked_s >= after_s)
        ]
        return min(found, key=lambda one: one.returned_s, default=None)

    def failover(self, after_s: float, *, not_by: str, within_s: float = 60.0) -> float:
        """Returns the seconds from a fault until another master acknowledged a write; notes them. Errors: TooLate."""
        first = wait_until(
            lambda: self.acknowledged(after_s, not_by=not_by), within_s=within_s, what="a write after the fault"
        )
        assert first is not None
        took_s = first.returned_s - after_s
        self.report.failovers_s.append(took_s)
        return took_s

    def next_started(self, after_s: float, *, not_by: str) -> float:
        """Returns the seconds from a fault until a task ran that another master has acknowledged. Errors: TooLate."""

        def look() -> float:
            after = [one.job for one in list(self.load.works) if one.acknowledged_s > after_s and one.master != not_by]
            began = [life.began_s for life in work.lives(self.directory / "diary") if life.job in after]
            return min(began, default=0.0)

        return wait_until(look, within_s=60.0, what="a task that runs after the fault", every_s=0.02) - after_s

    def acknowledged_again(self, after_s: float, at_most_s: float) -> None:
        """Expects a write that began after a fault to be acknowledged soon. Errors: TooLate."""
        first = wait_until(lambda: self.acknowledged(after_s), within_s=60.0, what="a write after the fault")
        assert first is not None
        self.expect("next write after the fault", first.returned_s - after_s, at_most_s)

    def latency(self, kind: str, since_s: float, until_s: float, percent: float) -> float:
        """Returns how long such operations took that began in this time; those not answered count till now."""
        now = time.monotonic()
        times = [
            min(one.returned_s, now) - one.invoked_s
            for one in list(self.history.operations)
            if one.kind == kind and since_s <= one.invoked_s <= until_s
        ]
        return percentile(times, percent) if times else float("inf")

    def run_for(self, seconds: float) -> None:
        """Lets the load go on."""
        time.sleep(seconds)

    # ------------------------------------------------------------ judging

    def _finish(self) -> None:
        """Everything is healed and runs: the cluster must serve, lose nothing and be the same everywhere."""
        self.report.leader_changes = max(0, len(self.watch.leaders) - 1)
        self.load.stop()
        self._last_operation()
        self._wait_for_work()
        self._compare_masters()
        self.watch.__exit__()
        jobs = self.read_jobs()
        self._judge(jobs)

    def _compare_masters(self) -> None:
        """All are there, and have the same state."""
        died = [name for name in self.cluster.masters if not self.cluster.running(name)]
        for name in died:
            daemon = self.cluster.daemons[name]
            last = daemon.last_lines(1)
            self.report.violations.append(f"{name} ended by itself with exit code {daemon.exit_code}: {last}")
        try:
            if not died:
                self.cluster.wait_same(30.0)
        except TooLate as late:
            self.report.violations.append(f"I8: {late}")

    def _last_operation(self) -> None:
        with self.cluster.client(deadline_s=15.0) as client:
            told = Caller("last", client, self.history, 15.0).submit("last-job", None)
        self.require(told is not None, "the last operation after healing did not succeed")

    def _wait_for_work(self) -> None:
        live = ",".join(state for state in ("queued", "assigned", "running", "blocked", "suspended"))
        with self.cluster.client(deadline_s=15.0) as client:
            try:
                wait_until(
                    lambda: [
                        f"{job.id} {job.state} {job.reason}" for job in client.jobs(state=live, all=True, limit=5)
                    ],
                    lambda left: not left,
                    within_s=60.0,
                    what="all jobs ended",
                    every_s=0.1,
                )
            except TooLate as late:
                self.report.violations.append(f"I9: {late}")

    def read_jobs(self) -> list[JobView]:
        """Reads every job but foreign ones, linearizable, and puts that into the history."""
        with self.cluster.client(deadline_s=30.0) as client:
            before: int | None = None
            found: list[JobView] = []
            while True:
                began_s = time.monotonic()
                page = client.jobs(all=True, limit=PAGE, before=before)
                ended_s = time.monotonic()
                own = [job for job in page if job.id not in self.foreign]
                found += own
                self.history.operations += [
                    Operation("final", "read", job.name, None, began_s, ended_s, seen(job)) for job in own
                ]
                if len(page) < PAGE:
                    return found
                before = page[-1].id

    def _judge(self, jobs: list[JobView]) -> None:
        operations, report = self.history.operations, self.report
        report.acknowledged = len(checks.acknowledged(operations))
        report.unknown = sum(not one.known for one in operations)
        lost = checks.lost(operations, jobs)
        report.lost = len(lost)
        found_lives = work.lives(self.directory / "diary")
        overlaps = work.overlaps(found_lives)
        report.overlaps = len(overlaps)
        report.violations += lost
        report.violations += [f"I3: {one} and {other}" for one, other in overlaps]
        report.violations += checks.doubled(jobs)
        report.violations += checks.unfinished(operations, jobs)
        report.violations += checks.attempts_go_back(operations)
        report.violations += checks.index_goes_back(operations)
        began_s = time.monotonic()
        report.violations += checks.contradictions(operations)
        self.expect("search for an order that explains all answers", time.monotonic() - began_s, CHECK_S)
        report.violations += [f"I8: {fork}" for fork in self.watch.forks]
        report.violations += [f"two leaders of one term: {pair}" for pair in self.watch.double_leaders]
        self.note(f"{len(jobs)} jobs, {len(found_lives)} tasks ran, {_finals(jobs)} ended")


def _finals(jobs: Iterable[JobView]) -> int:
    return sum(job.state in FINAL_STATES for job in jobs)

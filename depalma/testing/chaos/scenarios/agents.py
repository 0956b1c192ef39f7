"""F14 to F16, and F27 (the rates of F17): agents that are cut off, stand still, die, or have a clock that is off."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depalma.client.client import Client
from depalma.client.job import JobHandle
from depalma.lease import lease_times
from depalma.testing.chaos import witness
from depalma.testing.chaos.requirements import faketime_library
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until

#: the test scale of these faults: an agent stops after 2 s, masters move its work after 3.5 s
SETTINGS = {"lease_s": 2.0, "lease_margin": 0.75, "heartbeat_s": 0.25}
TIMES = lease_times(2.0, 0.75, 0.25)
STOP_WITHIN_S = TIMES.stop_s + 0.5
MOVED_WITHIN_S = 5.0
BACK_WITHIN_S = 5.0
SURVIVE_S = 2.0
LEAST_GAP_S = 0.5


class Witnesses:
    """Hiding tasks on the agents of a trial, and where they are."""

    def __init__(self, trial: Trial, tasks: int) -> None:
        self.trial = trial
        self.file = trial.directory / "witness"
        self.flag = trial.directory / "witness.enough"
        self.tasks = tasks
        argv = witness.command(self.file, self.flag)
        with trial.cluster.client() as client:
            submit(trial, client, "witnesses", argv, array=tasks)
        wait_until(self.running, lambda seen: seen == tasks, within_s=15, what="all witnesses running")

    def running(self) -> int:
        """Returns how many tasks have a whole tree, on any host."""
        seen = Counter(task for host in self.trial.cluster.agents for task in self.on(host) if task)
        return sum(count >= witness.SAYING for count in seen.values())

    def on(self, host: str) -> list[str]:
        """Returns the task of each process on a host."""
        space = self.trial.network.namespace(host)
        return witness.living(self.file, os.stat(Path("/run/netns") / space).st_ino)

    def busiest(self) -> str:
        """Returns the host with most of them."""
        return max(self.trial.cluster.agents, key=lambda host: len(self.on(host)))

    def dead(self, host: str, since_s: float, within_s: float) -> float:
        """Returns after how many seconds nothing of them was left on a host. Errors: TooLate."""
        wait_until(lambda: self.on(host), lambda left: not left, within_s=within_s + 10, what=f"{host} has none left")
        return time.monotonic() - since_s

    def moved(self, since_s: float) -> float:
        """Returns after how many seconds all of them ran (again). Errors: TooLate."""
        wait_until(self.running, lambda seen: seen >= self.tasks, within_s=30, what="all witnesses running again")
        return time.monotonic() - since_s


def submit(trial: Trial, client: Client, name: str, argv: list[str], **options: Any) -> JobHandle:
    """Submits a job whose tasks run, and notes that in the history."""
    operation = trial.history.invoke("witness", "submit", name, (options.get("array", 1), True))
    job = client.command(argv, name=name, cwd=str(trial.directory), **options)
    trial.history.complete(operation, True)
    return job


@contextmanager
def witnessed(trial: Trial, tasks: int) -> Iterator[Witnesses]:
    """Witnesses that run meanwhile; in the end all attempts of each task are compared."""
    running = Witnesses(trial, tasks)
    try:
        yield running
    finally:
        running.flag.touch()
    broken = witness.describe(witness.overlapping(running.file))
    trial.report.overlaps += len(broken)
    trial.report.violations += broken
    gaps = witness.gaps_s(running.file)
    trial.require(gaps, "no task was moved: the fault was none")
    if gaps:
        trial.note(f"{len(gaps)} attempts were moved, smallest gap {min(gaps):.2f} s")


def is_up(trial: Trial, host: str) -> bool:
    """Returns whether the cluster counts on a host."""
    with trial.cluster.client() as client:
        return any(view.name == host and view.state == "up" for view in client.hosts())


def back(trial: Trial, host: str, since_s: float) -> None:
    """Expects a host to be up again soon."""
    wait_until(lambda: is_up(trial, host), within_s=30, what=f"{host} is up again", every_s=0.05)
    trial.expect(f"{host} back", time.monotonic() - since_s, BACK_WITHIN_S)


@scenario("F14", "cut an agent off", short={"times": 1}, whole={"times": 50}, agents=3, settings=SETTINGS)
def cut_agent_off(trial: Trial, times: int) -> None:
    """It hears no master, and no master hears it: its tasks die before they start elsewhere."""
    trial.begin()
    with witnessed(trial, tasks=4) as witnesses:
        for _ in range(times):
            host = witnesses.busiest()
            cut_s = time.monotonic()
            trial.network.cut(host, trial.cluster.masters)
            trial.expect("its trees dead", witnesses.dead(host, cut_s, STOP_WITHIN_S), STOP_WITHIN_S)
            trial.expect("all run elsewhere", witnesses.moved(cut_s), MOVED_WITHIN_S)
            healed_s = time.monotonic()
            trial.network.heal()
            back(trial, host, healed_s)
    smallest = min(witness.gaps_s(trial.directory / "witness"), default=0.0)
    trial.require(smallest >= LEAST_GAP_S, f"a task was moved only {smallest:.2f} s after its last sign of life")


@scenario("F15", "freeze an agent (SIGSTOP) past its lease", short={"times": 1}, whole={"times": 20}, agents=3,
          settings=SETTINGS)  # fmt: skip
def freeze_agent(trial: Trial, times: int) -> None:
    """It stands still with results in its sockets, wakes up long after its work was given to others, and reports."""
    trial.begin()
    with witnessed(trial, tasks=4) as witnesses:
        for number in range(times):
            host = witnesses.busiest()
            with trial.cluster.client() as client:
                # It ends while its agent cannot say so; the agent will, if it still believes in it.
                stale = submit(trial, client, f"stale-{number}", ["sleep", "0.4"], on_host=host)
                wait_until(
                    lambda job=stale: job.tasks()[0].state,  # type: ignore[misc]
                    lambda state: state in ("assigned", "running"),
                    within_s=5,
                    what="the task that will be stale has a host",
                )
                frozen_s = time.monotonic()
                trial.cluster.signal(signal.SIGSTOP, host)
                trial.expect("its trees dead", witnesses.dead(host, frozen_s, STOP_WITHIN_S), STOP_WITHIN_S)
                trial.expect("all run elsewhere", witnesses.moved(frozen_s), MOVED_WITHIN_S)
                trial.cluster.signal(signal.SIGCONT, host)
                back(trial, host, time.monotonic())
                task = wait_until(
                    lambda job=stale: job.tasks()[0],  # type: ignore[misc]
                    lambda seen: seen.state == "succeeded",
                    within_s=20,
                    what="the task that was stale ran again",
                )
            words = [attempt.state for attempt in task.attempts]
            trial.require(task.attempt > 1, f"the result of a lost attempt was taken: attempts {words}")


@scenario("F16", "SIGKILL agents whose tasks hide", short={"times": 2}, whole={"times": 25}, agents=3,
          settings=SETTINGS)  # fmt: skip
def kill_agent(trial: Trial, times: int) -> None:
    """Nothing of a task survives its agent, however it hides; the work moves at once, without waiting for a lease."""
    trial.begin()
    survivors = killed = 0
    with witnessed(trial, tasks=4) as witnesses:
        for _ in range(times):
            host = witnesses.busiest()
            killed += len(witnesses.on(host))
            killed_s = time.monotonic()
            trial.cluster.kill(host)
            took_s = witnesses.dead(host, killed_s, SURVIVE_S)
            survivors += took_s > SURVIVE_S * trial.slack
            trial.expect("its trees dead", took_s, SURVIVE_S)
            trial.expect("all run elsewhere", witnesses.moved(killed_s), MOVED_WITHIN_S)
            trial.cluster.start(host)
            back(trial, host, time.monotonic())
    trial.note(f"{killed} processes of killed agents, {survivors} times one was there after {SURVIVE_S:g} s")
    trial.require(not survivors, "a process survived its agent")


@scenario("F27", "clocks whose rate is off by 5 %", short={"times": 1}, whole={"times": 10}, agents=3,
          needs=("faketime",), settings={"lease_s": 2.0})  # fmt: skip
def wrong_rates(trial: Trial, times: int) -> None:
    """The agents' clocks are slow, those of the masters fast: the worst that the margin of the defaults allows."""
    rate: Callable[[float], dict[str, str]] = lambda factor: {  # noqa: E731
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME": f"+0 x{factor:g}",
    }
    for name in trial.cluster.masters:
        trial.cluster.environ[name] = rate(1.05)
    for name in trial.cluster.agents:
        trial.cluster.environ[name] = rate(0.95)
    trial.begin()
    with witnessed(trial, tasks=4) as witnesses:
        for _ in range(times):
            host = witnesses.busiest()
            cut_s = time.monotonic()
            trial.network.cut(host, trial.cluster.masters)
            trial.expect("its trees dead", witnesses.dead(host, cut_s, 2.0), 2.0 / 0.95 + 0.5)
            witnesses.moved(cut_s)
            trial.network.heal()
            back(trial, host, time.monotonic())

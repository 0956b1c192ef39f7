"""F28: a stream of tasks on agents that are killed, frozen and cut off at random, under leaders that are too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from depalma.agent import proctree
from depalma.agent.driver import EXIT_CUT_OFF
from depalma.testing.chaos import attempts
from depalma.testing.chaos.scenarios.agents import SETTINGS, SURVIVE_S, TIMES
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.stream import Stream
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until

#: tasks that wait or run at a time
AHEAD = 120
#: faults of agents at a time: somebody must do the work
AT_ONCE = 2
LEADER = "the leader"


@scenario("F28", "agents under every fault, each task with a witness", short={"tasks": 200, "faults": 8},
          whole={"tasks": 10_000, "faults": 200}, agents=4, clients=2, floor=10.0, load={"pause_s": 0.05},
          needs=("flock",), settings=SETTINGS)  # fmt: skip
def everything_at_agents(trial: Trial, tasks: int, faults: int) -> None:
    """Random faults as long as tasks run: each task ends once, its attempts never overlap, nothing survives its end."""
    for name in trial.cluster.agents[::2]:  # the others rejoin by themselves
        trial.cluster.differ(name, on_cut_off="exit")
    trial.begin()
    nemesis = AgentNemesis(trial)
    with (
        trial.cluster.client(deadline_s=60.0) as client,
        Stream(client, trial.history, trial.directory, tasks, ahead=AHEAD) as stream,
    ):
        trial.foreign = stream.once
        while stream.submitting or (sum(nemesis.struck.values()) < faults) or stream.live():
            nemesis.turn()
            time.sleep(0.05)
        nemesis.end()
        wait_until(stream.live, lambda left: not left, within_s=60, what="all tasks of the stream ended", every_s=0.1)
        wait_until(stream.living, lambda left: not left, within_s=SURVIVE_S * trial.slack, what="nothing left of them")
        _judge(trial, stream, tasks)
    trial.note(", ".join(f"{what} {count}" for what, count in sorted(nemesis.struck.items())))
    trial.note(f"agents that ended by themselves after a cut: {nemesis.ended}")
    trial.expect_many("faults", sum(nemesis.struck.values()), faults)
    trial.expect_many("kinds of faults", len(nemesis.struck), 6)


def _judge(trial: Trial, stream: Stream, wanted: int) -> None:
    found, tasks = stream.signs(), stream.tasks()
    broken = attempts.overlapping(found)
    trial.report.overlaps += len(broken)
    trial.report.violations += broken + attempts.misrecorded(found, tasks, stream.once)
    boot_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    late = attempts.outlived_s(found, tasks, boot_at)
    trial.report.violations += [f"{what} lived {s:.2f} s after its end" for what, s in late.items() if s > SURVIVE_S]
    trial.expect("signs of life after the recorded end", max(late.values(), default=0.0), SURVIVE_S)
    ran = attempts.lives(found)
    began = {life.task for life in ran}
    lost = [task.id for task in tasks if task.state == "lost"]
    trial.expect_many("tasks", len(tasks), wanted)
    trial.expect_many("attempts that had to be made again", len(ran) - len(began), 1)
    trial.note(f"{len(tasks)} tasks, {len(ran)} attempts, {len(found)} signs of life")
    trial.note(f"{len(lost)} tasks that may run once were lost, {len(set(lost) - began)} of them had not begun")
    trial.none_of("attempts of one task that overlap", len(broken), "two attempts of a task lived at the same time")


class AgentNemesis:
    """Makes one fault after the other, each with an end, at most one on a host, and at most one on a leader."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._cluster = trial.cluster
        self._random = trial.random
        #: what ends a fault, when, by whom it hurts
        self._ends: dict[str, tuple[float, Callable[[], None]]] = {}
        self._next_s = 0.0
        self.struck: Counter[str] = Counter()
        self.ended = 0
        self._agent_faults: dict[str, Callable[[str], Callable[[], None]]] = {
            "agent killed": self._kill,
            "agent restarted": self._restart,
            "monitor killed": self._kill_monitor,
            "agent frozen": self._freeze,
            "monitor frozen": self._freeze_monitor,
            "agent and monitor killed": self._kill_both,
            "agent killed, monitor frozen": self._kill_beside_frozen_monitor,
            "agent cut off": self._cut,
            "agent deaf": self._deafen,
            "agent not heard": self._silence,
        }

    def turn(self) -> None:
        """Ends what is due, starts agents that have ended, and makes the next fault when its time has come."""
        now = time.monotonic()
        for name in [name for name, (due_s, _) in self._ends.items() if due_s <= now]:
            self._ends.pop(name)[1]()
        self._supervise()
        if now >= self._next_s:
            self._next_s = now + self._random.uniform(0.3, 2.0)
            self._strike(now)

    def end(self) -> None:
        """Ends every fault."""
        for _, heal in self._ends.values():
            heal()
        self._ends.clear()
        self._supervise()

    def _strike(self, now: float) -> None:
        if self._random.random() < 0.15:
            if LEADER not in self._ends:
                self._ends[LEADER] = (now + self._random.uniform(0.5, 4.0), self._hurt_leader())
            return
        free = [name for name in self._cluster.agents if name not in self._ends and self._cluster.running(name)]
        if not free or len(self._ends.keys() - {LEADER}) >= AT_ONCE:
            return
        host, what = self._random.choice(free), self._random.choice(list(self._agent_faults))
        longer = self._random.random() < 0.5
        # For less than the lease: nobody may notice. For more: it must have stopped itself before others begin.
        lasts_s = self._random.uniform(TIMES.move_s, TIMES.move_s + 3) if longer else self._random.uniform(0.1, 1.5)
        self.struck[f"{what}{' for long' if longer else ''}"] += 1
        self._ends[host] = (now + lasts_s, self._agent_faults[what](host))

    def _supervise(self) -> None:
        """As systemd does. One that was cut off may have ended by itself, and says so by its exit code."""
        for name in self._cluster.agents:
            if name not in self._ends and not self._cluster.running(name):
                code = self._cluster.daemons[name].exit_code
                said = self._cluster.daemons[name].last_lines(1)
                self._trial.require(code == EXIT_CUT_OFF, f"{name} ended by itself with exit code {code}: {said}")
                self.ended += 1
                self._cluster.start(name)

    # ------------------------------------------------------------ faults; each returns what ends it

    def _kill(self, host: str) -> Callable[[], None]:
        self._cluster.kill(host)
        return lambda: self._cluster.start(host)

    def _restart(self, host: str) -> Callable[[], None]:
        self._cluster.signal(signal.SIGTERM, host)

        def start() -> None:
            wait_until(lambda: self._cluster.running(host), lambda up: not up, within_s=30, what=f"{host} has stopped")
            self._cluster.start(host)

        return start

    def _kill_monitor(self, host: str) -> Callable[[], None]:
        self._signal_monitor(host, self._monitor(host), signal.SIGKILL)
        return lambda: None

    def _freeze(self, host: str) -> Callable[[], None]:
        self._cluster.signal(signal.SIGSTOP, host)
        return lambda: self._cluster.signal(signal.SIGCONT, host)

    def _freeze_monitor(self, host: str) -> Callable[[], None]:
        pid = self._monitor(host)
        self._signal_monitor(host, pid, signal.SIGSTOP)
        return lambda: self._signal_monitor(host, pid, signal.SIGCONT)

    def _kill_both(self, host: str) -> Callable[[], None]:
        """In the same moment: neither can end anything for the other, or tell anybody."""
        pid = self._monitor(host)
        self._cluster.signal(signal.SIGSTOP, host)
        self._signal_monitor(host, pid, signal.SIGKILL)
        return self._kill(host)

    def _kill_beside_frozen_monitor(self, host: str) -> Callable[[], None]:
        pid = self._monitor(host)
        self._signal_monitor(host, pid, signal.SIGSTOP)
        monitor = proctree.stat(pid)
        start = self._kill(host)

        def go_on() -> None:
            if monitor is not None:
                proctree.send_same(pid, monitor.start, signal.SIGCONT)
            start()

        return go_on

    def _monitor(self, host: str) -> int:
        """Returns the process id of the host's monitor, 0 if it has none at the moment."""
        for pid in proctree.children(self._cluster.pid(host)):
            with contextlib.suppress(OSError):
                if b"monitor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    def _signal_monitor(self, host: str, pid: int, number: int) -> None:
        if pid and pid == self._monitor(host):
            os.kill(pid, number)

    def _cut(self, host: str) -> Callable[[], None]:
        self._deafen(host)
        return self._silence(host)

    def _deafen(self, host: str) -> Callable[[], None]:
        self._trial.network.deafen(host, self._cluster.masters)
        return lambda: self._trial.network.heal(host)

    def _silence(self, host: str) -> Callable[[], None]:
        self._trial.network.silence(host, self._cluster.masters)
        return lambda: self._trial.network.heal(host)

    def _hurt_leader(self) -> Callable[[], None]:
        leaders = [view.id for view in self._cluster.statuses() if view.role == "leader"]
        leader = leaders[0] if leaders else self._random.choice(self._cluster.masters)
        if self._random.random() < 0.5:
            self.struck["leader killed"] += 1
            self._cluster.kill(leader)
            return lambda: self._cluster.start(leader)
        self.struck["leader frozen"] += 1
        self._cluster.signal(signal.SIGSTOP, leader)
        return lambda: self._cluster.signal(signal.SIGCONT, leader)

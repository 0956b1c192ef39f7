"""F17 to F19: clocks that jump, clients that insist, and everything at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from depalma.testing.chaos.load import Caller
from depalma.testing.chaos.requirements import faketime_library
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.slow import slowed
from depalma.testing.chaos.strace import injected
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until


@scenario("F17", "wall clocks jump by an hour", short={"jumps": 4, "each_s": 2.0}, whole={"jumps": 20, "each_s": 5.0},
          needs=("faketime",))  # fmt: skip
def jump_clocks(trial: Trial, jumps: int, each_s: float) -> None:
    """The wall clock of one master (the leader, as often as not) and of one agent jumps; nothing may depend on it."""
    jumping = ["m1", "m2", "h1"]
    for name in jumping:
        clock = _set_clock(trial, name, 0)
        trial.cluster.environ[name] = {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    trial.begin()
    began_s = time.monotonic()
    for i in range(jumps):
        for name in jumping:
            seconds = trial.random.choice([-3600, 0, 3600]) if i < jumps - 1 else 0
            _set_clock(trial, name, seconds)
        trial.run_for(each_s)
    trial.expect("leader changes", trial.watch.changes(began_s), 2, "")
    trial.require("lost" not in _host_states(trial), f"a clock that jumped cost a host: {_host_states(trial)}")


def _set_clock(trial: Trial, name: str, seconds: int) -> Path:
    """Sets a process's wall clock beside the true one, atomically: an empty file would be a time too."""
    clock, temporary = trial.directory / f"clock-{name}", trial.directory / f"clock-{name}.tmp"
    temporary.write_text(f"{seconds:+d}")
    return temporary.rename(clock)


def _host_states(trial: Trial) -> list[str]:
    with trial.cluster.client() as client:
        states: list[str] = [host.state for host in client.hosts()]
        return states + ["lost" for event in client.events() if event.kind == "host.lost"]


@scenario("F18", "keyed submits while leaders die", short={"submits": 240, "seconds": 12.0},
          whole={"submits": 1000, "seconds": 60.0})  # fmt: skip
def insist(trial: Trial, submits: int, seconds: float) -> None:
    """Clients submit with keys and insist; leaders are killed each 5 s: as many jobs as keys, each found."""
    trial.begin()
    insisting = Insisting(trial, submits, clients=8, pause_s=8 * seconds / submits)
    insisting.start()
    while insisting.busy():
        trial.run_for(2.5)
        leader = trial.cluster.leader()
        trial.cluster.kill(leader)
        trial.run_for(1.0)
        trial.cluster.start(leader)
        rejoined(trial, leader)
        trial.run_for(1.5)
    insisting.join()
    names = [job.name for job in trial.read_jobs() if job.name.startswith("once-")]
    trial.require(len(insisting.ids) == submits, f"{submits - len(insisting.ids)} keys were never answered")
    trial.require(sorted(names) == sorted(insisting.ids), f"{submits} keys made {len(names)} jobs")
    trial.require(len(set(insisting.ids.values())) == submits, "two keys were given one job")
    trial.expect("a client's call, beyond its deadline", insisting.overdue_s, 1.0)
    trial.expect_many("keyed submits", submits, submits)
    trial.note(f"{submits} keys, {len(names)} jobs, {insisting.again} calls were repeated after their deadline")


class Insisting:
    """Clients that submit one key after the other, each until the job's id is told."""

    DEADLINE_S = 4.0

    def __init__(self, trial: Trial, submits: int, *, clients: int, pause_s: float) -> None:
        self._trial = trial
        self._pause_s = pause_s
        self._keys = [f"once-{i}" for i in range(submits)]
        self._lock = threading.Lock()
        self.ids: dict[str, int] = {}
        self.overdue_s = 0.0
        self.again = 0
        self._threads = [
            threading.Thread(target=self._run, args=(f"k{i}",), name="chaos-insist") for i in range(clients)
        ]

    def start(self) -> None:
        """Returns at once."""
        for thread in self._threads:
            thread.start()

    def busy(self) -> bool:
        """Returns whether there are keys left."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Returns when all keys are answered."""
        for thread in self._threads:
            thread.join()

    def _run(self, name: str) -> None:
        with self._trial.cluster.client() as client:
            caller = Caller(name, client, self._trial.history, self.DEADLINE_S)
            while key := self._next():
                while (job_id := self._submit(caller, key)) is None:
                    self.again += 1
                self.ids[key] = job_id
                time.sleep(self._trial.random.uniform(0, 2 * self._pause_s))

    def _next(self) -> str:
        with self._lock:
            return self._keys.pop() if self._keys else ""

    def _submit(self, caller: Caller, key: str) -> int | None:
        began_s = time.monotonic()
        job_id = caller.submit(key, None)
        self.overdue_s = max(self.overdue_s, time.monotonic() - began_s - self.DEADLINE_S)
        return job_id


# ---------------------------------------------------------------- F19


@scenario("F19", "everything at random", short={"seconds": 25.0, "operations": 1000},
          whole={"seconds": 600.0, "operations": 10_000}, needs=("strace",))  # fmt: skip
def everything(trial: Trial, seconds: float, operations: int) -> None:
    """One fault after the other, drawn by the seed; between them a moment of health, but not always."""
    trial.begin()
    nemesis = Nemesis(trial)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        nemesis.strike()
        trial.run_for(trial.random.uniform(0.5, 3.0))
        if trial.random.random() < 0.8:
            nemesis.heal()
            trial.run_for(trial.random.uniform(0.2, 1.5))
    nemesis.heal()
    healed_s = time.monotonic()
    wait_until(trial.cluster.no_one_missing, within_s=30, what="all masters after the last fault")
    trial.expect("all masters back after the last fault", time.monotonic() - healed_s, 15.0)
    trial.note(f"faults: {', '.join(nemesis.struck)}")
    trial.expect_many("operations", len(trial.history.operations), operations)


class Nemesis:
    """Makes faults and takes them back."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._healers: list[Callable[[], None]] = []
        #: masters and agents that are frozen, slowed or traced: one such thing at a time
        self._busy: set[str] = set()
        self.struck: list[str] = []

    def strike(self) -> None:
        """One fault."""
        faults = {
            "kill the leader": self._kill_leader,
            "kill a master": self._kill_one,
            "kill all masters": self._kill_all,
            "freeze the leader": self._freeze,
            "cut one off": self._cut,
            "cut one way": self._cut_one_way,
            "lose packets": self._lose,
            "pull a cable": self._pull,
            "slow one down": self._slow,
            "slow its disk": self._slow_disk,
            "fail its syncs": self._fail_syncs,
            "kill an agent": self._kill_agent,
            "freeze an agent": self._freeze_agent,
        }
        name = self._trial.random.choice(list(faults))
        self.struck.append(name)
        faults[name]()

    def heal(self) -> None:
        """All faults are over; what was dead is started."""
        while self._healers:
            self._healers.pop()()
        self._trial.network.heal()

    def _any(self) -> str:
        return self._trial.random.choice(self._trial.cluster.masters)

    def _likely_leader(self) -> str:
        leaders = [view.id for view in self._trial.cluster.statuses() if view.role == "leader"]
        return leaders[0] if leaders else self._any()

    def _kill(self, *names: str) -> None:
        cluster = self._trial.cluster
        alive = [name for name in names if cluster.running(name)]
        cluster.kill(*alive)
        for name in alive:
            self._healers.append(lambda at=name: cluster.start(at))  # type: ignore[misc]

    def _kill_leader(self) -> None:
        self._kill(self._likely_leader())

    def _kill_one(self) -> None:
        self._kill(self._any())

    def _kill_all(self) -> None:
        self._kill(*self._trial.cluster.masters)

    def _kill_agent(self) -> None:
        self._kill(self._trial.random.choice(self._trial.cluster.agents))

    def _hold(self, name: str, hold: Callable[[], AbstractContextManager[object]]) -> bool:
        """Does something to a running process until all is healed; returns whether it was free for that."""
        if not self._trial.cluster.running(name) or name in self._busy:
            return False
        stack = ExitStack()
        stack.enter_context(hold())
        self._busy.add(name)
        stack.callback(self._busy.discard, name)
        self._healers.append(stack.close)
        return True

    def _stop(self, name: str) -> None:
        self._hold(name, lambda: self._stopped(name))

    @contextmanager
    def _stopped(self, name: str) -> Iterator[None]:
        self._trial.cluster.signal(signal.SIGSTOP, name)
        yield
        self._trial.cluster.signal(signal.SIGCONT, name)

    def _freeze(self) -> None:
        self._stop(self._likely_leader())

    def _freeze_agent(self) -> None:
        self._stop(self._trial.random.choice(self._trial.cluster.agents))

    def _cut(self) -> None:
        name = self._likely_leader() if self._trial.random.random() < 0.6 else self._any()
        others = self._trial.cluster.masters + (self._trial.cluster.agents if self._trial.random.random() < 0.5 else [])
        self._trial.network.cut(name, others)

    def _cut_one_way(self) -> None:
        one, other = self._trial.random.sample(self._trial.cluster.masters, 2)
        self._trial.network.block([one], other)

    def _lose(self) -> None:
        self._trial.network.lose(self._any(), self._trial.random.choice([5, 20, 50]))

    def _pull(self) -> None:
        name = self._trial.random.choice(self._trial.network.names)
        self._trial.network.link(name, up=False)
        self._healers.append(lambda: self._trial.network.link(name, up=True))

    def _slow(self) -> None:
        name = self._any()
        self._hold(name, lambda: slowed(self._trial.cluster.pid(name), 0.1))

    def _slow_disk(self) -> None:
        self._inject(self._any(), "delay_enter=200000")

    def _fail_syncs(self) -> None:
        """The master stops by itself; it is started again when all is healed."""
        name = self._any()
        if self._inject(name, "error=EIO"):
            self._healers.append(lambda: self._start(name))

    def _start(self, name: str) -> None:
        """Starts it anew, also if it has not met its fault yet."""
        if self._trial.cluster.running(name):
            self._trial.cluster.kill(name)
        self._trial.cluster.start(name)

    def _inject(self, name: str, injection: str) -> bool:
        log = self._trial.directory / f"strace-{len(self.struck)}"
        return self._hold(name, lambda: injected(self._trial.cluster.pid(name), injection, log))

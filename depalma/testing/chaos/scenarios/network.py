"""F9 to F13: masters that cannot hear each other, or that stand still."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from depalma.model import JobView
from depalma.testing.chaos.load import Caller, KnownJob, seen
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial

#: design section 9
SILENT_P99_S = 1.5
#: after so long a leader that reaches no majority answers no linearizable read
FALLBACK_S = 2.0
#: a reader gives up so soon, so that many reads are under way over the time of a cut
READ_S = 0.2
READERS = 6
_view = msgspec.json.Decoder(JobView)


class Reader:
    """Reads one job from one master, and from no other, as fast as it can; on that master's own machine.

    Meanwhile somebody else changes the job through the other masters: whatever this reads goes into the history, so
    that an old value is a contradiction there.
    """

    def __init__(self, trial: Trial, master: str, job: KnownJob) -> None:
        self._trial = trial
        self._master = master
        self._job = job
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-reader")
        #: when it asked, and when it was answered with a value
        self.answers: list[tuple[float, float]] = []
        self.asked = 0

    def _run(self) -> None:
        with self._trial.network.visiting(self._master):
            while not self._stopping.is_set():
                self._read()

    def _read(self) -> None:
        history = self._trial.history
        operation = history.invoke(f"reader-{self._master}", "read", self._job.key)
        self.asked += 1
        status, body = self._trial.cluster.get(self._master, f"/v1/jobs/{self._job.id}", timeout_s=READ_S)
        if status == 200:
            history.complete(operation, seen(_view.decode(body)), master=self._master)
            self.answers.append((operation.invoked_s, operation.returned_s))
        else:
            self._stopping.wait(0.002)

    def answered_between(self, begin_s: float, end_s: float) -> int:
        """Returns how many reads that were asked in this time were answered in it."""
        return sum(begin_s <= asked and answered <= end_s for asked, answered in self.answers)


@contextmanager
def watched(trial: Trial, master: str) -> Iterator[list[Reader]]:
    """Readers on this master, of a job that a client changes through whichever master leads."""
    with trial.cluster.client(deadline_s=10.0) as client:
        caller = Caller("writer", client, trial.history, 10.0)
        readers, stopping = [], threading.Event()
        number = len(trial.report.notes)
        jobs = []
        for i in range(READERS):
            job_id = caller.submit(f"watched-{master}-{number}-{i}", None)
            assert job_id is not None, "the jobs to watch could not be submitted"
            jobs.append(KnownJob(f"watched-{master}-{number}-{i}", job_id, False))
        readers = [Reader(trial, master, job) for job in jobs]

        def write() -> None:
            while not stopping.wait(0.05):
                for job in jobs:
                    caller.add(job)

        writer = threading.Thread(target=write, name="chaos-writer")
        for thread in (writer, *(reader._thread for reader in readers)):
            thread.start()
        try:
            yield readers
        finally:
            stopping.set()
            for reader in readers:
                reader._stopping.set()
            for thread in (writer, *(reader._thread for reader in readers)):
                thread.join()


@scenario("F9", "cut the leader off, both ways", short={"times": 1, "cut_s": 6.0, "reads": 100},
          whole={"times": 3, "cut_s": 30.0, "reads": 1000})  # fmt: skip
def cut_leader_off(trial: Trial, times: int, cut_s: float, reads: int) -> None:
    """The leader reaches no other master for a while; clients beside it go on asking it.

    A read that shows an old value contradicts the history (I7).
    """
    trial.begin()
    asked = answered = 0
    for _ in range(times):
        old = trial.cluster.leader()
        with watched(trial, old) as readers:
            trial.run_for(0.5)
            cut_at_s = time.monotonic()
            trial.network.cut(old, trial.cluster.masters)
            trial.failover(cut_at_s, not_by=old)
            trial.run_for(cut_s - (time.monotonic() - cut_at_s))
            healed_s = time.monotonic()
            trial.network.heal()
            took_s = rejoined(trial, old)
            trial.expect("caught up after the heal", took_s, 5.0)
        late = sum(reader.answered_between(cut_at_s + FALLBACK_S, healed_s) for reader in readers)
        asked += sum(reader.asked for reader in readers)
        answered += sum(len(reader.answers) for reader in readers)
        otherwise = f"the old leader answered {late} linearizable reads later than {FALLBACK_S:g} s"
        trial.none_of(f"reads answered by the old leader later than {FALLBACK_S:g} s", late, otherwise)
    trial.note(f"{answered} of {asked} reads were answered by the leader that was cut off, none with an old value")
    trial.expect_many("reads asked of the leader that was cut off", asked, reads)
    trial.expect_failovers(p99_s=SILENT_P99_S)


@scenario("F13", "freeze the leader (SIGSTOP)", short={"times": 2, "stop_s": 3.0, "reads": 100},
          whole={"times": 20, "stop_s": 6.0, "reads": 1000})  # fmt: skip
def freeze_leader(trial: Trial, times: int, stop_s: float, reads: int) -> None:
    """The leader stands still, is replaced, and goes on as if no time had passed, with requests in its sockets."""
    trial.begin()
    asked = answered = 0
    for _ in range(times):
        old = trial.cluster.leader()
        with watched(trial, old) as readers:
            trial.run_for(0.5)
            stopped_s = time.monotonic()
            trial.cluster.signal(signal.SIGSTOP, old)
            trial.failover(stopped_s, not_by=old)
            trial.run_for(stop_s - (time.monotonic() - stopped_s))
            trial.cluster.signal(signal.SIGCONT, old)
            rejoined(trial, old)
            trial.run_for(0.5)
        asked += sum(reader.asked for reader in readers)
        answered += sum(len(reader.answers) for reader in readers)
    trial.note(f"{answered} of {asked} reads were answered by the leader that was frozen, none with an old value")
    trial.expect_many("reads asked of the leader that was frozen", asked, reads)
    trial.expect_failovers(p99_s=SILENT_P99_S)

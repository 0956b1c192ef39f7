"""A stream of tasks of every kind, each with a witness: short ones, some of up to two seconds, some that hide."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from depalma.client.client import Client
from depalma.client.job import JobHandle
from depalma.model import TaskView
from depalma.testing.chaos import witness
from depalma.testing.chaos.attempts import Sign, signs
from depalma.testing.history import History

#: tasks of one job; the kind of each follows from its index
BATCH = 40
#: one job in so many may not run again
ONCE_EVERY = 8
#: a call goes on for so long while leaders die
DEADLINE_S = 60.0
_LIVE = "queued,assigned,running"
_SCRIPT = """\
say() { read up _ </proc/uptime; echo "$1 $task $attempt $$ $up" >>"$0"; }
task=$DEPALMA_JOB_ID.$DEPALMA_TASK_INDEX attempt=$DEPALMA_ATTEMPT
exec 9>>"$1/$task"
flock -n 9 || say held
say start
hide() { setsid sh -c "$child" "$0" "$task" "$attempt" & }
run() { for i in $(seq "$1"); do sleep 0.1; say alive; done; }
child=$2
case $((DEPALMA_TASK_INDEX % 20)) in
  12) run 1;; 13) run 3;; 14) run 6;; 15) run 10;; 16) run 15;; 17) run 20;;
  18) trap '' TERM HUP INT; hide; (hide); run 4;;
  19) trap '' TERM HUP INT; (hide); (hide);;
esac
say stop
"""
_CHILD = """\
trap '' TERM HUP INT
say() { read up _ </proc/uptime; echo "$1 $task $attempt $$ $up" >>"$0"; }
task=$1 attempt=$2
say born
while :; do sleep 0.1; say alive; done
"""


class Stream:
    """Submits jobs in a thread, as fast as they are worked off, until there were so many tasks."""

    def __init__(self, client: Client, history: History, directory: Path, tasks: int, *, ahead: int) -> None:
        self.file = directory / "witness"
        self.once: set[int] = set()  #: jobs that may not run again
        self.error: BaseException | None = None
        self._locks = directory / "locks"
        self._locks.mkdir()
        self._client = client
        self._history = history
        self._directory = directory
        self._wanted = tasks
        self._ahead = ahead
        self._jobs: list[JobHandle] = []
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="chaos-stream")

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        self._thread.join()

    @property
    def submitting(self) -> bool:
        """Whether there is more to come. Errors: what the thread met."""
        if self.error is not None:
            raise self.error
        return self._thread.is_alive()

    def live(self) -> int:
        """Returns how many tasks have not ended."""
        mine = {job.id for job in self._jobs}
        found = self._client.jobs(state=_LIVE, all=True, limit=1000)
        return sum(job.tasks.queued + job.tasks.running for job in found if job.id in mine)

    def tasks(self) -> list[TaskView]:
        """Returns what the cluster recorded of each."""
        return [task for job in self._jobs for task in job.tasks()]

    def signs(self) -> list[Sign]:
        """Returns what the tasks wrote."""
        return signs(self.file)

    def living(self) -> int:
        """Returns how many of their processes there are, on any host."""
        return len(witness.living(self.file))

    def _guarded(self) -> None:
        try:
            while not self._abandoned.is_set() and BATCH * len(self._jobs) < self._wanted:
                if self.live() < self._ahead:
                    self._submit()
                else:
                    self._abandoned.wait(0.1)
        except BaseException as error:
            self.error = error

    def _submit(self) -> None:
        number = len(self._jobs)
        argv = ["/bin/sh", "-c", _SCRIPT, str(self.file), str(self._locks), _CHILD]
        where = os.fspath(self._directory)
        if number % ONCE_EVERY:
            # A job of which nothing may be missing in the end.
            operation = self._history.invoke("stream", "submit", f"stream-{number}", (BATCH, True))
            self._jobs.append(self._client.command(argv, name=f"stream-{number}", cwd=where, array=BATCH))
            self._history.complete(operation, True)
        else:
            job = self._client.command(argv, name=f"once-{number}", cwd=where, array=BATCH, restartable=False)
            self.once.add(job.id)
            self._jobs.append(job)

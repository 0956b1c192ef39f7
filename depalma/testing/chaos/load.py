"""Clients that submit, add, close, cancel and read over HTTP, and write down everything that was said.

They share their jobs, so that several clients work on the same job at the same time. One job in `WORK_EVERY` has a
task that really runs on an agent; the others are open and held, so that only clients change them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec

from depalma import items
from depalma.client.client import Client
from depalma.client.transport import JSON, MSGPACK, Answer, Request
from depalma.errors import DepalmaError, Rejected
from depalma.model import FINAL_STATES, JobSpec, JobView, Payload, TaskView
from depalma.testing.history import History, Operation
from depalma.testing.job_model import REFUSED

WORK_EVERY = 6
#: jobs that clients still talk about
FRESH = 12
#: the load pauses so long between two operations of one client, at most
PAUSE_S = 0.012
ADDED = 3
_view = msgspec.json.Decoder(JobView)
_task = msgspec.json.Decoder(TaskView)
_ARGUMENTS = Payload(inline=items.pack([b"x"] * ADDED), size_bytes=len(items.pack([b"x"] * ADDED)))


@dataclass(frozen=True, slots=True)
class Work:
    """A job whose task runs, which master acknowledged it, and when."""

    job: int
    master: str
    acknowledged_s: float


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job whose id is known."""

    key: str
    id: int
    work: bool


class Load:
    """Clients in threads. The calling thread's network namespace is theirs.

    `work` is the command of jobs whose task runs; without it there are none.
    """

    def __init__(
        self,
        make_client: Callable[[], Client],
        history: History,
        random: Random,
        *,
        clients: int = 8,
        work: list[str] | None = None,
        deadline_s: float = 10.0,
        pause_s: float = PAUSE_S,
        padding_bytes: int = 0,
    ) -> None:
        self.history = history
        self.deadline_s = deadline_s
        self._make_client = make_client
        self._random = random
        self._work = work
        self._pause_s = pause_s
        self._padding = "x" * padding_bytes
        self._numbers = itertools.count(1)
        self._jobs: deque[KnownJob] = deque(maxlen=FRESH)
        #: jobs with work so far
        self.works: list[Work] = []
        self._stopping = threading.Event()
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(f"c{i}", random.getrandbits(64)), name=f"chaos-load-{i}")
            for i in range(clients)
        ]

    def start(self) -> None:
        """Returns at once; the clients go on until `stop`."""
        self.started_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when every client has ended its last operation (at most the deadline of one). Errors: theirs."""
        self.abandon()
        if self.errors:
            raise self.errors[0]

    def abandon(self) -> None:
        """As `stop`, but what the clients met does not matter any more."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def rate(self, since_s: float) -> float:
        """Returns the operations a second that were answered since then."""
        now = time.monotonic()
        done = sum(since_s <= one.returned_s <= now for one in self.history.operations)
        return done / max(0.001, now - since_s)

    def _guarded(self, name: str, seed: int) -> None:
        try:
            with self._make_client() as client:
                self._run(name, client, Random(seed))
        except BaseException as error:
            self.errors.append(error)
            raise

    def _run(self, name: str, client: Client, random: Random) -> None:
        caller = Caller(name, client, self.history, self.deadline_s)
        while not self._stopping.is_set():
            jobs = list(self._jobs)
            kind = random.choices(("submit", "add", "read", "task", "cancel", "close"), (18, 30, 34, 6, 6, 6))[0]
            if kind == "submit" or not jobs:
                self._submit(caller)
            else:
                self._touch(caller, kind, random.choice(jobs))
            self._stopping.wait(random.uniform(0, 2 * self._pause_s))

    def _submit(self, caller: Caller) -> None:
        number = next(self._numbers)
        key = f"job-{number}"
        argv = self._work if number % WORK_EVERY == 0 else None
        job_id = caller.submit(key, argv, self._padding)
        if job_id is not None:
            self._jobs.append(KnownJob(key, job_id, argv is not None))
            if argv is not None:
                self.works.append(Work(job_id, caller.answered_by, time.monotonic()))

    @staticmethod
    def _touch(caller: Caller, kind: str, job: KnownJob) -> None:
        if kind == "task" and job.work:
            caller.task(job)
        elif kind == "add" and not job.work:
            caller.add(job)
        elif kind == "cancel":
            caller.cancel(job)
        elif kind == "close" and not job.work:
            caller.close(job)
        else:
            caller.read(job)


class Caller:
    """One client: does operations one after the other and records them."""

    def __init__(self, name: str, client: Client, history: History, deadline_s: float) -> None:
        self.name = name
        self._client = client
        self._history = history
        self._deadline_s = deadline_s
        #: the master that gave the last answer
        self.answered_by = ""

    def submit(self, key: str, argv: list[str] | None, padding: str = "") -> int | None:
        """Returns the job's id if it was told."""
        env = {"PADDING": padding} if padding else {}
        command = tuple(argv or ("/bin/true",))
        spec = JobSpec(kind="command", name=key, argv=command, env=env, hold=argv is None, open=argv is None)
        operation = self._history.invoke(self.name, "submit", key, (1, argv is not None))
        answer = self._ask(operation, Request("POST", "/v1/jobs", msgspec.msgpack.encode(spec), MSGPACK, key=key))
        if answer is None:
            return None
        self._complete(operation, True, answer)
        return int(answer.json()["id"])

    def add(self, job: KnownJob) -> None:
        """Adds tasks: a fetch-and-add."""
        operation = self._history.invoke(self.name, "add", job.key, ADDED)
        body = msgspec.msgpack.encode({"arguments": _ARGUMENTS, "count": ADDED})
        answer = self._ask(operation, Request("POST", f"/v1/jobs/{job.id}/tasks", body, MSGPACK))
        if answer is not None:
            self._complete(operation, int(answer.json()["first"]), answer)

    def close(self, job: KnownJob) -> None:
        """Closes the job."""
        operation = self._history.invoke(self.name, "close", job.key)
        answer = self._ask(operation, Request("POST", f"/v1/jobs/{job.id}/close"))
        if answer is not None:
            self._complete(operation, True, answer)

    def cancel(self, job: KnownJob) -> None:
        """Cancels the job."""
        operation = self._history.invoke(self.name, "cancel", job.key)
        body = msgspec.json.encode({"jobs": [job.id]})
        answer = self._ask(operation, Request("POST", "/v1/jobs/cancel", body, JSON))
        if answer is not None:
            self._complete(operation, job.id in answer.json()["cancelled"], answer)

    def read(self, job: KnownJob) -> None:
        """Reads the job, linearizable."""
        operation = self._history.invoke(self.name, "read", job.key)
        answer = self._ask(operation, Request("GET", f"/v1/jobs/{job.id}"))
        if answer is not None:
            self._complete(operation, seen(_view.decode(answer.body)), answer)

    def task(self, job: KnownJob) -> None:
        """Reads the job's task: its attempts are counted."""
        operation = self._history.invoke(self.name, "task", job.key)
        answer = self._ask(operation, Request("GET", f"/v1/tasks/{job.id}.0"))
        if answer is not None:
            view = _task.decode(answer.body)
            self._complete(operation, (view.state, view.attempt), answer)

    def _ask(self, operation: Operation, request: Request) -> Answer | None:
        """Returns the answer; None if it was a refusal (recorded) or nobody knows (the operation stays open)."""
        try:
            return self._client.request(request, deadline_s=self._deadline_s)
        except Rejected as error:
            self._history.complete(operation, (REFUSED, error.code))
        except DepalmaError:
            return None
        return None

    def _complete(self, operation: Operation, output: object, answer: Answer) -> None:
        index = int(answer.headers.get("depalma-index", -1))
        self.answered_by = answer.master
        self._history.complete(operation, output, master=answer.master, index=index)


def seen(view: JobView) -> tuple[int, bool, str]:
    """What `read` records of a job."""
    return (view.tasks.total, view.open, view.state if view.state in FINAL_STATES else "")

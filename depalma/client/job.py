"""A job as its submitter sees it: results in order or as they come, state, output."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depalma.client import specs, verbs
from depalma.client.outcome import error_of, payload_data, unpack_outputs, value_of
from depalma.client.record import Record
from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError
from depalma.model import FINAL_STATES, JobView, TaskView

if TYPE_CHECKING:
    from depalma.client.client import Client


class TaskOutcome:
    """What is known of a task that has ended."""

    def __init__(self, job_id: int, result: TaskResult) -> None:
        self._result = result
        self.job_id = job_id
        self.index = result.task

    @property
    def id(self) -> str:
        """Like `42.7`."""
        return f"{self.job_id}.{self.index}"

    @property
    def state(self) -> str:
        """`succeeded`, `failed`, `cancelled`, `timed_out` or `lost`."""
        return self._result.state

    @property
    def host(self) -> str:
        """Where it ran last."""
        return self._result.host

    @property
    def attempt(self) -> int:
        """Which execution this was."""
        return self._result.attempt

    @property
    def exit_code(self) -> int | None:
        """Of a command."""
        return self._result.exit_code

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"


class TaskHandle(TaskOutcome):
    """A task that has ended."""

    def __init__(self, client: Client, job_id: int, result: TaskResult) -> None:
        super().__init__(job_id, result)
        self._client = client

    @property
    def error(self) -> Exception | None:
        """What `result` would raise."""
        if self.state == "succeeded":
            return None
        return error_of(self.job_id, self._result, payload_data(self._result.result, self._client._fetch))

    def result(self) -> Any:
        """Returns what the function returned (a command: its exit code).

        Errors: JobFailed (the remote exception is its cause), JobTimeout, JobLost, JobCancelled.
        """
        data = payload_data(self._result.result, self._client._fetch)
        return value_of(self.job_id, self._result, data)

    def outputs(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Returns the folder with the files that the task was asked to keep: `folder`, which must be new or empty, or
        a new temporary one. Errors: Rejected (no_outputs), ArchiveError, FileExistsError."""
        return unpack_outputs(self._client._run(verbs.output_files(self.id)), folder)


class JobHandle:
    """A job of the cluster. It lives there: dropping the handle changes nothing."""

    def __init__(
        self, client: Client, job_id: int, *, count: int | None = None, first: int = 0, record: Record | None = None
    ) -> None:
        self.id = job_id
        self._client = client
        self._count = count  #: None: to be asked for
        self._first = first
        self._record = record
        self._view: JobView | None = None

    # ------------------------------------------------------------ results

    def results(self, timeout: float | None = None, *, return_errors: bool = False) -> Iterator[Any]:
        """Yields the values of all tasks in order of index, each as soon as it is there.

        `timeout`: seconds from the call for all of it. With `return_errors` a failed task yields its error.
        Errors: JobFailed and its kin at the first task that did not succeed, TimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        record = self._watched()
        first, count = self._shape()
        index = first
        while count is None or index < first + count:
            if index not in record.by_index:
                record.wait(lambda at=index: record.ready(at), _left(deadline))  # type: ignore[misc]
            result = record.at_index(index)
            if result is None:
                if count is None:
                    return
                raise DepalmaError(f"job {self.id} is {record.state} without an outcome of task {index}")
            handle = TaskHandle(self._client, self.id, result)
            if return_errors and result.state != "succeeded":
                yield handle.error
            else:
                yield handle.result()
            index += 1

    def as_completed(self, timeout: float | None = None) -> Iterator[TaskHandle]:
        """Yields the tasks as they end, failed ones too. Errors: TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        record = self._watched()
        position = 0
        while True:
            if position >= len(record.order):
                record.wait(lambda at=position: record.arrived(at), _left(deadline))  # type: ignore[misc]
            result = record.at_position(position)
            if result is None:
                return
            position += 1
            yield TaskHandle(self._client, self.id, result)

    def wait(self, timeout: float | None = None) -> JobHandle:
        """Returns this job when it is over. Errors: TimeoutError."""
        if self._view is None or self._view.state not in FINAL_STATES:
            self._view = self._client._run(verbs.wait_job(self.id, timeout))
        return self

    # ------------------------------------------------------------ what is known

    @property
    def state(self) -> str:
        """The state now."""
        return self.view().state

    @property
    def exit_code(self) -> int | None:
        """Of a command job: 0 when all tasks succeeded, otherwise of the first that failed; None while it runs."""
        return self.view().exit_code

    def view(self) -> JobView:
        """Returns everything that the cluster tells about the job (asked once more unless it is over)."""
        if self._view is None or self._view.state not in FINAL_STATES:
            self._view = self._client._run(verbs.job(self.id))
        return self._view

    def tasks(self, state: str | None = None) -> list[TaskView]:
        """Returns its tasks, by index."""
        return self._client._run(verbs.tasks(self.id, state))

    def logs(self, index: int | None = None, stream: str = "stdout") -> str:
        """Returns what a task (the first one if not said) has written; `stream` is stdout or stderr."""
        at = self._shape()[0] if index is None else index
        return self._client._run(verbs.log(f"{self.id}.{at}", stream)).decode("utf-8", "replace")

    def explain(self, index: int | None = None) -> list[str]:
        """Returns lines that say why the job (or one task) waits, ran where it ran, or failed."""
        if index is None:
            return self._client._run(verbs.explain("jobs", str(self.id)))
        return self._client._run(verbs.explain("tasks", f"{self.id}.{index}"))

    def cancel(self) -> bool:
        """Cancels the job; its running tasks are stopped. Returns False if it was over already."""
        return self.id in self._client._run(verbs.cancel([self.id]))

    def add(self, items: Iterable[Any]) -> int:
        """Adds a task for each item to an open job: an argument of the command, or of the function that was mapped.

        Returns the index of the first. Errors: Rejected (job_closed).
        """
        packed = specs.packed_items(self.view().kind, items)
        return self._client._run(verbs.add_tasks(self.id, packed))

    def close(self) -> None:
        """Says that an open job gets no more tasks: it ends when those that it has are over."""
        self._client._run(verbs.close_job(self.id))
        self._view = None

    def hold(self) -> bool:
        """Starts no further task of it. Returns False if it was held or over already."""
        return self.id in self._client._run(verbs.steer("hold", [self.id]))

    def release(self) -> bool:
        """Ends `hold`. Returns False if it was not held."""
        return self.id in self._client._run(verbs.steer("release", [self.id]))

    def suspend(self, reason: str = "") -> bool:
        """Has all of it stand still, see `Client.suspend`. Returns False if it was suspended or over already."""
        return self.id in self._client.suspend(self.id, reason=reason)

    def resume(self) -> bool:
        """Ends `suspend`. Returns False if it was not suspended."""
        return self.id in self._client.resume(self.id)

    def retry(self) -> bool:
        """Runs the tasks again that failed, timed out or were lost; then this handle waits for them anew.

        Returns False if there were none. Errors: Rejected (job_cancelled).
        """
        if self.id not in self._client._run(verbs.steer("retry", [self.id])):
            return False
        self._record = self._view = None
        return True

    # ------------------------------------------------------------ inside

    def _watched(self) -> Record:
        if self._record is None:
            self._record = Record(self.id)
            self._client._stream.watch(self.id, self._record)
        return self._record

    def _shape(self) -> tuple[int, int | None]:
        """Returns the first index and the number of tasks (None: more may be added)."""
        if self._count is None:
            view = self.view()
            if view.open and view.state not in FINAL_STATES:
                return 0, None
            first = self._client._run(verbs.tasks(self.id, limit=1))
            self._first = first[0].index if first else 0
            self._count = view.tasks.total
        return self._first, self._count

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def _repr_html_(self) -> str:
        from html import escape

        view = self.view()
        counts = view.tasks
        done = counts.total - counts.queued - counts.running
        return f"<b>Job {view.id}</b> {escape(view.name)} <i>{view.state}</i>: {done} of {counts.total} tasks"


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())

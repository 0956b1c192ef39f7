"""Futures of remote tasks: real `concurrent.futures.Future`s."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from depalma.client.outcome import original_error, value_of
from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError
from depalma.model import Payload

#: Runs `then(data)` with a payload's bytes (None without payload), in another thread if they must be fetched;
#: or `fail(error)` if they cannot be had.
WithData = Callable[[Payload | None, Callable[[bytes | None], None], Callable[[BaseException], None]], None]


class TaskFuture(Future[Any]):
    """The future of one task. `host` and `attempt` tell where it ran, once it has."""

    def __init__(self) -> None:
        super().__init__()
        self.job_id = 0
        self.index = 0
        self.host = ""
        self.attempt = 0

    @property
    def task_id(self) -> str:
        """Like `42.7`; empty until it was submitted."""
        return f"{self.job_id}.{self.index}" if self.job_id else ""

    def settle(self, job: int, result: TaskResult, with_data: WithData, *, original: bool) -> None:
        """Takes the task's end. `original`: raise what the function raised, as executors do, not JobFailed."""
        self.job_id, self.index, self.host, self.attempt = job, result.task, result.host, result.attempt

        def finish(data: bytes | None) -> None:
            try:
                value = value_of(job, result, data)
            except DepalmaError as error:
                self.fail(original_error(error) if original else error)
            except BaseException as error:  # unpickling runs user code
                error.add_note(f"while the result of task {self.task_id} was unpickled")
                self.fail(error)
            else:
                if self._starts():
                    self.set_result(value)

        with_data(result.result, finish, self.fail)

    def fail(self, error: BaseException) -> None:
        """Ends it with an error, unless it was cancelled or has ended."""
        if self._starts():
            self.set_exception(error)

    def _starts(self) -> bool:
        if self.done():
            return False
        return self.running() or self.set_running_or_notify_cancel()


class LoneFuture(TaskFuture):
    """The future of `Client.submit`: a job of its own, cancelled by `cancel`."""

    def __init__(self, with_data: WithData, cancel_remotely: Callable[[int], None]) -> None:
        super().__init__()
        self._with_data = with_data
        self._cancel_remotely = cancel_remotely
        self._turn = threading.Lock()  # cancelling and ending exclude each other

    def cancel(self) -> bool:
        """Cancels the task on the cluster too, where it is stopped if it runs. Returns False if it has ended."""
        with self._turn:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()
        self._cancel_remotely(self.job_id)
        return True

    def _starts(self) -> bool:
        with self._turn:
            return super()._starts()

    # ------------------------------------------------------------ sink

    def deliver(self, results: Sequence[TaskResult]) -> None:
        """Takes the one result."""
        for result in results:
            self.settle(self.job_id, result, self._with_data, original=False)

    def ended(self, state: str) -> None:
        """A job that ended without a result of its task was forgotten."""
        # Not `done()`: a large result may still be on its way.
        if state == "unknown":
            self.fail(DepalmaError(f"there is no job {self.job_id} (any more)"))

    def broken(self, error: Exception) -> None:
        """Takes that nothing will come."""
        self.fail(error)

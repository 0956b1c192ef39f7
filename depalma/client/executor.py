"""A `concurrent.futures.Executor` whose calls run on the cluster: one open job, to which calls are added.

A sender thread takes what has been submitted since its last request and sends it as one; alone it sends at once, and
under load batches grow by themselves. Futures raise what the function raised, as the standard library's do.
"""

from __future__ import annotations

import queue
import threading
import types
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Unpack

from msgspec import Struct

from depalma.client import functions, specs, verbs
from depalma.client.functions import Function, Pickled, Reference
from depalma.client.futures import TaskFuture
from depalma.client.specs import JobOptions
from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError

if TYPE_CHECKING:
    from depalma.client.client import Client

BATCH_CALLS = 1000
BATCH_BYTES = 1024 * 1024


class _Call(Struct, gc=False):
    """A submitted call that is not sent yet."""

    future: TaskFuture
    data: bytes


class Executor(StandardExecutor):
    """Runs calls on the cluster. Without a client it makes its own, for the current context.

    `submit` returns `concurrent.futures.Future`s that can be cancelled until they are sent. `cancel_futures=True` at
    shutdown cancels the job: what runs is stopped.
    """

    def __init__(self, client: Client | None = None, **options: Unpack[JobOptions]) -> None:
        from depalma.client.client import Client

        specs.fields(options)
        self._own_client = client is None
        self._client = client or Client()
        self._options = options
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._function: Function | None = None
        self._pickled: weakref.WeakKeyDictionary[Any, Pickled] = weakref.WeakKeyDictionary()
        self._tasks = _Tasks(self._client)
        self._closing = False
        self._siblings: dict[str, Executor] = {}

    # ------------------------------------------------------------ the standard's methods

    def submit(self, fn: Function, /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Runs `fn(*args, **kwargs)` on the cluster; `fn` may be `"pkg.mod:qualname"` of synced code.

        Errors: RuntimeError after shutdown, pickling errors.
        """
        if self._function is None:
            with self._lock:
                self._function = self._function or fn
        future = TaskFuture()
        call = _Call(future, functions.pack_call(self._sent_as(fn), args, kwargs))
        with self._lock:
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.put(call)
            if self._sender is None:
                self._sender = threading.Thread(target=self._send_all, name="depalma-sender", daemon=True)
                self._sender.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls and closes the job; with `wait` returns when all calls have ended."""
        with self._lock:
            first, self._closing = not self._closing, True
            siblings = list(self._siblings.values())
            if cancel_futures:
                self._cancel_unsent()
            if first and self._sender is not None:
                self._queue.put(None)
        for sibling in siblings:
            sibling.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait or cancel_futures:
            self.flush(None)
        if cancel_futures and self._tasks.job:
            self._client._cancel_quietly(self._tasks.job)
        if wait:
            self._tasks.wait()
            for sibling in siblings:
                sibling.shutdown(wait=True)
            if self._own_client:
                self._client.close()

    def with_options(self, **options: Unpack[JobOptions]) -> Executor:
        """Returns an executor with these options changed; it ends with this one. Equal options give the same one."""
        merged: JobOptions = {**self._options, **options}
        key = repr(sorted(merged.items()))
        with self._lock:
            if self._closing:
                raise RuntimeError("cannot change the options after shutdown")
            if key not in self._siblings:
                self._siblings[key] = Executor(self._client, **merged)
            return self._siblings[key]

    def flush(self, timeout_s: float | None) -> None:
        """After shutdown: returns when all calls were sent and the job is closed, or after the time."""
        if self._sender is not None and self._sender is not threading.current_thread():
            self._sender.join(timeout_s)

    @property
    def job_id(self) -> int | None:
        """The job on the cluster, once there is one."""
        return self._tasks.job or None

    # ------------------------------------------------------------ inside

    def _sent_as(self, fn: Function) -> object:
        """Returns what stands for the function in a task's arguments: None for the job's own."""
        if fn is self._function and _steady(fn):
            return None
        if isinstance(fn, str):
            return None if fn == self._function else Reference(fn)
        if not isinstance(fn, types.FunctionType):
            return fn
        pickled = self._pickled.get(fn)
        if pickled is None:
            pickled = self._pickled[fn] = Pickled(functions.dumps(fn))
        return pickled

    def _cancel_unsent(self) -> None:
        kept: list[_Call | None] = []
        while True:
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                break
            if call is None or not call.future.cancel():
                kept.append(call)
            else:
                call.future.set_running_or_notify_cancel()
        for call in kept:
            self._queue.put(call)

    def _send_all(self) -> None:
        """The sender thread."""
        last = False
        while not last:
            batch, last = self._next_batch()
            calls = [call for call in batch if call.future.set_running_or_notify_cancel()]
            if not calls:
                continue
            try:
                self._send(calls)
            except Exception as error:  # whatever it is, it belongs to those who wait for these calls
                for call in calls:
                    call.future.fail(error)
        try:
            self._tasks.close()
        except DepalmaError as error:
            self._tasks.broken(error)

    def _next_batch(self) -> tuple[list[_Call], bool]:
        """Returns what waits to be sent, at least one call unless it is the end, and whether it is the end."""
        call = self._queue.get()
        batch: list[_Call] = []
        size = 0
        while call is not None:
            batch.append(call)
            size += len(call.data)
            if len(batch) >= BATCH_CALLS or size >= BATCH_BYTES:
                return batch, False
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _send(self, calls: list[_Call]) -> None:
        arguments = [call.data for call in calls]
        if self._tasks.job:
            self._tasks.sent(self._client._run(verbs.add_tasks(self._tasks.job, arguments)), calls)
            return
        assert self._function is not None
        function = self._function
        work = specs.function_work(function, arguments, is_open=True, options=self._options)
        if not _steady(function):
            work = specs.Work(work.spec, arguments=arguments)
        session = self._client._stream.prepare()
        submitted = self._client._run(verbs.submit(work, session))
        self._tasks.job = submitted.id
        self._tasks.sent(0, calls)
        self._client._stream.watch(submitted.id, self._tasks, session, submitted.master)


def _steady(fn: Function) -> bool:
    """Returns whether the same object surely means the same call later: a bound method's object may have changed."""
    return isinstance(fn, (str, types.FunctionType))


class _Tasks:
    """The sink of an executor's job: which future waits for which index."""

    def __init__(self, client: Client) -> None:
        self.job = 0
        self._client = client
        self._changed = threading.Condition()
        self._waiting: dict[int, TaskFuture] = {}
        self._fetching: set[Future[Any]] = set()
        self._early: dict[int, TaskResult] = {}  #: results that overtook the answer that tells their index
        self._error: Exception | None = None

    def sent(self, first: int, calls: Sequence[_Call]) -> None:
        """Notes that calls became tasks `first` and following."""
        ready: list[tuple[TaskFuture, TaskResult]] = []
        with self._changed:
            for index, call in enumerate(calls, first):
                call.future.job_id, call.future.index = self.job, index
                result = self._early.pop(index, None)
                if result is None:
                    self._waiting[index] = call.future
                else:
                    ready.append((call.future, result))
            error = self._error
        self._settle(ready)
        if error is not None:
            self.broken(error)

    def deliver(self, results: Sequence[TaskResult]) -> None:
        """Takes results."""
        ready: list[tuple[TaskFuture, TaskResult]] = []
        with self._changed:
            for result in results:
                future = self._waiting.get(result.task)
                if future is None:
                    self._early[result.task] = result
                else:
                    ready.append((future, result))
        self._settle(ready)

    def _settle(self, ready: Sequence[tuple[TaskFuture, TaskResult]]) -> None:
        for future, result in ready:
            future.settle(self.job, result, self._client._with_data, original=True)
        with self._changed:
            for _, result in ready:
                self._waiting.pop(result.task, None)
            fetching = [future for future, _ in ready if not future.done()]  # large results are on their way
            self._fetching.update(fetching)
            self._changed.notify_all()
        for waiting in fetching:
            waiting.add_done_callback(self._fetched)

    def _fetched(self, future: Future[Any]) -> None:
        with self._changed:
            self._fetching.discard(future)
            self._changed.notify_all()

    def ended(self, state: str) -> None:
        """The job is over: no call can be left."""
        self.broken(DepalmaError(f"job {self.job} is {state} without an outcome of this call"))

    def broken(self, error: Exception) -> None:
        """Takes that nothing more will come."""
        with self._changed:
            self._error = error
            waiting, self._waiting = self._waiting, {}
            self._changed.notify_all()
        for future in waiting.values():
            if not future.done():
                future.fail(error)

    def close(self) -> None:
        """Closes the job, if there is one."""
        if self.job:
            self._client._run(verbs.close_job(self.job))

    def wait(self) -> None:
        """Returns when no call is left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._fetching)

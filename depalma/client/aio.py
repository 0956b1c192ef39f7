"""The client for asyncio: the verbs of `Client` as coroutines, on aiohttp.

Results come by the same background stream as those of `Client` (one thread, whatever the number of jobs), so that
what is hard about them is written, and right, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

import aiohttp
from yarl import URL

from depalma.accounting import JobUse
from depalma.client import accounting_verbs, functions, specs, verbs
from depalma.client.aio_cluster import AsyncCluster
from depalma.client.aio_steering import AsyncJobSteering
from depalma.client.client import Client
from depalma.client.connections import Connections
from depalma.client.executor import Executor
from depalma.client.functions import Function
from depalma.client.futures import LoneFuture
from depalma.client.graphs import AsyncGraph
from depalma.client.job import TaskOutcome
from depalma.client.outcome import error_of, unpack_outputs, value_of
from depalma.client.record import Record
from depalma.client.sent import Sent, noting
from depalma.client.specs import JobOptions
from depalma.client.steering import AsyncSteering, ids_of
from depalma.client.transport import Answer, Attempt, Exchange, Pause, Request
from depalma.client.verbs import CodeVersion, HostLoad, Processes, Verb
from depalma.client.visiting import AsyncVisiting
from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError
from depalma.model import FINAL_STATES, CodeView, EventView, JobView, TaskView
from depalma.trust import verifying

T = TypeVar("T")


class AsyncClient(AsyncCluster, AsyncSteering, AsyncVisiting):
    """A connection to one cluster for asyncio; arguments and guarantees are those of `Client`.

    Use it in one event loop, as `async with AsyncClient() as client`.
    """

    def __init__(
        self,
        masters: Sequence[str] | str | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        context: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        deadline_s: float = 30.0,
        patience_s: float = 300.0,
    ) -> None:
        self._sync = Client(
            masters,
            token=token,
            token_file=token_file,
            context=context,
            ca=ca,
            deadline_s=deadline_s,
            patience_s=patience_s,
        )
        self._deadline_s = deadline_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    # ------------------------------------------------------------ work

    async def submit(self, fn: Function, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Runs `fn(*args, **kwargs)`; returns its future, to be awaited. Cancelling it cancels the job."""
        work = specs.function_work(fn, [functions.pack_call(None, args, kwargs)], options={})
        future = LoneFuture(self._sync._with_data, self._sync._cancel_soon)
        session = await self._prepared()
        submitted = await self._run(verbs.submit(work, session))
        future.job_id = submitted.id
        self._sync._stream.watch(submitted.id, future, session, submitted.master)
        return asyncio.wrap_future(future)

    async def map(
        self, fn: Function, items: Iterable[Any], *, by_reference: bool = False, **options: Unpack[JobOptions]
    ) -> AsyncJobHandle:
        """Runs `fn(item)` for each item: one job, one task an item."""
        calls = [functions.pack_call(None, (item,), {}) for item in items]
        return await self._start(specs.function_work(fn, calls, by_reference=by_reference, options=options))

    async def command(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] = "",
        array: int | str | None = None,
        arguments: Sequence[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJobHandle:
        """Runs a program: once, or once for each index of `array`, or once for each of `arguments`."""
        work = specs.command_work(argv, cwd=cwd, indices=array, arguments=arguments, options=options)
        return await self._start(work)

    def executor(self, **options: Unpack[JobOptions]) -> Executor:
        """Returns a `concurrent.futures.Executor`, for `loop.run_in_executor`."""
        return self._sync.executor(**options)

    def graph(self) -> AsyncGraph:
        """Returns an empty graph: jobs that wait for each other, and are submitted all at once or not at all."""
        return AsyncGraph(self)

    async def _start(self, work: specs.Work) -> AsyncJobHandle:
        session = await self._prepared()
        submitted = await self._run(verbs.submit(work, session))
        count = None if work.spec.open else work.spec.count
        handle = AsyncJobHandle(self, submitted.id, count=count, first=work.spec.first_index)
        handle._watch(session, submitted.master)
        return handle

    async def _prepared(self) -> str:
        return self._sync._stream.session or await asyncio.to_thread(self._sync._stream.prepare)

    # ------------------------------------------------------------ jobs

    async def job(self, job_id: int) -> AsyncJobHandle:
        """Returns a job of the cluster. Errors: Rejected (unknown_job)."""
        handle = AsyncJobHandle(self, job_id)
        await handle.view()
        return handle

    async def jobs(self, **filters: object) -> list[JobView]:
        """Returns jobs, newest first; the filters are those of `Client.jobs`."""
        return await self._run(verbs.jobs(filters))

    async def accounting(self, **filters: object) -> AsyncIterator[JobUse]:
        """Yields what jobs used, newest first; the filters are those of `Client.accounting`."""
        before: int | None = None
        while True:
            page = await self._run(accounting_verbs.page({**filters, "before": before}))
            for row in page.rows:
                yield row
            if page.next is None:
                return
            before = page.next

    async def cancel(self, *jobs: int | AsyncJobHandle) -> list[int]:
        """Cancels jobs; returns the ids of those that were live. Errors: Rejected (unknown_job), nothing is done."""
        return await self._run(verbs.cancel(ids_of(jobs)))

    # ------------------------------------------------------------ cluster

    async def add_code(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        requirements: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
    ) -> CodeVersion:
        """Puts a module, a folder or a wheel into the code log, see `Client.add_code`."""
        from depalma.archive import pack
        from depalma.requirements import check

        needs = b"" if requirements is None else Path(requirements).read_bytes()
        if requirements is not None:
            check(needs, str(requirements))
        packed_name, kind, data = await asyncio.to_thread(pack, Path(path), name)
        return await self._run(verbs.add_code(packed_name, kind, data, timeout_s, needs))

    async def roll_back_code(self, index: int, *, timeout_s: float = 60.0) -> CodeVersion:
        """Appends an entry with which all of the code is that of an earlier index again; waits as `add_code` does."""
        return await self._run(verbs.roll_back_code(index, timeout_s))

    async def run_on_hosts(
        self, argv: Sequence[str], *, limit_s: float = 600.0, timeout_s: float = 60.0
    ) -> CodeVersion:
        """Runs a command once on every host, see `Client.run_on_hosts`."""
        return await self._run(verbs.run_on_hosts(argv, limit_s, timeout_s))

    async def code(self) -> list[CodeView]:
        """Returns the code log, oldest entry first."""
        return await self._run(verbs.code())

    async def load(self, host: str | None = None, *, last_s: float | None = None) -> list[HostLoad]:
        """Returns the measured load of every host, or of one.

        `last_s`: also that of the last so many seconds, 3600 at most, as the agents remember it.
        """
        return await self._run(verbs.load(host, last_s))

    async def ps(self, job: int | None = None) -> Processes:
        """Returns the processes of running tasks as their hosts see them."""
        return await self._run(verbs.ps(job))

    async def events(self, after: int | None = None, *, follow: bool = False) -> AsyncIterator[EventView]:
        """Yields events after an index, or all that are kept; with `follow` it waits for more, for ever."""
        while True:
            page = await self._run(verbs.events_page(after, verbs.SLICE_S if follow else 0.0))
            for event in page.events:
                yield event
            if not page.events and not follow:
                return
            after = page.events[-1].index if page.events else page.latest if after is None else after

    async def get(self, path: str, /, **params: object) -> Any:
        """Returns the decoded JSON of `GET path`; `wait` is in seconds."""
        return await self._run(verbs.get(path, params))

    async def post(self, path: str, body: object = None, *, key: str = "") -> Any:
        """Sends `body` as JSON; returns the decoded answer."""
        return await self._run(verbs.send("POST", path, body, key))

    # ------------------------------------------------------------ life

    async def close(self) -> None:
        """Closes the connections. Work on the cluster goes on."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await asyncio.to_thread(self._sync.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient {', '.join(self._sync.endpoints.urls)}>"

    # ------------------------------------------------------------ inside

    @property
    def _shared_connections(self) -> Connections:
        return self._sync._connections

    async def _run(self, verb: Verb[T]) -> T:
        try:
            request = next(verb)
            while True:
                try:
                    answer = await self._call(request)
                except DepalmaError as error:
                    request = verb.throw(error)
                else:
                    request = verb.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _call(self, request: Request) -> Answer:
        clock = asyncio.get_running_loop().time
        exchange = Exchange(self._sync.endpoints, request, now=clock(), deadline_s=self._deadline_s)
        while True:
            if self._closed:
                raise DepalmaError("the client is closed")
            step = exchange.next(clock())
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            sent = Sent()
            try:
                answer = await self._send(step, request, exchange.headers, sent)
            except (OSError, aiohttp.ClientError) as error:  # TimeoutError is an OSError
                if sent.begun:
                    exchange.unanswered()
                exchange.failed(step, error, clock())
                if (trust := self._sync._connections.trust) is not None:
                    await asyncio.to_thread(trust.refresh)  # its files may have been replaced
                continue
            if exchange.answered(step, answer, clock()):
                return answer

    async def _send(self, attempt: Attempt, request: Request, headers: Sequence[tuple[str, str]], sent: Sent) -> Answer:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"Authorization": f"Bearer {self._sync._connections.token}"},
                trace_configs=[noting()],
            )
        async with self._session.request(
            request.method,
            URL(attempt.url + request.path, encoded=True),
            data=request.body or None,
            headers=list(headers),
            timeout=aiohttp.ClientTimeout(total=attempt.timeout_s),
            allow_redirects=False,
            ssl=verifying(self._sync._connections.trust),
            trace_request_ctx=sent,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept-Encoding"),
        ) as response:
            lowered = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, lowered, await response.read())


class AsyncTaskHandle(TaskOutcome):
    """A task that has ended."""

    def __init__(self, client: AsyncClient, job_id: int, result: TaskResult) -> None:
        super().__init__(job_id, result)
        self._client = client

    async def error(self) -> Exception | None:
        """Returns what `result` would raise."""
        return None if self.state == "succeeded" else error_of(self.job_id, self._result, await self._data())

    async def result(self) -> Any:
        """Returns what the function returned (a command: its exit code). Errors: see `TaskHandle.result`."""
        return value_of(self.job_id, self._result, await self._data())

    async def outputs(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Returns the folder with the files that the task was asked to keep. See `TaskHandle.outputs`."""
        data = await self._client._run(verbs.output_files(self.id))
        return await asyncio.to_thread(unpack_outputs, data, folder)

    async def _data(self) -> bytes | None:
        payload = self._result.result
        return None if payload is None else await self._client._run(verbs.blob(payload))


class AsyncJobHandle(AsyncJobSteering):
    """A job of the cluster; see `JobHandle`."""

    def __init__(self, client: AsyncClient, job_id: int, *, count: int | None = None, first: int = 0) -> None:
        self.id = job_id
        self._client = client
        self._count = count
        self._first = first
        self._record: Record | None = None
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()

    async def results(self, *, return_errors: bool = False) -> AsyncIterator[Any]:
        """Yields the values of all tasks in order of index. Errors: see `JobHandle.results`."""
        record = self._watch()
        index, count = await self._shape()
        end = None if count is None else index + count
        while end is None or index < end:
            await self._until(lambda at=index: record.ready(at))  # type: ignore[misc]
            result = record.at_index(index)
            if result is None:
                if end is None:
                    return
                raise DepalmaError(f"job {self.id} is {record.state} without an outcome of task {index}")
            handle = AsyncTaskHandle(self._client, self.id, result)
            failed = return_errors and result.state != "succeeded"
            yield await (handle.error() if failed else handle.result())
            index += 1

    async def as_completed(self) -> AsyncIterator[AsyncTaskHandle]:
        """Yields the tasks as they end, failed ones too."""
        record = self._watch()
        position = 0
        while True:
            await self._until(lambda at=position: record.arrived(at))  # type: ignore[misc]
            result = record.at_position(position)
            if result is None:
                return
            position += 1
            yield AsyncTaskHandle(self._client, self.id, result)

    async def wait(self, timeout: float | None = None) -> JobView:
        """Returns the job's view when it is over. Errors: TimeoutError."""
        return await self._client._run(verbs.wait_job(self.id, timeout))

    async def view(self) -> JobView:
        """Returns everything that the cluster tells about the job."""
        return await self._client._run(verbs.job(self.id))

    async def tasks(self, state: str | None = None) -> list[TaskView]:
        """Returns its tasks, by index."""
        return await self._client._run(verbs.tasks(self.id, state))

    async def logs(self, index: int | None = None, stream: str = "stdout") -> str:
        """Returns what a task (the first one if not said) has written; `stream` is stdout or stderr."""
        at = (await self._shape())[0] if index is None else index
        return (await self._client._run(verbs.log(f"{self.id}.{at}", stream))).decode("utf-8", "replace")

    async def explain(self, index: int | None = None) -> list[str]:
        """Returns lines that say why the job (or one task) waits, ran where it ran, or failed."""
        if index is None:
            return await self._client._run(verbs.explain("jobs", str(self.id)))
        return await self._client._run(verbs.explain("tasks", f"{self.id}.{index}"))

    def __repr__(self) -> str:
        return f"<AsyncJobHandle {self.id}>"

    # ------------------------------------------------------------ inside

    def _watch(self, session: str = "", master: str = "") -> Record:
        if self._record is None:
            self._record = Record(self.id, notify=self._ring)
            self._client._sync._stream.watch(self.id, self._record, session, master)
        return self._record

    def _ring(self) -> None:
        """Called by the thread of the stream."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            # Nothing can come between: results ring through the loop, which does not turn before the await.
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    async def _shape(self) -> tuple[int, int | None]:
        if self._count is None:
            view = await self.view()
            if view.open and view.state not in FINAL_STATES:
                return 0, None
            first = await self._client._run(verbs.tasks(self.id, limit=1))
            self._first = first[0].index if first else 0
            self._count = view.tasks.total
        return self._first, self._count

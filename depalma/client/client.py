"""The client for programs: one service, whichever master leads."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from depalma.client import contexts, functions, host_verbs, master_verbs, specs, verbs, visiting
from depalma.client.accounting import Accounting
from depalma.client.connections import Connections
from depalma.client.functions import Function
from depalma.client.futures import LoneFuture
from depalma.client.graphs import Graph
from depalma.client.host_verbs import GroupView, HostOptions, HostRemoval
from depalma.client.job import JobHandle
from depalma.client.ordering import Ordering
from depalma.client.record import Record
from depalma.client.specs import JobOptions
from depalma.client.steering import Steering, ids_of
from depalma.client.stream import ResultStream
from depalma.client.transport import Answer, Endpoints, Request
from depalma.client.verbs import CodeVersion, HostLoad, Processes, Verb
from depalma.client.webhook_methods import WebhookMethods
from depalma.errors import DepalmaError
from depalma.model import CodeView, EventView, HostView, JobView, MasterView, Payload

if TYPE_CHECKING:
    from depalma.client.executor import Executor

T = TypeVar("T")
_FETCHERS = 4
_CLOSE_S = 5.0  #: after so long a client that is closed gives up what waits for a master in the background


class Client(Steering, visiting.Visiting, WebhookMethods, Ordering, Accounting):
    """A connection to one cluster; it follows the leader, and is safe for threads.

    With nothing given it is the cluster of `DEPALMA_MASTERS`, `DEPALMA_CONTEXT` or the current context. Masters by
    https have to prove themselves by `ca`, the certificate of the cluster's own authority (`DEPALMA_CA`). A call that
    finds no leader, or loses its answer, is tried again for `deadline_s` seconds; however often, it takes effect
    once. Waiting for results outlives `patience_s` seconds without any master.
    Errors of every method: NoLeader after the deadline, Rejected (refused; nothing was changed), ConfigError.
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
        chosen = contexts.resolve(masters, token, token_file, context, ca=ca)
        self.origin = chosen.origin
        self.endpoints = Endpoints(chosen.masters)
        self._connections = Connections(self.endpoints, chosen.token, deadline_s=deadline_s, trust=chosen.trust)
        self._stream = ResultStream(self._connections, patience_s=patience_s)
        self._fetchers: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._executors: weakref.WeakSet[Executor] = weakref.WeakSet()
        # A client that is dropped without close leaves no thread and no socket. Whoever waits for a result holds it.
        self._finalizer = weakref.finalize(self, _end, self._connections, self._stream)
        self._finalizer.atexit = False
        _all_clients.add(self)

    # ------------------------------------------------------------ work

    def submit(self, fn: Function, /, *args: Any, **kwargs: Any) -> LoneFuture:
        """Runs `fn(*args, **kwargs)` as a job of one task; returns its future, a `concurrent.futures.Future`.

        `fn` may be `"pkg.mod:qualname"` of synced code. The future raises JobFailed with the remote exception as its
        cause; its `cancel` cancels the job.
        """
        work = specs.function_work(fn, [functions.pack_call(None, args, kwargs)], options={})
        future = LoneFuture(self._with_data, self._cancel_soon)
        session = self._stream.prepare()
        submitted = self._run(verbs.submit(work, session))
        future.job_id = submitted.id
        self._stream.watch(submitted.id, future, session, submitted.master)
        return future

    def map(
        self, fn: Function, items: Iterable[Any], *, by_reference: bool = False, **options: Unpack[JobOptions]
    ) -> JobHandle:
        """Runs `fn(item)` for each item: one job, one task an item. See JobOptions for the options.

        `by_reference`: the function is looked up by name in the synced code instead of being sent.
        """
        calls = [functions.pack_call(None, (item,), {}) for item in items]
        return self._start(specs.function_work(fn, calls, by_reference=by_reference, options=options), watch=True)

    def command(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] = "",
        array: int | str | None = None,
        arguments: Sequence[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Runs a program: once, or once for each index of `array` (1000, or `"0-99%10"`: ten at a time), or once for
        each of `arguments`, which replaces `{}` in argv."""
        return self._start(
            specs.command_work(argv, cwd=cwd, indices=array, arguments=arguments, options=options), watch=False
        )

    def executor(self, **options: Unpack[JobOptions]) -> Executor:
        """Returns a `concurrent.futures.Executor` whose calls run on the cluster with these options."""
        from depalma.client.executor import Executor

        executor = Executor(self, **options)
        self._executors.add(executor)
        return executor

    def graph(self) -> Graph:
        """Returns an empty graph: jobs that wait for each other, and are submitted all at once or not at all."""
        return Graph(self)

    def _start(self, work: specs.Work, *, watch: bool) -> JobHandle:
        session = self._stream.prepare() if watch else ""
        submitted = self._run(verbs.submit(work, session))
        record = None
        if watch:
            record = Record(submitted.id)
            self._stream.watch(submitted.id, record, session, submitted.master)
        spec = work.spec
        return JobHandle(
            self, submitted.id, count=None if spec.open else spec.count, first=spec.first_index, record=record
        )

    # ------------------------------------------------------------ jobs

    def job(self, job_id: int) -> JobHandle:
        """Returns a job of the cluster, whoever submitted it. Errors: Rejected (unknown_job)."""
        handle = JobHandle(self, job_id)
        handle.view()
        return handle

    def jobs(
        self,
        *,
        state: str | None = None,
        tag: str | None = None,
        name: str | None = None,
        user: str | None = None,
        all: bool = False,
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
        before: int | None = None,
    ) -> list[JobView]:
        """Returns jobs, newest first: those that live or ended within the hour, or all that are kept.

        `state` may be several, with commas; `name` may have `*`, `?` and `[…]`. `since`: that ended then or later, or
        live; `until`: submitted before.
        """
        params = {
            "state": state, "tag": tag, "name": name, "user": user, "all": all, "since": since, "until": until,
            "limit": limit, "before": before,
        }  # fmt: skip
        return self._run(verbs.jobs(params))

    def cancel(self, *jobs: int | JobHandle) -> list[int]:
        """Cancels jobs; returns the ids of those that were live. Errors: Rejected (unknown_job), nothing is done."""
        return self._run(verbs.cancel(ids_of(jobs)))

    # ------------------------------------------------------------ cluster

    def add_code(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        requirements: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
    ) -> CodeVersion:
        """Puts a module, a folder or a wheel into the code log; returns when every live host has it.

        Hosts that have not acknowledged after `timeout_s` are named in `.missing`, with what is known of the reason in
        `.lagging`. `requirements` is a file of packages that every host installs for it. Errors: ArchiveError,
        BadRequirements.
        """
        from depalma.archive import pack
        from depalma.requirements import check

        needs = b"" if requirements is None else Path(requirements).read_bytes()
        if requirements is not None:
            check(needs, str(requirements))
        packed_name, kind, data = pack(Path(path), name)
        return self._run(verbs.add_code(packed_name, kind, data, timeout_s, needs))

    def roll_back_code(self, index: int, *, timeout_s: float = 60.0) -> CodeVersion:
        """Appends an entry with which all of the code is that of an earlier index again; waits as `add_code` does."""
        return self._run(verbs.roll_back_code(index, timeout_s))

    def run_on_hosts(self, argv: Sequence[str], *, limit_s: float = 600.0, timeout_s: float = 60.0) -> CodeVersion:
        """Runs a command once on every host, as an entry of the code log; returns when each has, or has failed.

        `limit_s`: a host's run is killed then. Hosts where it failed are in `.failed`, with the exit code.
        """
        return self._run(verbs.run_on_hosts(argv, limit_s, timeout_s))

    def code(self) -> list[CodeView]:
        """Returns the code log, oldest entry first."""
        return self._run(verbs.code())

    def hosts(self) -> list[HostView]:
        """Returns the hosts."""
        return self._run(verbs.hosts())

    def host(self, name: str) -> HostView:
        """Returns one host. Errors: Rejected (unknown_host)."""
        return self._run(host_verbs.host(name))

    def add_host(self, name: str, **options: Unpack[HostOptions]) -> HostView:
        """Makes a host known, before its agent comes or after. Errors: Rejected (name_taken, bad_field)."""
        return self._run(host_verbs.add_host(name, options))

    def set_host(self, name: str, **options: Unpack[HostOptions]) -> HostView:
        """Changes what is given, effective with the next placement; what runs there goes on."""
        return self._run(host_verbs.set_host(name, options))

    def remove_host(self, name: str, *, force: bool = False) -> HostRemoval:
        """Takes a host off the list. Errors: Rejected (host_busy) while tasks live there, unless `force`: then it gets
        no more work, and is removed once they are surely dead; they run elsewhere."""
        return self._run(host_verbs.remove_host(name, force))

    def set_owner(self, name: str, **fields: float | str | bool | None) -> HostView:
        """Changes what the owner of a host allows: fields of OwnerPolicy. Errors: Rejected, nothing is changed."""
        return self._run(host_verbs.set_owner(name, fields))

    def drain_host(self, name: str, *, deadline_s: float | None = None, reason: str = "") -> HostView:
        """Gives the host no new work. What runs may end; after `deadline_s` it is told to stop, and moved."""
        return self._run(host_verbs.drain_host(name, deadline_s, reason))

    def wait_drained(self, name: str, timeout_s: float | None = None) -> HostView:
        """Returns when nothing of the host's work is left, or it is drained no more. Errors: TimeoutError."""
        return self._run(host_verbs.wait_drained(name, timeout_s))

    def undrain_host(self, name: str) -> HostView:
        """Gives the host work again."""
        return self._run(host_verbs.undrain_host(name))

    def groups(self) -> list[GroupView]:
        """Returns the groups, with their hosts and their room."""
        return self._run(host_verbs.groups())

    def set_group(self, name: str, hosts: Sequence[str]) -> list[str]:
        """Makes these the hosts of the group; returns them. Errors: Rejected (unknown_host), nothing is done."""
        return self._run(host_verbs.set_group(name, hosts))

    def add_to_group(self, name: str, hosts: Sequence[str]) -> list[str]:
        """Puts hosts into the group; returns all of it."""
        return self._run(host_verbs.add_to_group(name, hosts))

    def remove_group(self, name: str, hosts: Sequence[str] = (), *, force: bool = False) -> list[str]:
        """Takes these hosts out of the group, or all; returns those that are left.

        Errors: Rejected (group_in_use) if none would be left and queued jobs name it, unless `force`.
        """
        return self._run(host_verbs.remove_group(name, hosts, force))

    def masters(self) -> list[MasterView]:
        """Returns the masters, those that cannot be reached included."""
        return self._run(master_verbs.masters())

    def add_master(
        self, master_id: str, host: str, *, port: int = 7070, raft_port: int = 7071, timeout_s: float = 60.0
    ) -> None:
        """Adds a master that was started with `--join`; returns when it has caught up and counts.

        Asking again for the same is harmless. Errors: Rejected, with the code not_ready if it took longer.
        """
        self._run(master_verbs.add_master(master_id, host, port, raft_port, timeout_s))

    def remove_master(self, master_id: str) -> None:
        """Removes a master; if it leads, another one leads first. Errors: Rejected."""
        self._run(master_verbs.remove_master(master_id))

    def transfer(self, master_id: str) -> None:
        """Lets this master lead. Errors: Rejected, with the code transfer_failed if it could not take over."""
        self._run(master_verbs.transfer(master_id))

    def load(self, host: str | None = None, *, last_s: float | None = None) -> list[HostLoad]:
        """Returns the measured load of every host, or of one.

        `last_s`: also that of the last so many seconds, 3600 at most, as the agents remember it.
        """
        return self._run(verbs.load(host, last_s))

    def ps(self, job: int | None = None) -> Processes:
        """Returns the processes of running tasks as their hosts see them."""
        return self._run(verbs.ps(job))

    def events(self, after: int | None = None, *, follow: bool = False) -> Iterator[EventView]:
        """Yields events after an index, or all that are kept; with `follow` it waits for more, for ever.

        Errors: Rejected (events_gone) if events after that index are no longer kept.
        """
        while True:
            page = self._run(verbs.events_page(after, verbs.SLICE_S if follow else 0.0))
            yield from page.events
            if page.events:
                after = page.events[-1].index
            elif not follow:
                return
            elif after is None:
                after = page.latest

    # ------------------------------------------------------------ plain requests

    def get(self, path: str, /, **params: object) -> Any:
        """Returns the decoded JSON of `GET path`; `wait` is in seconds."""
        return self._run(verbs.get(path, params))

    def post(self, path: str, body: object = None, *, key: str = "") -> Any:
        """Sends `body` as JSON; returns the decoded answer. `key`: idempotency key, made if not given."""
        return self._run(verbs.send("POST", path, body, key))

    def request(self, request: Request, *, deadline_s: float | None = None) -> Answer:
        """Returns the answer to any request."""
        return self._connections.call(request, deadline_s=deadline_s)

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Closes executors and connections. Work on the cluster goes on; futures that are not done get an error."""
        for executor in list(self._executors):
            executor.shutdown(wait=False)
        for executor in list(self._executors):
            executor.flush(timeout_s=5.0)
        with self._lock:
            fetchers, self._fetchers = self._fetchers, None
        if fetchers is not None:
            late = threading.Timer(_CLOSE_S, self._connections.refuse)
            late.start()
            fetchers.shutdown(wait=True)
            late.cancel()
        self._finalizer()
        _all_clients.discard(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {', '.join(self.endpoints.urls)}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{m.id}</td><td>{m.url}</td><td>{m.role}</td></tr>" for m in self.masters())
        return f"<table><tr><th>master</th><th>URL</th><th>role</th></tr>{rows}</table>"

    # ------------------------------------------------------------ inside

    def _run(self, verb: Verb[T], *, deadline_s: float | None = None) -> T:
        try:
            request = next(verb)
            while True:
                try:
                    answer = self._connections.call(request, deadline_s=deadline_s)
                except DepalmaError as error:
                    request = verb.throw(error)
                else:
                    request = verb.send(answer)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _fetch(self, payload: Payload) -> bytes:
        return self._run(verbs.blob(payload))

    def _with_data(
        self, payload: Payload | None, then: Callable[[bytes | None], None], fail: Callable[[BaseException], None]
    ) -> None:
        if payload is None or not payload.digest:
            then(payload.inline if payload is not None else None)
            return

        def fetch() -> None:
            try:
                data = self._fetch(payload)
            except DepalmaError as error:
                fail(error)
            else:
                then(data)

        try:
            self._in_background(fetch)
        except RuntimeError as error:  # the program is ending, and takes no more work: whoever waits must not
            fail(DepalmaError(f"the result of {payload.size_bytes} bytes was not fetched: {error}"))

    def _cancel_soon(self, job: int) -> None:
        # In the background: a future may be cancelled on an event loop, which must not wait for a master.
        self._in_background(lambda: self._cancel_quietly(job))

    def _cancel_quietly(self, job: int) -> None:
        with contextlib.suppress(DepalmaError):  # nobody is there to hear it; the future is cancelled anyway
            self._run(verbs.cancel_quietly([job]))

    def _in_background(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="depalma-fetch")
            self._fetchers.submit(work)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._fetchers = None
        self._connections.after_fork()
        self._stream.after_fork()


def _end(connections: Connections, stream: ResultStream) -> None:
    connections.refuse()
    stream.close()
    connections.close()


_all_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_process = os.getpid()


def _after_fork() -> None:
    for client in list(_all_clients):
        client._after_fork()


@atexit.register
def _close_executors() -> None:
    """Open jobs of a program that ends are closed, so that they end on the cluster too."""
    if os.getpid() != _process:
        return
    for client in list(_all_clients):
        for executor in list(client._executors):
            executor.shutdown(wait=False)
            executor.flush(timeout_s=3.0)


os.register_at_fork(after_in_child=_after_fork)

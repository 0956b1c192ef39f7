"""What can be asked of the cluster, each said once for threads and asyncio alike.

A verb is a generator: it yields requests, is sent their answers, and returns a value. `Client` and `AsyncClient`
drive the same verbs over their own connections.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from depalma import items
from depalma.client.specs import Work, login_name, several
from depalma.client.transport import (
    BYTES,
    JSON,
    MSGPACK,
    Answer,
    Request,
    refusal,
    segment,
    with_query,
)
from depalma.client.wire import ResultsRequest
from depalma.errors import DepalmaError, Rejected
from depalma.model import (
    FINAL_STATES,
    CodeView,
    EventView,
    HostView,
    JobSpec,
    JobView,
    Load,
    LoadHistory,
    Payload,
    ProcessView,
    TaskView,
)

T = TypeVar("T")
Verb = Generator[Request, Answer, T]

#: Long waits are cut into pieces of this length, so that a master that froze is noticed.
SLICE_S = 2.0
PAGE = 1000
#: Payloads up to this size travel in the request (the master itself puts them beside the log if they are large);
#: larger ones are uploaded first.
SENT_INLINE_BYTES = 1024 * 1024


class Submitted(Struct, frozen=True):
    """A job that exists, and who said so."""

    id: int
    master: str


class CodeVersion(Struct, frozen=True):
    """One entry of the code log, and which live hosts have it."""

    index: int
    name: str
    digest: str
    acknowledged: tuple[str, ...]
    missing: tuple[str, ...]  #: live hosts that did not acknowledge in time
    lagging: dict[str, str] = {}  #: hosts that are marked as behind it, with the reason
    failed: dict[str, int] = {}  #: hosts where the command failed, with the exit code


class HostLoad(Struct, frozen=True):
    """Load of one host."""

    host: str
    state: str
    slots: int
    running: int
    load: Load
    history: LoadHistory | None = None  #: if it was asked for, and the host answered within a second


class Processes(Struct, frozen=True):
    """Processes of tasks, and the hosts that did not answer."""

    processes: tuple[ProcessView, ...]
    missing: tuple[str, ...] = ()


class LogChunk(Struct, frozen=True):
    """Bytes of a task's output from an offset on."""

    data: bytes
    next_offset: int
    ended: bool
    attempt: int
    note: str = ""  #: what of the output is missing, and why


# ---------------------------------------------------------------- plain requests


def get(path: str, params: Mapping[str, object]) -> Verb[Any]:
    """Returns the decoded JSON."""
    values = dict(params)
    wait_s = _seconds(values.get("wait"))
    if wait_s:
        values["wait"] = f"{wait_s:g}s"
    answer = yield Request("GET", with_query(path, values), wait_s=wait_s)
    return answer.json()


def send(method: str, path: str, body: object, key: str = "", *, wait_s: float = 0.0) -> Verb[Any]:
    """Sends JSON (or nothing) and returns the decoded JSON."""
    data = b"" if body is None else msgspec.json.encode(body)
    answer = yield Request(method, path, data, JSON if data else "", wait_s=wait_s, key=key)
    return answer.json()


def _typed(path: str, kind: type[T], params: Mapping[str, object] | None = None, wait_s: float = 0.0) -> Verb[T]:
    answer = yield Request("GET", with_query(path, params or {}), wait_s=wait_s)
    return msgspec.json.decode(answer.body, type=kind)


def _seconds(wait: object) -> float:
    return float(str(wait).removesuffix("s")) if wait else 0.0


# ---------------------------------------------------------------- jobs


def store(data: bytes) -> Verb[Payload]:
    """Returns the payload that stands for the bytes, after very large ones are on a majority of masters."""
    if len(data) <= SENT_INLINE_BYTES:
        return Payload(inline=data, size_bytes=len(data))
    return (yield from store_blob(data))


def store_blob(data: bytes) -> Verb[Payload]:
    """Returns the payload of a blob, once it is on a majority of masters."""
    digest = hashlib.sha256(data).hexdigest()
    yield Request("PUT", f"/v1/blobs/{digest}", data, BYTES)
    return Payload(digest=digest, size_bytes=len(data))


def submit(work: Work, session: str = "") -> Verb[Submitted]:
    """Creates a job; its results go to the stream of `session`, if the same master serves that."""
    headers = (("Depalma-Session", session),) if session else ()
    body = msgspec.msgpack.encode((yield from stored(work)))
    answer = yield Request("POST", "/v1/jobs", body, MSGPACK, headers=headers)
    return Submitted(int(answer.json()["id"]), answer.master)


def submit_graph(works: Sequence[Work]) -> Verb[list[int]]:
    """Creates jobs that wait for each other, all or none; returns their ids in order."""
    specs = []
    for work in works:
        specs.append((yield from stored(work)))
    answer = yield Request("POST", "/v1/graphs", msgspec.msgpack.encode({"jobs": specs}), MSGPACK)
    return [int(job) for job in answer.json()["ids"]]


def stored(work: Work) -> Verb[JobSpec]:
    """Returns the spec as it is sent, after what is too large for it was uploaded."""
    spec = work.spec
    if work.arguments:
        spec = msgspec.structs.replace(spec, arguments=(yield from store(items.pack(work.arguments))))
    if work.function:
        spec = msgspec.structs.replace(spec, function_pickle=(yield from store(work.function)))
    if work.stdin:
        spec = msgspec.structs.replace(spec, stdin=(yield from store(work.stdin)))
    if work.inputs:
        spec = msgspec.structs.replace(spec, inputs=(yield from store_blob(work.inputs)))
    return spec


def add_tasks(job: int, arguments: list[bytes]) -> Verb[int]:
    """Adds tasks to an open job and returns the index of the first."""
    payload = yield from store(items.pack(arguments))
    body = msgspec.msgpack.encode({"arguments": payload, "count": len(arguments)})
    answer = yield Request("POST", f"/v1/jobs/{job}/tasks", body, MSGPACK)
    return int(answer.json()["first"])


def close_job(job: int) -> Verb[None]:
    """Says that an open job gets no more tasks."""
    yield from send("POST", f"/v1/jobs/{job}/close", None)


def cancel(jobs: list[int]) -> Verb[list[int]]:
    """Cancels jobs and returns those that were live."""
    answer = yield from send("POST", "/v1/jobs/cancel", {"jobs": jobs, "by": login_name()})
    return [int(job) for job in answer["cancelled"]]


def steer(verb: str, jobs: list[int], changes: Mapping[str, object] | None = None) -> Verb[list[int]]:
    """Holds, releases, retries or sets jobs and returns those that changed; `verb` is the last part of the path."""
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    answer = yield from send("POST", f"/v1/jobs/{verb}", {"jobs": jobs, "by": login_name(), **given})
    return [int(job) for job in answer["changed"]]


def job(job_id: int | str) -> Verb[JobView]:
    """Returns one job."""
    return (yield from _typed(f"/v1/jobs/{segment(job_id)}", JobView))


def jobs(params: Mapping[str, object]) -> Verb[list[JobView]]:
    """Returns jobs, newest first; `limit` of them at most, 100 unless it is said."""

    class _Page(Struct):
        jobs: list[JobView]
        next: int | None = None

    found: list[JobView] = []
    limit = int(str(params.get("limit") or 100))
    while True:
        size = min(PAGE, limit - len(found))
        page = yield from _typed("/v1/jobs", _Page, {**params, "limit": size})
        found += page.jobs
        if page.next is None or len(found) >= limit:
            return found
        params = {**params, "before": page.next}


def wait_job(job_id: int | str, timeout_s: float | None, until: str = "final") -> Verb[JobView]:
    """Returns the job when it is over (or `started`). Errors: TimeoutError."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        slice_s = SLICE_S if deadline is None else max(0.0, min(SLICE_S, deadline - time.monotonic()))
        params = {"wait": f"{slice_s:.3f}s", "until": until}
        view = yield from _typed(f"/v1/jobs/{segment(job_id)}", JobView, params, slice_s)
        if view.state in FINAL_STATES or (until == "started" and view.started_at is not None):
            return view
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"job {view.id} is {view.state} after {timeout_s:g} s")


def tasks(job_id: int, state: str | None = None, limit: int | None = None) -> Verb[list[TaskView]]:
    """Returns the tasks of a job, by index."""

    class _Page(Struct):
        tasks: list[TaskView]
        more: bool = False

    found: list[TaskView] = []
    after = -1
    while True:
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        params = {"state": state, "after": after, "limit": size}
        page = yield from _typed(f"/v1/jobs/{job_id}/tasks", _Page, params)
        found += page.tasks
        if not page.more or not page.tasks or (limit is not None and len(found) >= limit):
            return found
        after = page.tasks[-1].index


def explain(kind: str, name: str) -> Verb[list[str]]:
    """Returns why a job or a task is as it is; `kind` is `jobs` or `tasks`."""
    answer = yield from get(f"/v1/{kind}/{segment(name)}/explain", {})
    return [str(line) for line in answer["lines"]]


def log_chunk(
    task: str, stream: str, offset: int = 0, wait_s: float = 0.0, attempt: int | None = None, limit: int | None = None
) -> Verb[LogChunk]:
    """Returns output of a task from `offset` on, waiting up to `wait_s` for some. Errors: Rejected(log_unavailable)."""
    wait = f"{wait_s:g}s" if wait_s else None
    params = {"stream": stream, "offset": offset, "attempt": attempt, "limit": limit, "wait": wait}
    answer = yield Request("GET", with_query(f"/v1/tasks/{segment(task)}/logs", params), accept=BYTES, wait_s=wait_s)
    return LogChunk(
        data=answer.body,
        next_offset=int(answer.headers.get("depalma-next-offset", offset + len(answer.body))),
        ended=answer.headers.get("depalma-ended", "true") == "true",
        attempt=int(answer.headers.get("depalma-attempt") or 0),
        note=answer.headers.get("depalma-note", ""),
    )


def log(task: str, stream: str) -> Verb[bytes]:
    """Returns what a task has written so far; warns of what is missing (UserWarning)."""
    parts: list[bytes] = []
    chunk = yield from log_chunk(task, stream)
    if chunk.note:
        warnings.warn(chunk.note, stacklevel=2)
    while chunk.data:
        parts.append(chunk.data)
        if chunk.ended:
            break
        chunk = yield from log_chunk(task, stream, chunk.next_offset, attempt=chunk.attempt or None)
    return b"".join(parts)


def blob(payload: Payload) -> Verb[bytes]:
    """Returns the bytes of a payload. Errors: DepalmaError if they are not what the digest says."""
    if not payload.digest:
        return payload.inline
    answer = yield Request("GET", f"/v1/blobs/{payload.digest}", accept=BYTES, wait_s=payload.size_bytes / 4_000_000)
    if hashlib.sha256(answer.body).hexdigest() != payload.digest:
        raise DepalmaError(f"blob {payload.digest[:12]} came damaged ({len(answer.body)} bytes)")
    return answer.body


def output_files(task: str) -> Verb[bytes]:
    """Returns the archive of a task's output files. Errors: Rejected (unknown_task, no_outputs)."""
    view = yield from _typed(f"/v1/tasks/{segment(task)}", TaskView)
    if view.outputs is None:
        raise Rejected(f"task {task} has no output files", code="no_outputs")
    return (yield from blob(view.outputs))


def results_request(session: str, cursors: Mapping[int, int], follow: bool = True) -> Request:
    """Returns the request that opens a stream of results."""
    body = ResultsRequest(session=session, cursors={str(job): cursor for job, cursor in cursors.items()}, follow=follow)
    return Request("POST", "/v1/results", msgspec.msgpack.encode(body), MSGPACK, accept=BYTES, stream=True)


# ---------------------------------------------------------------- code


def add_code(name: str, kind: str, archive: bytes, timeout_s: float, requirements: bytes = b"") -> Verb[CodeVersion]:
    """Appends to the code log and waits until every live host has it, at most `timeout_s` (then `missing` names
    those that have not)."""
    digest = hashlib.sha256(archive).hexdigest()
    yield Request("PUT", f"/v1/blobs/{digest}", archive, BYTES)
    body = {"name": name, "kind": kind, "digest": digest, "size_bytes": len(archive), "by": login_name()}
    if requirements:
        needs = hashlib.sha256(requirements).hexdigest()
        yield Request("PUT", f"/v1/blobs/{needs}", requirements, BYTES)
        body["requirements"] = needs
    return (yield from _appended("/v1/code", body, timeout_s))


def roll_back_code(index: int, timeout_s: float) -> Verb[CodeVersion]:
    """Appends an entry with which the tree is that of `index` again, and waits as `add_code` does."""
    return (yield from _appended("/v1/code/rollback", {"index": index, "by": login_name()}, timeout_s))


def run_on_hosts(argv: Sequence[str], limit_s: float, timeout_s: float) -> Verb[CodeVersion]:
    """Appends a command that every host runs once, and waits until each has, or has failed."""
    body = {"argv": several("argv", argv, str), "timeout_s": limit_s, "by": login_name()}
    return (yield from _appended("/v1/code/run", body, timeout_s))


def _appended(path: str, body: dict[str, Any], timeout_s: float) -> Verb[CodeVersion]:
    index = int((yield from send("POST", path, body))["index"])
    deadline = time.monotonic() + timeout_s
    while True:
        slice_s = max(0.0, min(SLICE_S, deadline - time.monotonic()))
        params = {"wait": f"{slice_s:.3f}s", "until": "acknowledged"}
        view = yield from _typed(f"/v1/code/{index}", CodeView, params, slice_s)
        if set(view.missing) <= view.failed.keys() or time.monotonic() >= deadline:
            return CodeVersion(
                view.index, view.name, view.digest, view.acknowledged, view.missing, view.lagging, view.failed
            )


def code() -> Verb[list[CodeView]]:
    """Returns the code log, oldest first."""

    class _Page(Struct):
        entries: list[CodeView]

    return (yield from _typed("/v1/code", _Page)).entries


# ---------------------------------------------------------------- cluster


def hosts() -> Verb[list[HostView]]:
    """Returns the hosts."""

    class _Page(Struct):
        hosts: list[HostView]

    return (yield from _typed("/v1/hosts", _Page)).hosts


def load(host: str | None = None, last_s: float | None = None) -> Verb[list[HostLoad]]:
    """Returns the load of every host or of one; with `last_s` also that of the last seconds."""

    class _Page(Struct):
        hosts: list[HostLoad]

    params = {"host": host, "history": None if last_s is None else f"{last_s:g}s"}
    return (yield from _typed("/v1/load", _Page, params)).hosts


def ps(job_id: int | None = None) -> Verb[Processes]:
    """Returns the processes of tasks as their hosts see them now."""
    return (yield from _typed("/v1/ps", Processes, {"job": job_id}))


class EventPage(Struct):
    """Some events, and which there are."""

    events: list[EventView]
    oldest: int = 0
    latest: int = 0


def events_page(after: int | None, wait_s: float = 0.0, limit: int = PAGE) -> Verb[EventPage]:
    """Returns events after an index (None: from the oldest that is kept), waiting up to `wait_s` for the first.

    Errors: Rejected(events_gone) if events after that index are no longer kept.
    """
    params = {"after": after or 0, "limit": limit, "wait": f"{wait_s:g}s" if wait_s else None}
    request = Request("GET", with_query("/v1/events", params), wait_s=wait_s, raw=True)
    answer = yield request
    if answer.status < 400:
        return msgspec.json.decode(answer.body, type=EventPage)
    problem = answer.problem()
    if after is None and problem.get("code") == "events_gone":
        return (yield from events_page(int(problem["oldest"]) - 1, wait_s, limit))
    raise refusal(answer)


def cancel_quietly(jobs: list[int]) -> Verb[list[int]]:
    """Cancels jobs that may be gone already."""
    try:
        return (yield from cancel(jobs))
    except Rejected:
        return []

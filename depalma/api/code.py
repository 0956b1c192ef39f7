"""/v1/code: the code log."""

from __future__ import annotations

from aiohttp import web

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key, integer, query_choice, query_wait_s
from depalma.api.problems import Problem, bad_field
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import (
    CodeAdded,
    CodeList,
    CodeStatus,
    CodeToAdd,
    CommandToRun,
    HostAcknowledgement,
    HostAcknowledgements,
    HostCode,
    HostsToRetry,
    Retried,
    Rollback,
)
from depalma.api.specs import check_digest, settled_blob
from depalma.codetree import ARCHIVE_KINDS, COMMAND, CodeEntry, command_digest
from depalma.joining import is_signed
from depalma.leader.hub import CODE, HOSTS
from depalma.model import CodeView
from depalma.state.checks import bad_name
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddCode, AppendCode
from depalma.state.hosts import Host
from depalma.state.views import code_view

_ADD, _ROLLBACK, _RUN, _RETRY = Body(CodeToAdd), Body(Rollback), Body(CommandToRun), Body(HostsToRetry)
#: Requirements files are read by people.
_MAX_REQUIREMENTS_BYTES = 1024 * 1024


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Appends to the code log; the blob must have been uploaded, and so must the requirements."""
    wanted: CodeToAdd = _ADD.decode(request, await api.body(request))
    wrong = bad_name("name", wanted.name)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    if wanted.kind not in ARCHIVE_KINDS:
        raise bad_field("kind", wanted.kind, ", ".join(ARCHIVE_KINDS))
    _check_by(wanted.by)
    check_digest(wanted.digest, "digest")
    size = await settled_blob(wanted.digest, wanted.size_bytes, "digest", api.services.blobs)
    if wanted.requirements:
        check_digest(wanted.requirements, "requirements")
        needs_bytes = await settled_blob(wanted.requirements, 0, "requirements", api.services.blobs)
        if needs_bytes > _MAX_REQUIREMENTS_BYTES:
            raise bad_field("requirements", f"{needs_bytes} bytes", f"at most {_MAX_REQUIREMENTS_BYTES} bytes")
    key, values = idempotency_key(request), (wanted.name, wanted.kind, wanted.digest, size, wanted.by, now())
    if wanted.requirements or wanted.kind == "wheel":
        return await _append(api, request, AppendCode(key, *values, wanted.requirements))
    return await _append(api, request, AddCode(key, *values))


async def rollback(api: Api, request: web.Request) -> web.StreamResponse:
    """Appends an entry with which the tree is that of an earlier index again."""
    wanted: Rollback = _ROLLBACK.decode(request, await api.body(request))
    _check_by(wanted.by)
    if wanted.index < 1:
        raise bad_field("index", wanted.index, "1 to the newest code index")
    command = AppendCode(idempotency_key(request), "", "", "", 0, wanted.by, now(), rollback_of=wanted.index)
    return await _append(api, request, command)


async def run(api: Api, request: web.Request) -> web.StreamResponse:
    """Appends a command that every host runs once, in order with the other entries."""
    wanted: CommandToRun = _RUN.decode(request, await api.body(request))
    _check_by(wanted.by)
    digest = command_digest(wanted.argv, wanted.timeout_s)
    command = AppendCode(
        idempotency_key(request), "command", COMMAND, digest, 0, wanted.by, now(), "", wanted.argv, wanted.timeout_s
    )
    return await _append(api, request, command)


async def _append(api: Api, request: web.Request, command: AddCode | AppendCode) -> web.StreamResponse:
    applied = await api.execute(command)
    assert isinstance(applied.value, int)
    return api.reply(request, CodeAdded(applied.value), status=201, version=applied.version)


async def retry(api: Api, request: web.Request) -> web.StreamResponse:
    """Asks hosts that failed at an entry to try it again at once."""
    wanted: HostsToRetry = _RETRY.decode(request, await api.body(request))
    for name in wanted.hosts:
        if name not in api.state.hosts:
            raise Problem("unknown_host", f"there is no host {name}")
    asked = api.services.sessions.retry_code(set(wanted.hosts))
    return api.reply(request, Retried(asked))


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the code log, oldest first."""
    state = api.state
    return api.reply(request, CodeList([code_view(state, entry) for entry in state.code]))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows an entry, or waits until all live hosts have it, or have failed at it."""
    index = integer(request.match_info["index"], "code index", least=1)
    _entry(api, index)
    if query_choice(request, "until", ("acknowledged",)):
        # Acknowledgements are few; looking again at each change of a host is cheap.
        await api.wait_until(lambda: _is_over(api, index), (CODE, HOSTS), query_wait_s(request))
    return api.reply(request, code_view(api.state, _entry(api, index)))


def _is_over(api: Api, index: int) -> bool:
    view = code_view(api.state, _entry(api, index))
    return set(view.missing) <= view.failed.keys()


async def acknowledgements(api: Api, request: web.Request) -> web.StreamResponse:
    """Says what each host said of an entry, and whether its signature holds."""
    index = integer(request.match_info["index"], "code index", least=1)
    _entry(api, index)
    found = []
    for host in api.state.hosts.values():
        done = host.runs.get(index)
        said = HostAcknowledgement(
            host.name,
            _signature(api, host, index),
            done.exit_code if done is not None else None,
            done.output if done is not None else "",
        )
        found.append(said)
    return api.reply(request, HostAcknowledgements(found))


def _signature(api: Api, host: Host, index: int) -> str:
    given = host.acknowledgements.get(index) if index <= host.code_index else None
    if not given:
        return "none"
    right = is_signed(api.services.secrets, host.name, index, api.state.tree_digest(index), given)
    return "valid" if right else "invalid"


async def status(api: Api, request: web.Request) -> web.StreamResponse:
    """Says how far each host is, why it lags, and whether it signed for that."""
    state: ClusterState = api.state
    newest = state.code_index
    hosts = [
        HostCode(
            host.name,
            host.shown_state,
            host.code_index,
            newest - host.code_index,
            host.lag.reason if host.lag is not None else "",
            host.lag.since if host.lag is not None else None,
            _signature(api, host, host.code_index),
        )
        for host in state.hosts.values()
    ]
    return api.reply(request, CodeStatus(newest, hosts))


def _check_by(by: str) -> None:
    if len(by) > 200:
        raise bad_field("by", by, "up to 200 characters")


def _entry(api: Api, index: int) -> CodeEntry:
    code = api.state.code
    if index > len(code):
        raise Problem("unknown_code", f"there is no code index {index}; the newest is {len(code)}")
    return code[index - 1]


ROUTES = (
    Route("POST", "/v1/code", add, Mode.WRITE, "Append to the code log", body=_ADD, returns=CodeAdded, status=201),
    Route("POST", "/v1/code/rollback", rollback, Mode.WRITE, "Append an entry that repeats an earlier tree",
          body=_ROLLBACK, returns=CodeAdded, status=201),
    Route("POST", "/v1/code/run", run, Mode.WRITE, "Append a command that every host runs once", body=_RUN,
          returns=CodeAdded, status=201),
    Route("POST", "/v1/code/retry", retry, Mode.WRITE, "Ask hosts to try again where they failed", body=_RETRY,
          returns=Retried),
    Route("GET", "/v1/code", listing, Mode.READ, "List the code log", query=READ_QUERY, returns=CodeList),
    Route("GET", "/v1/code/status", status, Mode.READ, "Show every host's code index", query=READ_QUERY,
          returns=CodeStatus),
    Route("GET", "/v1/code/{index}", show, Mode.READ, "Show an entry, or wait until all live hosts have it",
          query=READ_QUERY | {"until"}, returns=CodeView),
    Route("GET", "/v1/code/{index}/hosts", acknowledgements, Mode.READ, "Show what each host said of an entry",
          query=READ_QUERY, returns=HostAcknowledgements),
)  # fmt: skip

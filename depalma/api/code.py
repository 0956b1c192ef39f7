"""/v1/code: the code log."""

from __future__ import annotations

from aiohttp import web

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key, integer, query_choice, query_wait_s
from depalma.api.problems import Problem, bad_field
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import CodeAdded, CodeList, CodeStatus, CodeToAdd, HostCode
from depalma.api.specs import check_digest, settled_blob
from depalma.codetree import CodeEntry
from depalma.leader.hub import CODE, HOSTS
from depalma.model import CodeView
from depalma.state.checks import bad_name
from depalma.state.commands import AddCode
from depalma.state.views import code_view

KINDS = ("module", "folder")
_ADD = Body(CodeToAdd)


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Appends to the code log; the blob must have been uploaded."""
    wanted: CodeToAdd = _ADD.decode(request, await api.body(request))
    wrong = bad_name("name", wanted.name)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    if wanted.kind not in KINDS:
        raise bad_field("kind", wanted.kind, ", ".join(KINDS))
    if len(wanted.by) > 200:
        raise bad_field("by", wanted.by, "up to 200 characters")
    check_digest(wanted.digest, "digest")
    size = await settled_blob(wanted.digest, wanted.size_bytes, "digest", api.services.blobs)
    applied = await api.execute(
        AddCode(idempotency_key(request), wanted.name, wanted.kind, wanted.digest, size, wanted.by, now())
    )
    assert isinstance(applied.value, int)
    return api.reply(request, CodeAdded(applied.value), status=201, version=applied.version)


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the code log, oldest first."""
    state = api.state
    return api.reply(request, CodeList([code_view(state, entry) for entry in state.code]))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows an entry, or waits until all live hosts have it."""
    index = integer(request.match_info["index"], "code index", least=1)
    _entry(api, index)
    if query_choice(request, "until", ("acknowledged",)):
        # Acknowledgements are few; looking again at each change of a host is cheap.
        await api.wait_until(
            lambda: not code_view(api.state, _entry(api, index)).missing, (CODE, HOSTS), query_wait_s(request)
        )
    return api.reply(request, code_view(api.state, _entry(api, index)))


async def status(api: Api, request: web.Request) -> web.StreamResponse:
    """Says how far each host is."""
    state = api.state
    newest = state.code_index
    hosts = [
        HostCode(host.name, host.shown_state, host.code_index, newest - host.code_index)
        for host in state.hosts.values()
    ]
    return api.reply(request, CodeStatus(newest, hosts))


def _entry(api: Api, index: int) -> CodeEntry:
    code = api.state.code
    if index > len(code):
        raise Problem("unknown_code", f"there is no code index {index}; the newest is {len(code)}")
    return code[index - 1]


ROUTES = (
    Route("POST", "/v1/code", add, Mode.WRITE, "Append to the code log", body=_ADD, returns=CodeAdded, status=201),
    Route("GET", "/v1/code", listing, Mode.READ, "List the code log", query=READ_QUERY, returns=CodeList),
    Route("GET", "/v1/code/status", status, Mode.READ, "Show every host's code index", query=READ_QUERY,
          returns=CodeStatus),
    Route("GET", "/v1/code/{index}", show, Mode.READ, "Show an entry, or wait until all live hosts have it",
          query=READ_QUERY | {"until"}, returns=CodeView),
)  # fmt: skip

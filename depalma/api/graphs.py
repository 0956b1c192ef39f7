"""/v1/graphs: jobs that wait for each other, submitted in one piece."""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import Problem
from depalma.api.route import Mode, Route
from depalma.api.specs import settled
from depalma.model import JobSpec
from depalma.state.graphs import bad_graph
from depalma.state.job_commands import SubmitGraph


class GraphToSubmit(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: tuple[JobSpec, ...]


class GraphCreated(Struct, frozen=True):
    ids: list[int]  #: in the order of the jobs


_GRAPH = Body(GraphToSubmit)


async def submit(api: Api, request: web.Request) -> web.StreamResponse:
    """Creates all jobs of a graph, or none."""
    wanted: GraphToSubmit = _GRAPH.decode(request, await api.body(request))
    wrong = bad_graph(wanted.jobs)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    specs = tuple([await settled(spec, api.services.blobs) for spec in wanted.jobs])
    applied = await api.execute(SubmitGraph(idempotency_key(request), specs, now()))
    assert isinstance(applied.value, tuple | list)
    return api.reply(request, GraphCreated(list(applied.value)), status=201, version=applied.version)


ROUTES = (
    Route("POST", "/v1/graphs", submit, Mode.WRITE, "Submit jobs that wait for each other, all or none", body=_GRAPH,
          returns=GraphCreated, status=201),
)  # fmt: skip

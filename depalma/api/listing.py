"""/v1/jobs and /v1/accounting: live and archived jobs as one list, newest first, page by page.

Live jobs are looked at before archived ones: a job that is forgotten between the two is then found twice instead of
not at all. A page of a search that finds little may be short, or empty, and say where to go on: no request looks at
more than a bounded number of jobs.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar, get_args

from aiohttp import web

from depalma.accounting import JobUse
from depalma.api.context import Api, now
from depalma.api.inputs import MAX_INTEGER, query_flag, query_integer
from depalma.api.problems import bad_field
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import AccountingPage, JobList
from depalma.jobarchive.keeper import ArchivePaused
from depalma.jobarchive.search import Wanted
from depalma.jobarchive.usage import host_uses, job_use
from depalma.model import TaskState
from depalma.state.jobs import Job
from depalma.state.views import job_view

T = TypeVar("T")
STATES: tuple[str, ...] = get_args(TaskState)
#: Without `all` or `since`, jobs that ended longer ago are not listed.
RECENT_S = 3600.0
MAX_PAGE = 10_000
MAX_ROWS = 1_000


async def jobs(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists jobs, newest first."""
    limit = query_integer(request, "limit", 100, least=1, most=MAX_PAGE)
    before = query_integer(request, "before", MAX_INTEGER)
    since, until = _moment(request, "since"), _moment(request, "until")
    every = query_flag(request, "all") or since is not None
    wanted = _wanted(request, ended_since=since if every else now() - RECENT_S, submitted_before=until)
    state = api.state
    live = [job_view(state, job) for job in islice(_live(api, wanted, before), limit + 1)]
    version = state.version
    if not every:
        last = live[limit - 1].id if len(live) > limit else None
        return api.reply(request, JobList(live[:limit], last is not None, last))
    try:
        archived, looked_to = await api.services.archive.views(wanted, before, min(limit, MAX_ROWS) + 1)
    except ArchivePaused:
        archived, looked_to = [], 0  # the notes say so
    rows, following = _merged(live, archived, looked_to, limit, lambda view: view.id)
    notes = [] if following else api.services.archive.lacks(since)
    return api.reply(request, JobList(rows, following is not None, following, notes), version=version)


async def accounting(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives what jobs used, newest first: those that ended in a time, or also those that did not end yet."""
    limit = query_integer(request, "limit", MAX_ROWS, least=1, most=MAX_ROWS)
    before = query_integer(request, "before", MAX_INTEGER)
    since, until = _moment(request, "since"), _moment(request, "until")
    unfinished = query_flag(request, "unfinished")
    if unfinished and until is not None:
        raise bad_field("unfinished", "1", "only without until: such jobs have not ended before anything")
    last = until if until is not None else None if unfinished else 1e12
    wanted = _wanted(request, ended_since=since, ended_before=last)
    live = [await _use(job) for job in islice(_live(api, wanted, before), limit + 1)]
    archive = api.services.archive
    try:
        archived, looked_to = await archive.uses(wanted, before, limit + 1)
    except ArchivePaused:
        archived, looked_to = [], 0
    rows, following = _merged(live, archived, looked_to, limit, lambda row: row.job)
    notes = [] if following else archive.lacks(since)
    return api.reply(request, AccountingPage(rows, following, notes, api.services.master_id))


def _merged(
    live: list[T], archived: list[T], looked_to: int, limit: int, id_of: Callable[[T], int]
) -> tuple[list[T], int | None]:
    """Returns a page and where the next begins, None after the last. What lives counts more than its record."""
    by_id = {id_of(each): each for each in (*archived, *live)}
    found = [by_id[job] for job in sorted(by_id, reverse=True)]
    # Below these ids there may be more of either kind that was not looked at.
    low = max(id_of(live[-1]) if len(live) > limit else 0, looked_to)
    rows = [each for each in found if id_of(each) >= low][:limit]
    if len(rows) == limit and (len(found) > limit or low):
        return rows, id_of(rows[-1])
    return rows, low or None


def _live(api: Api, wanted: Wanted, before: int) -> Iterator[Job]:
    """Yields jobs of the state, newest first."""
    jobs, fits = api.state.jobs, wanted.predicate()
    ids = list(jobs)
    for place in range(bisect_left(ids, before) - 1, -1, -1):
        # One may be forgotten while another, large one is reckoned.
        if ids[place] in jobs and fits(jobs[ids[place]]):
            yield jobs[ids[place]]


async def _use(job: Job) -> JobUse:
    """Returns the row of a job; one of many tasks is looked at in slices."""
    at = time.time()
    work = host_uses(job, at)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return job_use(job, done.value, at)
        if job.total > 1:
            await asyncio.sleep(0)


def _wanted(request: web.Request, **times: float | None) -> Wanted:
    query = request.query
    return Wanted(
        states=_states(query.get("state")),
        tag=query.get("tag"),
        user=query.get("user"),
        name=query.get("name"),
        **times,
    )


def _states(text: str | None) -> frozenset[str]:
    states = frozenset(text.split(",")) if text is not None else frozenset()
    for state in states:
        if state not in STATES:
            raise bad_field("state", state, ", ".join(STATES))
    return states


def _moment(request: web.Request, field: str) -> float | None:
    """Returns a time, in seconds since the epoch."""
    text = request.query.get(field)
    if text is None:
        return None
    try:
        at = float(text)
    except ValueError:
        at = -1.0
    if not 0 <= at <= 1e11:
        raise bad_field(field, text, "seconds since the epoch")
    return at


_LIST_QUERY = frozenset({"state", "tag", "name", "user", "all", "since", "until", "limit", "before"}) | READ_QUERY
_USE_QUERY = frozenset({"tag", "name", "user", "state", "since", "until", "unfinished", "limit", "before"}) | READ_QUERY

ROUTES = (
    Route("GET", "/v1/jobs", jobs, Mode.READ, "List jobs, newest first", query=_LIST_QUERY, returns=JobList),
    Route("GET", "/v1/accounting", accounting, Mode.READ, "What jobs used, newest first", query=_USE_QUERY,
          returns=AccountingPage),
)  # fmt: skip

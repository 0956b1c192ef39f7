"""Turns committed assignments into the frames that an agent runs from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from depalma import items
from depalma.blobs import BadBlob, UnknownBlob
from depalma.codetree import CodeEntry
from depalma.leader.context import Context
from depalma.leader.holdings import Holdings
from depalma.leader.session import AgentSession
from depalma.model import INLINE_LIMIT_BYTES, AttemptRef, Payload
from depalma.policies.near import data_of
from depalma.protocol import Assign, Assignment, JobTemplate, Kill
from depalma.state.gangs import gang_of
from depalma.state.jobs import Attempt

log = logging.getLogger(__name__)

#: Arguments above this size are fetched by the agent itself, so that one frame stays small.
_ARGUMENT_LIMIT_BYTES = 16 * INLINE_LIMIT_BYTES
#: Jobs that a connection is remembered to have carried; an agent does not mind to be told again.
KNOWN_JOBS = 100_000
#: Jobs and arguments of one frame; many with large environments, or middling arguments, are spread over several.
_FRAME_LIMIT_BYTES = 1024 * 1024


class Orders:
    """Numbers the orders of one reign."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.holdings = Holdings()
        self._order = 0

    def next_order(self) -> int:
        """Returns a number that no earlier order of this reign has."""
        self._order += 1
        return self._order

    async def assign(self, session: AgentSession, refs: Iterable[AttemptRef]) -> None:
        """Sends those of `refs` that are still live on the session's host; arguments come from the log or a blob."""
        templates: dict[int, JobTemplate] = {}
        tasks: list[Assignment] = []
        size_bytes = 0
        for ref in refs:
            assignment = await self._assignment(session, ref)
            # Its argument was awaited: it may be over since, and its job forgotten.
            if assignment is None or self._live(session, ref) is None:
                continue
            job = ref[0]
            if job not in session.known_jobs and job not in templates:
                templates[job] = await self._template(job)
                size_bytes += len(msgspec.msgpack.encode(templates[job]))
                self.holdings.note(session.host, data_of(templates[job].spec))
            tasks.append(assignment)
            size_bytes += len(assignment.argument or b"") + sum(map(len, assignment.gang))
            if size_bytes > _FRAME_LIMIT_BYTES:
                self._send(session, templates, tasks)
                templates, tasks, size_bytes = {}, [], 0
                await session.has_written()
        if tasks:
            self._send(session, templates, tasks)

    def kill(self, session: AgentSession, refs: list[AttemptRef], *, outcome: str, reason: str) -> None:
        """Tells the agent to end attempts, once each and outcome."""
        fresh = [ref for ref in refs if (ref, outcome) not in session.killed]
        if fresh:
            session.killed.update(((ref, outcome), reason) for ref in fresh)
            session.send(Kill(self.next_order(), self._context.term, tuple(fresh), outcome, reason))

    def _send(self, session: AgentSession, templates: dict[int, JobTemplate], tasks: list[Assignment]) -> None:
        # Arguments were awaited: what was given back meanwhile may be another host's now, and must not start here.
        tasks = [task for task in tasks if self._live(session, (task.job, task.task, task.attempt)) is not None]
        if len(session.known_jobs) > KNOWN_JOBS:
            session.known_jobs.clear()
        session.known_jobs.update(templates)
        session.send(Assign(self.next_order(), self._context.term, tuple(templates.values()), tuple(tasks)))

    async def _template(self, job_id: int) -> JobTemplate:
        state = self._context.state
        job = state.jobs[job_id]
        return JobTemplate(job_id, job.spec, job.code_index, state.tree_digest(job.code_index))

    def _live(self, session: AgentSession, ref: AttemptRef) -> Attempt | None:
        """Returns the attempt if it is the session's host's."""
        host = self._context.state.hosts.get(session.host)
        return host.attempts.get(ref) if host is not None else None

    async def _assignment(self, session: AgentSession, ref: AttemptRef) -> Assignment | None:
        job_id, task, number = ref
        job = self._context.state.jobs.get(job_id)
        attempt = self._live(session, ref)
        if job is None or attempt is None:
            return None
        gang = job.gangs[gang_of(job, task)].hosts if job.gangs else ()
        bare = Assignment(
            job_id, task, number, attempt.fence, gpus=attempt.gpus, gang=gang, alternative=attempt.alternative
        )
        payload, position = job.argument_of(task)
        if payload is None:
            return bare
        if not payload.digest:
            return replace(bare, argument=items.read(payload.inline, position))
        return await self._from_blob(bare, payload, position)

    async def _from_blob(self, bare: Assignment, payload: Payload, position: int) -> Assignment:
        try:
            argument = await self._context.blobs.item(payload.digest, position)
        except (UnknownBlob, BadBlob, OSError, items.BadItems, IndexError) as error:
            # Lost with its disks, not in the backup, or damaged. The agent looks for it longer than we can wait here,
            # and then reports the attempt as failed; an error would end us, and every leader after us.
            log.error("argument of task %d.%d: %s", bare.job, bare.task, error)
            return replace(bare, argument_blob=payload.digest, argument_item=position)
        if len(argument) <= _ARGUMENT_LIMIT_BYTES:
            return replace(bare, argument=argument)
        return replace(bare, argument_blob=payload.digest, argument_item=position)


def frames_of(entries: Iterable[CodeEntry]) -> Iterator[tuple[CodeEntry, ...]]:
    """Yields the entries in as many frames as they need: an agent that begins anew gets all of the code log."""
    frame: list[CodeEntry] = []
    size_bytes = 0
    for entry in entries:
        frame.append(entry)
        size_bytes += len(msgspec.msgpack.encode(entry))
        if size_bytes > _FRAME_LIMIT_BYTES:
            yield tuple(frame)
            frame, size_bytes = [], 0
    if frame:
        yield tuple(frame)

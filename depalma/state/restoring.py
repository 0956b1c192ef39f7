"""Making a state the beginning of another cluster: after a restored snapshot, or a lost majority. [pure]

What was acknowledged after the state was taken is gone, but outside it is still known: job ids in people's scripts,
fences in their stores, event numbers of those that follow, agents that still run something. None of these may come
again with another meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

from depalma.codetree import COMMAND
from depalma.model import JobSpec
from depalma.state.attempts import lose_attempts
from depalma.state.cluster_state import ClusterState
from depalma.state.event_log import Detail
from depalma.state.jobs import Job
from depalma.state.outbox import collect

#: By so much the version (which fences are made of) and the numbers of events jump: more than a cluster does in years.
NUMBERS_JUMP = 10**12
#: Job ids are for people: they go on at the second next round number, or the next if that is far enough.
JOBS_ROUND = 1_000_000
JOBS_LOST_AT_MOST = 500_000


def begin_anew(state: ClusterState, reason: str) -> int:
    """Ends every attempt and every agent's incarnation and skips numbers; returns how many attempts were lost.

    Depends on nothing but the state, so that masters which each do it for themselves agree.
    """
    at = state.events.records[-1].at if state.events.records else 0.0
    state.version += NUMBERS_JUMP
    state.next_job = (state.next_job + JOBS_LOST_AT_MOST) // JOBS_ROUND * JOBS_ROUND + JOBS_ROUND + 1
    state.events.next_index += NUMBERS_JUMP
    state.webhooks.jump(NUMBERS_JUMP, state.version)
    detail: Detail = {"reason": reason, "version": state.version, "next_job": state.next_job}
    state.events.add("cluster.restored", at, detail=detail)
    state.masters.clear()  # those of the other cluster: its first leader records its own
    state.invitations = {}  # they name the other cluster's masters
    lost = 0
    for host in list(state.hosts.values()):
        if host.state in ("down", "lost"):
            continue
        host.turn("lost", reason, at)
        state.events.add("host.lost", at, host=host.name, detail={"reason": reason})
        lost += lose_attempts(state, host, f"host {host.name} was lost: {reason}", at)
        host.retire()
    state.fits.note(state.hosts, state.hosts)
    collect(state)
    return lost


def blobs_of(state: ClusterState) -> set[str]:
    """Returns the digests of all blobs that the state names."""
    found = blobs_of_code(state)
    for job in state.jobs.values():
        found.update(blobs_of_job(job))
    found.update(blobs_of_schedules(state))
    found.discard("")
    return found


def blobs_of_code(state: ClusterState) -> set[str]:
    """Returns the digests of the blobs that the code log names."""
    found = {entry.digest for entry in state.code if entry.kind != COMMAND}
    found.update(entry.requirements for entry in state.code if entry.requirements)
    return found


def blobs_of_job(job: Job) -> Iterator[str]:
    """Yields the digests of the blobs that a job names; empty ones among them."""
    yield from _blobs_of_spec(job.spec)
    for _, _, payload in job.chunks:
        yield payload.digest
    yield from job.done.blobs()
    for story in list(job.stories.values()):  # whoever looks may let others have their turn meanwhile
        yield from (past.tail.digest if past.tail is not None else "" for past in story.attempts)


def blobs_of_schedules(state: ClusterState) -> Iterator[str]:
    """Yields the digests of the blobs that jobs to come will name; empty ones among them."""
    for schedule in state.schedules.values():
        yield from _blobs_of_spec(schedule.spec)


def _blobs_of_spec(spec: JobSpec) -> Iterator[str]:
    for payload in (spec.arguments, spec.function_pickle, spec.inputs, spec.stdin):
        if payload is not None:
            yield payload.digest

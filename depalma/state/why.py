"""The whole answer to `explain`: how things stand, what it needs, and what changed when. [pure]

What changed is read from the events, which are in the log: it is the same after any fail-over, as far back as events
are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from depalma.model import AttemptRef
from depalma.state.cluster_state import ClusterState
from depalma.state.event_log import EventRecord
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.shapes import needs_of_host
from depalma.state.texts import moment

#: The latest changes are told.
MOST = 20
#: Of the cluster: what may let a waiting job start, or keep it from starting.
_ORDER = frozenset(("limit.changed", "quota.changed", "share.changed", "order.changed"))
_AROUND = _ORDER | {
    "host.added", "host.up", "host.lost", "host.removed", "host.changed", "host.draining", "host.undrained",
    "host.owner_returned", "host.owner_left", "code.kicked", "code.caught_up",
}  # fmt: skip
#: What is said elsewhere, or says nothing to people.
_SILENT = frozenset({"fence", "incarnation", "attempt", "address"})


def why(state: ClusterState, job: Job, index: int | None = None) -> list[str]:
    """Returns lines for people about a job, or about one of its tasks. Errors: IndexError for an unknown task."""
    lines = explain(state, job, index)
    if not job.is_final:
        lines.append(needs_line(job))
    return [*lines, *reversed(list(changes(state, job, index)))]


def needs_line(job: Job) -> str:
    """Returns in words what a task of the job needs of a host."""
    shape = job.shape
    ways = [needs_of_host(way) for way in shape.ways]
    parts = [" or ".join(f"({way})" for way in ways) if shape.others else ways[0]]
    parts += [f"group {shape.group}"] * bool(shape.group) + [f"host {shape.on_host}"] * bool(shape.on_host)
    parts += [f"label {rule}" for rule in shape.labels]
    parts += [f"code index {shape.code_index}"] * bool(shape.code_index)
    wishes = f"; wishes {', '.join(shape.prefer)}" if shape.prefer else ""
    gang = f"; {shape.gang} tasks at once" if shape.gang else ""
    return f"needs: {', '.join(parts)}{wishes}{gang}"


def changes(state: ClusterState, job: Job, index: int | None) -> Iterator[str]:
    """Yields what happened to it, the latest first; while it waits also what happened to hosts and to the order."""
    waits = not job.is_final and (job.queued > 0 if index is None else index not in job.running)
    around = _AROUND if waits else frozenset[str]()
    told, since, own = 0, job.submitted_at, job.id
    for record in reversed(state.events.records):  # up to 50,000 while a leader works: hardly anything for most of them
        if record.at < since:
            return
        if record.job == own:
            line = f"{record.kind}{_details(record)}"
        elif record.kind in around:
            where = f": {record.host}" if record.host else ""
            line = f"{record.kind}{where}{_details(record, zeros=record.kind in _ORDER)}"
        elif index is None or (place := _place_of(record.refs, own, index)) < 0:
            continue
        else:
            line = _of_task(record, place)
        yield f"{moment(record.at)} {line}"
        told += 1
        if told == MOST:
            return


def _place_of(refs: tuple[AttemptRef, ...], job: int, index: int) -> int:
    """Returns where a task is among these; -1 if it is not."""
    for place, ref in enumerate(refs):
        if ref[1] == index and ref[0] == job:
            return place
    return -1


def _of_task(record: EventRecord, place: int) -> str:
    """Returns what an event says of one of its tasks."""
    event = record.event(place, 0)
    state = f" {event.detail['state']}" if "state" in event.detail else ""
    where = f" on {record.host}" if record.host else ""
    return f"{record.kind}{state}: attempt {record.refs[place][2]}{where}{_details(record)}"


def _details(record: EventRecord, *, zeros: bool = False) -> str:
    """Returns what there is to say; with `zeros` also that a number is 0, or that there is none any more."""
    words = [
        f"{name} {'none' if value is None else value}"
        for name, value in (record.detail or {}).items()
        if name not in _SILENT and (value or (zeros and (value is None or type(value) in (int, float))))
    ]
    return f" ({', '.join(words)})" if words else ""

"""A host is kept for a task that needs much, or small ones would keep it out for ever; and what may use it until
then (backfill). [pure]

When a job is stuck whose tasks take several slots or something that is counted, one host that it fits is reserved
for it. Others may still go there if that costs the waiting task nothing:

- beside it: what they take leaves enough for it, even if everything that runs there now goes on for ever;
- before it: they have a time limit, and must have ended when by the time limits of what runs there now the waiting
  task can start at the latest. So that time never moves back.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

from depalma.state.gpus import short
from depalma.state.jobs import Job
from depalma.state.shapes import GPUS, Shape, held

if TYPE_CHECKING:
    from depalma.policies.places import Place
    from depalma.state.cluster_state import ClusterState

#: From the time limit of a task on: until it was told, killed, reported and recorded.
SLACK_S = 2.0


class Reservation:
    """What a place is kept for."""

    __slots__ = ("gives_back", "shape", "start_at", "tasks")

    def __init__(self, shape: Shape, start_at: float, gives_back: float, tasks: int = 1) -> None:
        self.shape = shape
        self.tasks = tasks  #: so many at once
        self.gives_back = gives_back  #: slots that get free at least when anything there ends
        self.start_at = start_at  #: when the task can start at the latest; inf = that is not known

    def admits(self, shape: Shape, place: Place, now: float) -> bool:
        """Returns whether a task of another shape, for which there is room now, costs the waiting one nothing."""
        if shape == self.shape:
            return True
        if shape.within_s and self.start_at < inf and now + shape.within_s + SLACK_S <= self.start_at:
            return True
        kept = dict(self.shape.needs)
        slots = self.shape.weight * self.tasks
        if not place.host.has_room(self.shape.needs, place.taken):
            slots -= min(slots, self.gives_back)  # what ends and gives back what is missing gives back this, too
        if place.used + shape.weight + slots > place.slots:
            return False
        return all(
            _leaves_gpus(shape, kept.get(name, 0) * self.tasks, kept.get(name, 0), place)
            if name == GPUS
            else place.taken.get(name, 0) + number + kept.get(name, 0) * self.tasks <= place.host.capacity(name)
            for name, number in shape.needs
        )


def _leaves_gpus(shape: Shape, all_parts: int, parts: int, place: Place) -> bool:
    """Returns whether tasks that ask for `parts` of a GPU can have so many of them together beside one of the shape,
    for which there is room now."""
    if not parts:
        return True
    taken = dict(place.taken)
    for name, number in held(shape.needs, place.host.choose_gpus(shape, taken) or ()):
        taken[name] = taken.get(name, 0) + number
    return place.host.free(GPUS, parts, taken) >= all_parts


def reserve(state: ClusterState, wanted: Iterable[tuple[Shape, Place]], now: float) -> list[Place]:
    """Reserves one of the places, which all fit the shape beside them and are not reserved yet: where the task can
    start first, as far as that is known. Returns what is kept now: it, or nothing."""
    best: tuple[float, float, float, str] | None = None
    chosen: tuple[Shape, Place] | None = None
    for shape, place in wanted:
        key = (
            latest_start(state, shape, place, now),
            _missing(shape, place),
            place.used - place.slots,
            place.host.name,
        )
        if best is None or key < best:
            best, chosen = key, (shape, place)
    if best is None or chosen is None:
        return []
    shape, place = chosen
    weights = [place.shape_of(ref, state.jobs[ref[0]]).weight for ref in (*place.host.attempts, *place.placed())]
    place.reserved = Reservation(shape, best[0], min(weights, default=0))
    return [place]


def _missing(shape: Shape, place: Place) -> float:
    """Returns what must still get free there, as a share of what the task needs."""
    missing = max(0, place.used + shape.weight - place.slots) / shape.weight
    for name, number in shape.needs:
        if name == GPUS:
            missing += short(place.host.gpu_count, place.taken, number) / number
        else:
            missing += max(0, place.taken.get(name, 0) + number - place.host.capacity(name)) / number
    return missing


def latest_start(state: ClusterState, shape: Shape, place: Place, now: float) -> float:
    """Returns when the time limits of what runs there leave room for the shape; inf if they do not say."""
    jobs = state.jobs
    host = place.host
    if not any(jobs[job].spec.timeout_s for job in host.by_job):
        return inf
    ends = sorted((end_of(jobs[ref[0]], began_at), ref) for ref, began_at in place.live(now))
    used, taken = place.used, dict(place.taken)
    for end, ref in ends:
        gone = place.shape_of(ref, jobs[ref[0]])
        used -= gone.weight
        for name, number in place.held(ref, gone):
            taken[name] -= number
        if used + shape.weight <= place.slots and host.has_room(shape.needs, taken):
            return max(end, now)
    return inf


def end_of(job: Job, started_at: float) -> float:
    """Returns when an attempt has ended for certain; inf without a time limit."""
    spec = job.spec
    return started_at + spec.timeout_s + spec.grace_s + SLACK_S if spec.timeout_s else inf

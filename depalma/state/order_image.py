"""Limits, shares and ageing as they are stored in a snapshot. [pure]

What is on hosts is not stored but counted again. Fields are only ever added at the end, with a default.
"""

from __future__ import annotations

from msgspec import Struct

from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.shares import AccountImage
from depalma.state.ways import on_hosts


class OrderImage(Struct, array_like=True, gc=False):
    """All of it."""

    half_life_s: float
    age_s: float
    base_at: float
    users: list[AccountImage]
    tag_limits: dict[str, int]
    user_limits: dict[str, int]
    group_limits: dict[str, int]
    fed_at: list[tuple[int, float]]  #: by priority
    quotas: list[tuple[str, str, dict[str, float]]] = []  #: kind, name, how much of what


def order_image(state: ClusterState) -> OrderImage:
    """Returns it as it is stored."""
    shares, limits = state.shares, state.limits
    return OrderImage(
        shares.half_life_s,
        state.age_s,
        shares.base_at,
        shares.images(),
        _sorted(limits.tags),
        _sorted(limits.users),
        _sorted(limits.groups),
        sorted(state.ready.fed_at.items()),
        [(*holder, dict(sorted(most.items()))) for holder, most in sorted(state.quotas.most.items())],
    )


def restore_order(state: ClusterState, image: OrderImage) -> None:
    """Takes it over into a state that has no jobs yet."""
    shares, limits = state.shares, state.limits
    shares.half_life_s, state.age_s, shares.base_at = image.half_life_s, image.age_s, image.base_at
    shares.restore(image.users)
    limits.tags.update(image.tag_limits)
    limits.users.update(image.user_limits)
    limits.groups.update(image.group_limits)
    state.ready.fed_at.update(image.fed_at)
    state.quotas.most.update({(kind, name): most for kind, name, most in image.quotas})


def recount(state: ClusterState, job: Job) -> None:
    """Counts what a restored job has on hosts; no time passes by that."""
    job.counted = len(job.running)
    if job.counted:
        account = state.shares.account(job.spec.user)
        account.tasks += job.counted
        state.limits.count(job, job.counted)
        for shape, tasks in on_hosts(job):
            account.slots += tasks * shape.weight
            state.quotas.count(job, shape, tasks)
        if job.shape.others:
            state.ways[job.id] = on_hosts(job)


def _sorted(limits: dict[str, int]) -> dict[str, int]:
    return dict(sorted(limits.items()))

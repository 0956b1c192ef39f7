"""What would become of a job if it were submitted now. [pure]"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf

from depalma.dispatcher import HostRoom, parts, plan
from depalma.model import JobSpec
from depalma.orderviews import TrialView
from depalma.policies.forecast import Forecast, Forecaster
from depalma.policies.gangs import could_start, starts
from depalma.policies.places import places_of
from depalma.policies.reserve import latest_start
from depalma.state.cluster_state import ClusterState
from depalma.state.dependencies import doomed
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.placement import misfit
from depalma.state.quotas import holders_of

#: Tasks that one trial places at most, as a round does.
ROUND = 2_000


def trial(
    state: ClusterState, hosts: Mapping[str, HostRoom], mean_s: Mapping[int, float], spec: JobSpec, now: float
) -> TrialView:
    """Returns what the dispatcher would do with the job; the state is as before. What it waits for must be there."""
    if never := doomed(state, spec):
        why = f"{never}, so it would be cancelled at once"
        return TrialView(tasks=spec.count, starting={}, waiting=0, starts_by=None, lines=[], forecast=why)
    code_index = state.code_index if spec.code_index < 0 else spec.code_index
    job = Job(state.next_job, spec, code_index, now)
    known = spec.user in state.shares.accounts
    _wait(state, job)
    state.jobs[job.id] = job
    try:
        state.ready.refresh(job, now)
        starting: Counter[str] = Counter()
        for command in plan(state, hosts, mean_s, now, 0, ROUND):
            for host, refs in parts(command):
                count = sum(ref[0] == job.id for ref in refs)
                if count:
                    starting[host] += count
        waiting = job.queued - sum(starting.values())
        starts_by = now if starting else _starts_by(state, hosts, job, now)
        about = Forecast(now, "") if starting else Forecaster(state, hosts, mean_s, now).start(job)
        lines = explain(state, job, None) if waiting else []
        return TrialView(
            tasks=job.total,
            starting=dict(sorted(starting.items())),
            waiting=waiting,
            starts_by=starts_by,
            lines=lines[1:],
            starts_about=about.at,
            forecast=about.why,
        )
    finally:
        job.held = True  # so it is taken out of the order again
        state.ready.refresh(job, now)
        del state.jobs[job.id]
        if not known:
            state.shares.forget(spec.user)


def _wait(state: ClusterState, job: Job) -> None:
    """Lets the job wait for what has not ended of what it names; what has counts as met."""
    job.unmet = tuple(one for one in job.spec.after if not state.jobs[one.job].is_final)
    sources = [state.jobs[one.job] for one in job.unmet if one.each]
    if not sources or not job.total:
        return
    job.block(1)
    for position in range(job.total):
        index = job.first + position
        if all(not source.has(index) or source.outcome(index) is not None for source in sources):
            job.unblock(position)


def _starts_by(state: ClusterState, hosts: Mapping[str, HostRoom], job: Job, now: float) -> float | None:
    """Returns when time limits of what runs let it start, if it is the first of all."""
    account = state.shares.account(job.spec.user)
    of_quotas = max(state.quotas.room(holders_of(job), way) for way in job.shape.ways)
    room = min(state.limits.room_of(job, account), of_quotas)
    if not job.ready or state.ready.jobs > 1 or room < (job.shape.gang or 1):
        return None
    places = places_of(state, hosts)
    if not job.shape.gang:
        fits = [(way, each) for way in job.shape.ways for each in places if not misfit(way, each.host, each.slots)]
        first = min((latest_start(state, way, place, now) for way, place in fits), default=inf)
    else:
        fitting = [place for place in places if not misfit(job.shape, place.host, place.slots)]
        first = starts(state, job.shape, fitting, now)[0] if could_start(job.shape, fitting) else inf
    return None if first == inf else first

"""Commands that change how jobs go on: hold, release, suspend, resume, set. [pure]"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from depalma.state.checks import MAX_PRIORITY, bad_field, bad_range, bad_tags, bad_text
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.job_commands import HoldJobs, ReleaseJobs, ResumeJobs, SetJobs, SuspendJobs
from depalma.state.jobs import Job
from depalma.state.suspension import Suspension
from depalma.state.ways import on_hosts


def hold_jobs(state: ClusterState, command: HoldJobs) -> Applied | Rejected:
    """Holds jobs that live; the held ones among them stay so."""

    def hold(job: Job) -> bool:
        if job.held:
            return False
        job.held = True
        state.events.add("job.held", command.at, job=job.id, detail={"by": command.by})
        return True

    return steer(state, "hold", command, hold)


def release_jobs(state: ClusterState, command: ReleaseJobs) -> Applied | Rejected:
    """Releases those that are held."""

    def release(job: Job) -> bool:
        if not job.held:
            return False
        job.held = False
        state.events.add("job.released", command.at, job=job.id, detail={"by": command.by})
        return True

    return steer(state, "release", command, release)


def suspend_jobs(state: ClusterState, command: SuspendJobs) -> Applied | Rejected:
    """Suspends jobs that live; of those that are suspended already nothing changes."""
    if wrong := bad_text("reason", command.reason):
        return wrong

    def suspend(job: Job) -> bool:
        if job.suspension is not None:
            return False
        job.suspension = Suspension(command.at, command.by, command.reason)
        detail: Detail = {"by": command.by, "reason": command.reason, "running": len(job.running)}
        state.events.add("job.suspended", command.at, job=job.id, detail=detail)
        return True

    return steer(state, "suspend", command, suspend)


def resume_jobs(state: ClusterState, command: ResumeJobs) -> Applied | Rejected:
    """Lets those that are suspended go on."""

    def resume(job: Job) -> bool:
        if job.suspension is None:
            return False
        job.suspension = None
        state.events.add("job.resumed", command.at, job=job.id, detail={"by": command.by})
        return True

    return steer(state, "resume", command, resume)


def set_jobs(state: ClusterState, command: SetJobs) -> Applied | Rejected:
    """Changes priority, name or tags of jobs that live."""
    given = {"priority": command.priority, "name": command.name, "tags": command.tags}
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        return bad_field("set", "nothing", "at least one of priority, name, tags")
    wrong = (
        (bad_range("priority", command.priority, -MAX_PRIORITY, MAX_PRIORITY) if command.priority is not None else None)
        or (bad_text("name", command.name) if command.name is not None else None)
        or (bad_tags(command.tags) if command.tags is not None else None)
    )
    if wrong:
        return wrong

    def change(job: Job) -> bool:
        state.ready.withdraw(job)  # its place there depends on what changes; it is put back when the job is settled
        if job.counted:
            state.limits.count(job, -job.counted)  # under its old tags
            for shape, tasks in on_hosts(job):
                state.quotas.count(job, shape, -tasks)
        job.spec = msgspec.structs.replace(job.spec, **changes)
        if job.counted:
            state.limits.count(job, job.counted)
            for shape, tasks in on_hosts(job):
                state.quotas.count(job, shape, tasks)
        detail = {
            field: value if isinstance(value, int | str) else ", ".join(value) for field, value in changes.items()
        }
        state.events.add("job.set", command.at, job=job.id, detail={"by": command.by, **detail})
        return True

    return steer(state, "set", command, change)


def steer(
    state: ClusterState,
    kind: str,
    command: HoldJobs | ReleaseJobs | SuspendJobs | ResumeJobs | SetJobs,
    change: Callable[[Job], bool],
) -> Applied | Rejected:
    """Does `change` to each job of the command that lives, all or none, and answers those for which it said True."""
    if known := state.answers.find(kind, command.request):
        return Applied(known.value, state.version)
    if wrong := bad_jobs(state, command.jobs, command.by):
        return wrong
    changed = []
    for job_id in dict.fromkeys(command.jobs):
        job = state.jobs[job_id]
        if not job.is_final and not job.cancelled and change(job):
            changed.append(job_id)
            state.settle(job, command.at)
    answer = tuple(changed)
    state.answers.keep(kind, command.request, answer, command.at)
    return Applied(answer, state.version)


def bad_jobs(state: ClusterState, jobs: tuple[int, ...], by: str) -> Rejected | None:
    """Refuses a list of jobs one of which is unknown, and a `by` that is too long."""
    unknown = next((job for job in jobs if job not in state.jobs), None)
    if unknown is not None:
        return Rejected("unknown_job", f"there is no job {unknown}")
    return None if len(by) <= 200 else bad_field("by", by, "at most 200 characters")

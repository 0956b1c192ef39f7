"""Commands about whole jobs: submit, add tasks, close, cancel, forget. [pure]

Each function checks everything first and then changes the state; a refusal changes nothing.
"""

from __future__ import annotations

from depalma.model import MAX_TASKS, JobSpec
from depalma.state.checks import bad_arguments, bad_field, bad_range, bad_spec
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddTasks, Applied, CancelJobs, CloseJob, ForgetJobs, Rejected, SubmitJob
from depalma.state.deadlines import note_added
from depalma.state.dependencies import bad_jobs_after, begin
from depalma.state.jobs import Job


def submit_job(state: ClusterState, command: SubmitJob) -> Applied | Rejected:
    """Creates the job; it keeps the code index that is the newest now unless its spec names one."""
    if known := state.answers.find("submit", command.request):
        return Applied(known.value, state.version)
    spec = command.spec
    if wrong := bad_spec(spec):
        return wrong
    if not -1 <= spec.code_index <= state.code_index:
        return bad_field("code_index", spec.code_index, f"-1 (newest) to {state.code_index}")
    if wrong := bad_jobs_after(state, spec):
        return wrong
    job = create(state, spec, command.at)
    begin(state, job, command.at)
    state.settle(job, command.at)
    state.answers.keep("submit", command.request, job.id, command.at)
    return Applied(job.id, state.version)


def create(state: ClusterState, spec: JobSpec, at: float) -> Job:
    """Makes the next job, of a spec that was checked."""
    code_index = state.code_index if spec.code_index < 0 else spec.code_index
    job = state.jobs[state.next_job] = Job(state.next_job, spec, code_index, at)
    state.next_job += 1
    state.due.add_job(job)
    if job.total:
        note_added(state, job, 0, at)
    state.events.add("job.submitted", at, job=job.id, detail={"tasks": job.total, "name": spec.name})
    return job


def add_tasks(state: ClusterState, command: AddTasks) -> Applied | Rejected:
    """Adds queued tasks to an open job."""
    if known := state.answers.find("add_tasks", command.request):
        return Applied(known.value, state.version)
    job = state.jobs.get(command.job)
    if job is None:
        return _unknown(command.job)
    if not job.open:
        return Rejected("job_closed", f"job {job.id} is closed: no task can be added")
    wrong = bad_range("count", command.count, 1, MAX_TASKS - job.total) or bad_arguments(
        "arguments", command.arguments, command.count
    )
    if wrong:
        return wrong
    index = job.add_tasks(command.count, command.arguments)
    note_added(state, job, index - job.first, command.at)
    state.settle(job, command.at)
    state.answers.keep("add_tasks", command.request, index, command.at)
    return Applied(index, state.version)


def close_job(state: ClusterState, command: CloseJob) -> Applied | Rejected:
    """Closes the job; closing a closed one changes nothing and is fine."""
    if known := state.answers.find("close", command.request):
        return Applied(known.value, state.version)
    job = state.jobs.get(command.job)
    if job is None:
        return _unknown(command.job)
    if job.open:
        job.open = False
        state.settle(job, command.at)
    state.answers.keep("close", command.request, None, command.at)
    return Applied(None, state.version)


def cancel_jobs(state: ClusterState, command: CancelJobs) -> Applied | Rejected:
    """Cancels what waits and marks what runs; a job that has ended stays as it is."""
    if known := state.answers.find("cancel", command.request):
        return Applied(known.value, state.version)
    unknown = [job for job in command.jobs if job not in state.jobs]
    if unknown:
        return _unknown(unknown[0])
    live = []
    for job_id in dict.fromkeys(command.jobs):
        job = state.jobs[job_id]
        if job.is_final:
            continue
        live.append(job_id)
        if not job.cancelled:
            _cancel(state, job, command)
    answer = tuple(live)
    state.answers.keep("cancel", command.request, answer, command.at)
    return Applied(answer, state.version)


def _cancel(state: ClusterState, job: Job, command: CancelJobs) -> None:
    job.cancelled = True
    job.cancelled_by = command.by
    job.open = False
    queued = job.cancel_queued(command.at)
    state.events.add(
        "job.cancelled",
        command.at,
        job=job.id,
        detail={"by": command.by, "cancelled": queued, "running": len(job.running)},
    )
    state.settle(job, command.at)


def forget_jobs(state: ClusterState, command: ForgetJobs) -> Applied | Rejected:
    """Drops those of the jobs that have ended. Answers Applied(jobs that were dropped)."""
    dropped = []
    for job_id in command.jobs:
        job = state.jobs.get(job_id)
        if job is not None and job.is_final:
            state.changes.forgotten.append(state.jobs.pop(job_id))
            state.ready.trim(job.spec.user, command.at)
            state.changes.jobs.add(job_id)
            dropped.append(job_id)
    return Applied(tuple(dropped), state.version)


def _unknown(job: int) -> Rejected:
    return Rejected("unknown_job", f"there is no job {job}")

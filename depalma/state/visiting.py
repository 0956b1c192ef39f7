"""Visits of running tasks: which task is meant, whether it runs, and the record of who was there. [pure]"""

from __future__ import annotations

from depalma.model import AttemptRef
from depalma.state.checks import bad_field
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.job_commands import VisitTask
from depalma.state.jobs import Job
from depalma.visits import MAX_COMMAND_BYTES

#: As much of the command is kept in the event.
MAX_SHOWN = 1000
#: So many tasks are named to choose from.
_NAMED = 10


def visit_task(state: ClusterState, command: VisitTask) -> Applied | Rejected:
    """Records a visit of a task that runs. Answers the attempt."""
    if known := state.answers.find("visit", command.request):
        return Applied(known.value, state.version)
    job = state.jobs.get(command.job)
    if job is None:
        return Rejected("unknown_job", f"there is no job {command.job}")
    if wrong := _bad_words(command):
        return wrong
    ref = visited(job, command.task)
    if isinstance(ref, Rejected):
        return ref
    host = job.running[ref[1]].host
    shown = " ".join(command.argv)[:MAX_SHOWN] or "a shell"
    detail: Detail = {"by": command.by, "command": shown, "tty": command.tty}
    state.events.add("task.visited", command.at, host=host, refs=(ref,), detail=detail)
    state.answers.keep("visit", command.request, ref, command.at)
    return Applied(ref, state.version)


def _bad_words(command: VisitTask) -> Rejected | None:
    if command.argv and not command.argv[0]:
        return bad_field("argv", list(command.argv), "the program's name first, or nothing for a shell")
    if sum(len(word) + 1 for word in command.argv) > MAX_COMMAND_BYTES or any("\0" in word for word in command.argv):
        return bad_field("argv", "its words", f"at most {MAX_COMMAND_BYTES} characters together, no NUL")
    return None if len(command.by) <= 200 else bad_field("by", command.by, "at most 200 characters")


def visited(job: Job, index: int | None) -> AttemptRef | Rejected:
    """Returns the live attempt of the task that is meant: the one that is named, or the only one that runs."""
    if index is None:
        chosen = _only(job)
        if isinstance(chosen, Rejected):
            return chosen
        index = chosen
    if not job.has(index):
        last = job.first + job.total - 1
        return Rejected("unknown_task", f"job {job.id} has no task {index}; it has {job.first} to {last}")
    name = f"task {job.id}.{index}"
    attempt = job.running.get(index)
    if attempt is None:
        return Rejected("not_running", f"{name} is {job.state_of(index)}; it can be entered only while it runs")
    if job.cancelled:
        return Rejected("not_running", f"{name} is being cancelled; it can be entered only while it runs")
    if job.suspension is not None:
        return Rejected("not_running", f"{name} is suspended, and so would be what enters it; resume it first")
    return job.id, index, attempt.number


def _only(job: Job) -> int | Rejected:
    """Returns the task that runs, if there is exactly one."""
    on_hosts = sorted(job.running)
    begun = [index for index in on_hosts if job.running[index].started_at is not None]
    found = begun or on_hosts
    if len(found) == 1:
        return found[0]
    if job.total == 1:
        return job.first  # whatever keeps it from running is told of it
    if not found:
        return Rejected("not_running", f"no task of job {job.id}, which is {job.state()}, runs now")
    named = ", ".join(f"{job.id}.{index}" for index in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return Rejected("which_task", f"{len(found)} tasks of job {job.id} run: name one of {named}{more}")

"""The replicated commands that steer jobs which are there already. [pure]"""

from __future__ import annotations

from depalma.model import JobSpec
from depalma.state.command import Command


class SubmitGraph(Command, frozen=True, tag="job.submit_graph"):
    """Creates jobs that wait for each other (`after` with a negative number names one of them), all or none.
    Answers Applied(their ids, in order)."""

    request: str
    specs: tuple[JobSpec, ...]
    at: float


class HoldJobs(Command, frozen=True, tag="job.hold"):
    """No further task of them is handed out until ReleaseJobs; what is on a host goes on. Answers Applied(jobs that
    are held now and were not)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""


class ReleaseJobs(Command, frozen=True, tag="job.release"):
    """Ends HoldJobs, and `hold` of a submission. Answers Applied(jobs that were held)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""


class SuspendJobs(Command, frozen=True, tag="job.suspend"):
    """Nothing of them begins until ResumeJobs, and what is on a host stands still there. Answers Applied(jobs that are
    suspended now and were not)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""
    reason: str = ""


class ResumeJobs(Command, frozen=True, tag="job.resume"):
    """Ends SuspendJobs: what stood still goes on. Answers Applied(jobs that were suspended)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""


class RetryJobs(Command, frozen=True, tag="job.retry"):
    """Queues the tasks that failed, timed out or were lost again, with all of their retries. A job that had ended is
    live again. Refused for a cancelled job. Answers Applied(jobs that had such tasks)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""


class SetJobs(Command, frozen=True, tag="job.set"):
    """Changes what is given of jobs that live; None leaves as it is. What is on a host stays there. Answers
    Applied(jobs that live)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""
    priority: int | None = None
    name: str | None = None
    tags: tuple[str, ...] | None = None


class VisitTask(Command, frozen=True, tag="task.visit"):
    """A user enters the running task `task` of a job (None: the only one that runs) with a command, or (no words) a
    shell. Nothing of the task changes: this is the record of it. Refused unless the task runs. Answers Applied(its
    attempt)."""

    request: str
    job: int
    task: int | None
    argv: tuple[str, ...]
    at: float
    by: str = ""
    tty: bool = False


class PassTime(Command, frozen=True, tag="time.pass"):
    """It is `at` for the leader: what was to happen until then happens (a back-off or a start deadline is over), at
    most `limit` of it. Answers Applied(how much did)."""

    at: float
    limit: int = 1000


class AddSchedule(Command, frozen=True, tag="schedule.add"):
    """A job of this spec is to be submitted at each tick of `cron` in the time zone `zone`, first at `first_at` (which
    the proposer reckons: the state knows no time zones). Refused if the name is taken. See `schedules.Schedule`."""

    request: str
    name: str
    spec: JobSpec
    cron: str
    zone: str
    first_at: float
    at: float
    catch_up: str = "one"
    overlap: str = "run"
    by: str = ""


class RemoveSchedule(Command, frozen=True, tag="schedule.remove"):
    """No more jobs of it; those that are there stay."""

    request: str
    name: str
    at: float


class TickSchedule(Command, frozen=True, tag="schedule.tick"):
    """The tick `tick_at` of a schedule has come, and the next one is `next_at`. Refused unless `tick_at` is the one
    that is awaited, so each tick happens once. `run`: whether it makes a job. Answers Applied(job id, or None)."""

    name: str
    tick_at: float
    next_at: float
    run: bool
    at: float


JobCommand = (
    HoldJobs
    | ReleaseJobs
    | RetryJobs
    | SetJobs
    | SubmitGraph
    | PassTime
    | AddSchedule
    | RemoveSchedule
    | TickSchedule
    | SuspendJobs
    | ResumeJobs
    | VisitTask
)

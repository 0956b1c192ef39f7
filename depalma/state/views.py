"""The state as programs and people see it. [pure]"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from depalma.alternatives import spec_as
from depalma.codetree import CodeEntry
from depalma.model import (
    FINAL_STATES,
    AttemptView,
    CodeView,
    HostView,
    JobSpec,
    JobView,
    Load,
    TaskState,
    TaskView,
)
from depalma.state.cluster_state import ClusterState
from depalma.state.completions import Finished
from depalma.state.explain import suspended_reason, telling_task, waiting_reason
from depalma.state.hosts import Host
from depalma.state.jobs import Attempt, Job
from depalma.state.shapes import gpu_share, shown
from depalma.state.stories import Story
from depalma.state.task_states import QUEUED, UNBLOCKED, UNENDED, WAITING_WORDS, WORDS

__all__ = [
    "code_view", "command_of", "host_view", "is_awaited", "job_reason", "job_view", "task_view", "task_views",
]  # fmt: skip


def job_view(state: ClusterState, job: Job) -> JobView:
    """Returns the job with its counts; `reason` says in one line why it waits or how it failed."""
    spec = job.spec
    return JobView(
        id=job.id,
        name=spec.name,
        user=spec.user,
        kind=spec.kind,
        state=job.state(),
        priority=spec.priority,
        tags=spec.tags,
        group=spec.group,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        code_index=job.code_index,
        tasks=job.counts(),
        exit_code=job.exit_code,
        reason=_job_reason(state, job),
        open=job.open,
        command=command_of(spec),
    )


def command_of(spec: JobSpec) -> str:
    """Returns the command line or the function's name, for people."""
    if spec.kind == "command":
        return " ".join(spec.argv)
    return spec.function or spec.name or "function"


def _job_reason(state: ClusterState, job: Job) -> str:
    return job_reason(job) if job.is_final or job.cancelled else waiting_reason(state, job)


def job_reason(job: Job) -> str:
    """Returns in one line how a job failed or was cancelled; empty if it did not."""
    if job.cancelled:
        by = f" by {job.cancelled_by}" if job.cancelled_by else f": it {job.cancel_reason}" if job.cancel_reason else ""
        return f"cancelled{by}" + ("" if job.is_final else f", still on hosts: {len(job.running)}")
    index = telling_task(job)
    record = job.outcome(index) if index >= 0 else None
    if record is None:
        return ""
    return f"task {job.id}.{index} {record.state}{_why(record)}"


def _why(record: Finished) -> str:
    """Returns the short cause of an ending, with a colon before it."""
    if error := _last_line(record.error):
        return f": {error}"
    if record.signal:
        return f": signal {record.signal}"
    return f": exit code {record.exit_code}" if record.exit_code else ""


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def task_view(state: ClusterState, job: Job, index: int) -> TaskView:
    """Returns one task with its attempts. Errors: IndexError when the job has none of this index."""
    word = job.state_of(index)
    record = job.outcome(index)
    story = job.stories.get(index - job.first) if job.stories else None
    if record is not None:
        return _final_view(state, job, index, record, story)
    attempt = job.running.get(index)
    if attempt is None:
        reason = f"queued again: {story.attempts[-1].reason}" if story else ""
        return _view(
            job, index, word, story.last if story else 0, reason=waiting_reason(state, job) or reason, story=story
        )
    if word == "running" and state.hosts[attempt.host].suspends(restartable=job.spec.restartable):
        word = "suspended"
    return TaskView(
        id=f"{job.id}.{index}",
        job=job.id,
        index=index,
        state=word,
        attempt=attempt.number,
        host=attempt.host,
        exit_code=None,
        signal=None,
        started_at=attempt.started_at,
        finished_at=None,
        code_index=job.code_index,
        code_digest=state.tree_digest(job.code_index),
        reason=suspended_reason(job) or attempt.reason,
        attempts=_attempts(story, _live(attempt, word)),
        gpus=attempt.gpus,
        gpu_share=gpu_share(spec_as(job.spec, attempt.alternative)),
        alternative=attempt.alternative,
    )


def _view(job: Job, index: int, word: TaskState, attempt: int, *, reason: str, story: Story | None) -> TaskView:
    return TaskView(
        id=f"{job.id}.{index}",
        job=job.id,
        index=index,
        state=word,
        attempt=attempt,
        host="",
        exit_code=None,
        signal=None,
        started_at=None,
        finished_at=None,
        code_index=job.code_index,
        code_digest="",
        reason=reason,
        attempts=_attempts(story, None),
    )


def _final_view(state: ClusterState, job: Job, index: int, record: Finished, story: Story | None) -> TaskView:
    last = None
    if record.host:
        last = AttemptView(
            number=record.attempt,
            host=record.host,
            state=record.state,
            started_at=record.started_at,
            finished_at=record.finished_at,
            reason=_last_line(record.error) or record.reason,  # as of those before: how it ended, if not well
        )
    return TaskView(
        id=f"{job.id}.{index}",
        job=job.id,
        index=index,
        state=record.state,
        attempt=record.attempt,
        host=record.host,
        exit_code=record.exit_code,
        signal=record.signal,
        started_at=record.started_at,
        finished_at=record.finished_at,
        code_index=record.code_index or job.code_index,
        code_digest=record.code_digest,
        error=record.error,
        reason=record.reason or ("" if record.host else record.error or "cancelled while it was queued"),
        attempts=_attempts(story, last),
        error_code=record.error_code,
        outputs=record.outputs,
        alternative=record.alternative,
    )


def _live(attempt: Attempt, word: str) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        host=attempt.host,
        state=word,
        started_at=attempt.started_at,
        finished_at=None,
        reason=attempt.reason,
    )


def _attempts(story: Story | None, last: AttemptView | None) -> tuple[AttemptView, ...]:
    past = (
        ()
        if story is None
        else tuple(
            AttemptView(
                number=each.number,
                host=each.host,
                state=each.state,
                started_at=each.started_at,
                finished_at=each.finished_at,
                reason=each.reason,
            )
            for each in story.attempts
        )
    )
    return past if last is None else (*past, last)


def task_views(
    state: ClusterState, job: Job, state_filter: TaskState | None = None, after: int = -1, limit: int = 1000
) -> list[TaskView]:
    """Returns up to `limit` tasks with an index above `after`, in order of index; only those in `state_filter`."""
    return [task_view(state, job, index) for index in islice(_indices(job, state_filter, after), max(0, limit))]


def _indices(job: Job, state_filter: TaskState | None, after: int) -> Iterator[int]:
    """Yields the indices of tasks in a state, at the cost of a byte search."""
    start = max(0, after + 1 - job.first)
    if state_filter is None:
        yield from range(job.first + start, job.first + job.total)
        return
    states, code = job.states, WORDS.index(state_filter) if state_filter in WORDS else -1
    if job.suspension is not None and state_filter not in FINAL_STATES:
        states, code = states.translate(UNENDED), QUEUED if state_filter == "suspended" else -1
    elif state_filter in WAITING_WORDS:
        # Of a held job all that waits is held, of one that waits for whole jobs all that waits is blocked.
        whole = "held" if job.held else "blocked" if job.waits else ""
        if whole:
            states, code = states.translate(UNBLOCKED), QUEUED if state_filter == whole else -1
    position = states.find(code, start) if code >= 0 else -1
    while position >= 0:
        yield job.first + position
        position = states.find(code, position + 1)


def host_view(state: ClusterState, host: Host, load: Load, last_seen_s: float | None) -> HostView:
    """Returns the host; `load` and `last_seen_s` are what the leader knows besides the state."""
    facts = host.facts
    return HostView(
        name=host.name,
        state=host.shown_state,
        groups=host.groups,
        labels=host.labels,
        priority=host.priority,
        slots=host.slots,
        running=len(host.attempts),
        code_index=host.code_index,
        cpus=facts.cpus if facts else 0,
        memory_bytes=facts.memory_bytes if facts else 0,
        load=load,
        last_seen_s=last_seen_s,
        reason=host.shown_reason,
        version=facts.version if facts else "",
        python=facts.python if facts else "",
        address=facts.address if facts else "",
        gpus=host.gpu_count,
        since=host.shown_since,
        deadline_at=host.drain.deadline_at if host.drain is not None else None,
        limits=facts.limits if facts else "",
        owner_policy=host.owner_policy,
        owner_step=host.presence.step if host.presence is not None else "",
        resources=host.resources,
        taken={name: shown(name, number) for name, number in host.taken.items() if isinstance(name, str)},
    )


def is_awaited(host: Host) -> bool:
    """Returns whether a new entry of the code log waits for the host: one that is live and not kicked out."""
    return host.state not in ("down", "lost") and not (host.lag is not None and host.lag.kicked)


def code_view(state: ClusterState, entry: CodeEntry) -> CodeView:
    """Returns the entry with the hosts that have it, and the live ones that do not."""
    hosts = sorted(state.hosts.values(), key=lambda host: host.name)
    behind = [host for host in hosts if host.code_index < entry.index]
    return CodeView(
        index=entry.index,
        name=entry.name,
        kind=entry.kind,
        digest=entry.digest,
        size=entry.size_bytes,
        added_at=entry.added_at,
        added_by=entry.added_by,
        acknowledged=tuple(host.name for host in hosts if host.code_index >= entry.index),
        missing=tuple(host.name for host in behind if is_awaited(host)),
        requirements=entry.requirements,
        rollback_of=entry.rollback_of,
        argv=entry.argv,
        timeout_s=entry.timeout_s,
        lagging={host.name: host.lag.reason for host in behind if host.lag is not None},
        failed={host.name: host.runs[entry.index].exit_code for host in behind if entry.index in host.runs},
    )

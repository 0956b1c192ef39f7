"""One job and one host as they are stored in a snapshot. [pure]

Fields are only ever added at the end, with a default.
"""

from __future__ import annotations

from msgspec import Struct

from depalma.model import Dependency, HostFacts, HostState, JobSpec, Payload
from depalma.ownership import OwnerPolicy
from depalma.state.completions import Completions, CompletionsImage
from depalma.state.gangs import GangRun
from depalma.state.hosts import CodeLag, CodeRun, Drain, Host, Presence
from depalma.state.jobs import NOTHING_ADDED, Attempt, Chunk, Job
from depalma.state.stories import Story
from depalma.state.suspension import Suspension
from depalma.state.task_states import BLOCKED, FINAL_CODES


class JobImage(Struct, array_like=True, gc=False):
    """A job, or the first rows, stories and chunks of a large one."""

    id: int
    spec: JobSpec
    code_index: int
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    open: bool
    held: bool
    cancelled: bool
    cancelled_by: str
    states: bytes
    cursor: int
    requeued: list[int]
    running: list[tuple[int, Attempt]]
    stories: list[tuple[int, Story]]
    done: CompletionsImage | None
    exit_code_seen: int
    first_bad: int
    chunks: list[Chunk]
    unmet: tuple[Dependency, ...] = ()
    masks: bytes = b""
    cancel_reason: str = ""
    delayed: list[tuple[int, float]] = []
    asleep: bool = False
    gangs: list[tuple[int, GangRun]] = []
    suspension: Suspension | None = None
    added: list[tuple[int, float]] = []


class HostImage(Struct, array_like=True, gc=False):
    """A host."""

    name: str
    groups: tuple[str, ...]
    labels: dict[str, str]
    priority: int
    slots: int
    gpus: int
    added_at: float
    state: HostState
    reason: str
    since: float
    incarnation: str
    over: list[str]
    facts: HostFacts | None
    code_index: int
    acknowledgements: dict[int, str]
    from_file: bool = True
    drain: Drain | None = None
    removing: str = ""
    lag: CodeLag | None = None
    runs: dict[int, CodeRun] = {}
    owner_policy: OwnerPolicy = OwnerPolicy()
    owner_given: bool = False
    presence: Presence | None = None
    resources: dict[str, int] = {}


def job_image(
    job: Job, done: CompletionsImage | None, stories: list[tuple[int, Story]], chunks: list[Chunk]
) -> JobImage:
    """Returns the job as it is stored, with these of its rows, stories and chunks."""
    return JobImage(
        job.id,
        job.spec,
        job.code_index,
        job.submitted_at,
        job.started_at,
        job.finished_at,
        job.open,
        job.held,
        job.cancelled,
        job.cancelled_by,
        bytes(job.states),
        job.cursor,
        job.requeued,
        list(job.running.items()),
        stories,
        done,
        job.exit_code_seen,
        job.first_bad,
        chunks,
        job.unmet,
        bytes(job.masks),
        job.cancel_reason,
        list(job.delayed.items()),
        job.asleep,
        list(job.gangs.items()),
        job.suspension,
        job.added,
    )


def job_of(image: JobImage, seen: dict[Payload, Payload]) -> Job:
    """Returns the job of an image; `seen` makes equal results one object. What else is derived is not there yet."""
    job = Job(image.id, image.spec, image.code_index, image.submitted_at)
    job.started_at, job.finished_at = image.started_at, image.finished_at
    job.open, job.held = image.open, image.held
    job.cancelled, job.cancelled_by = image.cancelled, image.cancelled_by
    job.states = bytearray(image.states)
    job.cursor, job.requeued = image.cursor, image.requeued
    job.running, job.stories = dict(image.running), dict(image.stories)
    if image.done is not None:
        job.done = Completions(job.first)
        job.done.extend(image.done, seen)
    for code in FINAL_CODES:
        job.tally[code] = job.states.count(code)
    job.exit_code_seen, job.first_bad, job.chunks = image.exit_code_seen, image.first_bad, image.chunks
    job.unmet, job.masks, job.cancel_reason = image.unmet, bytearray(image.masks), image.cancel_reason
    job.asleep, job.suspension, job.added = image.asleep, image.suspension, image.added or NOTHING_ADDED
    if image.gangs:
        job.gangs = dict(image.gangs)
    job.blocked, job.delayed = job.states.count(BLOCKED), dict(image.delayed)
    return job


def host_image(host: Host) -> HostImage:
    """Returns the host as it is stored."""
    return HostImage(
        host.name,
        host.groups,
        host.labels,
        host.priority,
        host.configured_slots,
        host.gpus,
        host.added_at,
        host.state,
        host.reason,
        host.since,
        host.incarnation,
        host.over,
        host.facts,
        host.code_index,
        host.acknowledgements,
        host.from_file,
        host.drain,
        host.removing,
        host.lag,
        host.runs,
        host.owner_policy,
        host.owner_given,
        host.presence,
        host.resources,
    )


def host_of(image: HostImage) -> Host:
    """Returns the host of an image, without its attempts: these are the jobs' to tell."""
    host = Host(image.name, image.groups, image.labels, image.priority, image.slots, image.gpus, image.added_at)
    host.turn(image.state, image.reason, image.since)
    host.incarnation, host.over = image.incarnation, image.over
    host.facts, host.code_index, host.acknowledgements = image.facts, image.code_index, image.acknowledgements
    host.from_file, host.drain, host.removing = image.from_file, image.drain, image.removing
    host.lag, host.runs = image.lag, image.runs
    host.owner_policy, host.owner_given, host.presence = image.owner_policy, image.owner_given, image.presence
    host.resources = image.resources
    return host

"""The values that every part of Depalma shares: what a job is, and how things look to programs. [pure]

Structs here are frozen. User input is decoded with `forbid_unknown_fields`, so a typing error is refused by name;
the views are what `-o json` and the HTTP API print (their field names are a promise, see docs/api.md).
Times are seconds since the epoch (float) inside; views carry them as they are.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from depalma.alternatives import Alternative
from depalma.gpuparts import normal
from depalma.ownership import OwnerPolicy
from depalma.tails import OutputTail

#: Payloads and results up to this size travel in the log; larger ones go beside it, as blobs.
INLINE_LIMIT_BYTES = 4096
#: Most tasks one job may have.
MAX_TASKS = 10_000_000

TaskState = Literal[
    "held", "blocked", "queued", "assigned", "running", "suspended",
    "succeeded", "failed", "cancelled", "timed_out", "lost",
]  # fmt: skip
FINAL_STATES: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "timed_out", "lost"})
HostState = Literal["up", "suspect", "lost", "draining", "drained", "lagging", "kicked", "owner", "down"]

#: (job, task index, attempt number): names one execution, and is what every write about it believes.
AttemptRef = tuple[int, int, int]


class Payload(Struct, frozen=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """Bytes, either here (`inline`) or in the blob store under their SHA-256 (`digest`)."""

    inline: bytes = b""
    digest: str = ""
    size_bytes: int = 0


class Dependency(Struct, frozen=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """What has to end before work may start. `fail`: it failed, timed out or was lost; being cancelled counts only for
    `any`."""

    job: int  #: in a graph, -1 is the first job of the same submission, -2 the second, and so on
    when: Literal["ok", "fail", "any"] = "ok"
    each: bool = False  #: each task waits for that job's task of equal index, not for the whole job


class JobSpec(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for; stored once a job, never a task.

    A command job has `argv` (each `{}` in it is replaced by the task's argument, UTF-8). A function job has
    `function` (`pkg.mod:qualname`, resolved in the synced code) or, when that is empty, `function_pickle`; when
    both are empty each task's argument carries its own. Arguments of functions are pickles that only a worker opens.
    """

    kind: Literal["command", "function"]
    name: str = ""
    user: str = ""
    priority: int = 0
    tags: tuple[str, ...] = ()
    group: str = ""  #: only hosts of this group; empty = any
    on_host: str = ""  #: only this host; empty = any
    argv: tuple[str, ...] = ()
    cwd: str = ""
    env: dict[str, str] = {}
    function: str = ""
    function_pickle: Payload | None = None
    count: int = 1  #: number of tasks; for an open job, those known at submission
    first_index: int = 0  #: index of the first task (arrays may start anywhere)
    arguments: Payload | None = None  #: packed (see items.py), one an index; None = tasks without argument
    open: bool = False  #: tasks may be added until the job is closed
    cpus: float = 1.0
    memory_bytes: int = 0  #: what a task needs, and may use: beyond it it is ended; 0 = no limit
    max_running: int = 0  #: at most this many tasks at once; 0 = no limit
    retries: int = 0  #: further attempts after a task failed or timed out (lost hosts do not count)
    timeout_s: float = 0.0  #: an attempt that runs longer is killed; 0 = no limit
    grace_s: float = 5.0  #: between SIGTERM and SIGKILL
    restartable: bool = True  #: False: a task whose host was lost ends as `lost`
    hold: bool = False
    code_index: int = -1  #: the code index to run with; -1 = the newest at submission
    python: str = ""  #: `3.11` of the submitter for function jobs with pickles; empty = any
    stdout: str = ""  #: a file on the host instead of the agent's own capture
    stderr: str = ""
    cpu_time_s: float = 0.0  #: of all processes of a task together; 0 = no limit
    max_processes: int = 0  #: of a task at once; 0 = no limit
    max_files: int = 0  #: open at once in each process; 0 = the host's own limit
    max_output_bytes: int = 0  #: of stdout and stderr together; 0 = no limit (what is captured has the host's)
    scratch_bytes: int = 0  #: in its scratch folder; 0 = no limit
    isolate: bool = False  #: each task of a function job in a process of its own
    inputs: Payload | None = None  #: an archive (staging.py), unpacked into the scratch folder before the start
    outputs: tuple[str, ...] = ()  #: globs below the scratch folder: what matches is kept as the task's outputs
    labels: tuple[str, ...] = ()  #: rules for the labels of its host, all of them: `disk=ssd`, `ram_gb>64`, …
    prefer: tuple[str, ...] = ()  #: the same, wished for: hosts for which most of them hold come first
    gpus: int | float = 0  #: GPUs that each task has to itself; below 1: its part of one that it shares
    resources: dict[str, int] | None = None  #: of what its host has so many of, such as licences
    pack: bool = False  #: fill one host after the other, instead of spreading tasks
    limits: dict[str, int] | None = None  #: tag → at most so many tasks with it at once in the cluster; it has the tag
    preempt: bool = False  #: tasks of lower priority that may run again make room for it
    #: before a task is tried again after a failure: this long, twice as long after the next one, an hour at most
    backoff_s: float = 0.0
    retry_exit_codes: tuple[int, ...] = ()  #: only a command that ended with one of these is tried again; empty = any
    timeout_retries: int = -1  #: further attempts after a task timed out; -1 = they count among `retries`
    lost_retries: int = -1  #: further attempts after its host was lost; -1 = no limit
    #: a job none of whose tasks has started so long after its submission is cancelled; 0 = it waits
    start_within_s: float = 0.0
    start_at: float = 0.0  #: nothing of it starts before this time (seconds since the epoch); 0 = at once
    after: tuple[Dependency, ...] = ()  #: what its tasks wait for; when that cannot come any more they are cancelled
    #: the tasks start in groups of so many: all of a group at once, or none; -1 = all of the job in one, 0 = each alone
    gang: int = 0
    #: a task that no host was given so long after it was submitted, or added, is cancelled; 0 = it waits
    task_start_within_s: float = 0.0
    stdin: Payload | None = None  #: of each task of a command job; None = nothing (/dev/null)
    alternatives: tuple[Alternative, ...] = ()  #: what a task may need instead, the best first

    def __post_init__(self) -> None:
        if self.gpus.__class__ is float:
            force_setattr(self, "gpus", normal(self.gpus))


#: Parts of a slot: powers of two, so that sums of them are exact.
_SLOT_PARTS = 64


def slots_of(cpus: float) -> float:
    """Returns how many slots a task that asks for `cpus` takes: as many, rounded up to a 64th."""
    return max(1, ceil(cpus * _SLOT_PARTS)) / _SLOT_PARTS


class Report(Struct, frozen=True, array_like=True, gc=False):
    """How one attempt ended, from the agent that ran it."""

    job: int
    task: int
    attempt: int
    #: succeeded, failed, cancelled, timed_out, returned (never started; goes back to the queue), or moved (ended
    #: because its host was to be free of work; runs elsewhere if it is restartable)
    outcome: str
    exit_code: int | None = None
    signal: int | None = None
    error: str = ""  #: one line for people, or the remote traceback
    result: Payload | None = None  #: function jobs: the pickled value, or the pickled exception when failed
    started_at: float | None = None
    finished_at: float | None = None
    code_index: int = 0
    code_digest: str = ""
    error_code: str = ""  #: what ended it, for programs: one of ERROR_CODES, or empty
    outputs: Payload | None = None  #: an archive of the files that it was asked for
    tail: OutputTail | None = None  #: the end of what it wrote; None = it wrote nothing


#: `error_code` of a task: which of its limits ended it, or what of its files could not be had.
ERROR_CODES = (
    "memory_limit", "cpu_time_limit", "process_limit", "output_limit", "scratch_limit", "time_limit",
    "bad_inputs", "bad_outputs",
)  # fmt: skip


class HostFacts(Struct, frozen=True, array_like=True, gc=False):
    """What an agent says of its host."""

    slots: int
    cpus: int
    memory_bytes: int
    gpus: int
    version: str
    python: str
    address: str
    limits: str = ""  #: how tasks are limited there, for people: `memory: cgroup v2, …`
    lease_s: float = 0.0  #: the lease that this incarnation was given; the leader fills it in. 0 = that of the settings


class TaskCounts(Struct, frozen=True, gc=False):
    total: int = 0
    queued: int = 0
    running: int = 0  #: assigned ones included
    succeeded: int = 0
    failed: int = 0  #: timed out ones included
    cancelled: int = 0
    lost: int = 0


class JobView(Struct, frozen=True, kw_only=True):
    id: int
    name: str
    user: str
    kind: str
    state: TaskState
    priority: int
    tags: tuple[str, ...]
    group: str
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    code_index: int
    tasks: TaskCounts
    exit_code: int | None = None
    reason: str = ""
    open: bool = False
    command: str = ""  #: the command line or the function's name, for people
    archived: bool = False  #: the masters have it in their archives only: its results and its output are gone


class AttemptView(Struct, frozen=True, kw_only=True):
    number: int
    host: str
    state: str
    started_at: float | None
    finished_at: float | None
    reason: str = ""


class TaskView(Struct, frozen=True, kw_only=True):
    id: str  #: `42.7`
    job: int
    index: int
    state: TaskState
    attempt: int
    host: str
    exit_code: int | None
    signal: int | None
    started_at: float | None
    finished_at: float | None
    code_index: int
    code_digest: str
    error: str = ""
    reason: str = ""
    attempts: tuple[AttemptView, ...] = ()
    error_code: str = ""  #: which limit ended it, and the like; see docs/api.md
    outputs: Payload | None = None  #: the archive of its output files: GET /v1/blobs/DIGEST
    gpus: tuple[int, ...] = ()  #: those that it has while it is on a host
    gpu_share: float = 0.0  #: its part of that GPU, which others may share; 0 = it has them to itself
    alternative: int = 0  #: as which of its alternatives it runs or ran; 0 = as its job says first


class GpuLoad(Struct, frozen=True, gc=False):
    """Measured load of one GPU."""

    name: str
    busy_percent: float
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0


class Load(Struct, frozen=True, gc=False):
    """Measured load of a host, of everything that runs there. Percents of CPU are of all its CPUs together."""

    load1: float = 0.0
    load5: float = 0.0
    load15: float = 0.0
    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    memory_used_bytes: int = 0
    tasks_cpu_percent: float = 0.0  #: of what the cluster runs here
    foreign_cpu_percent: float = 0.0  #: of everything else
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    swap_total_bytes: int = 0
    swap_used_bytes: int = 0
    folder_total_bytes: int = 0  #: the file system of the agent's folder
    folder_free_bytes: int = 0
    root_total_bytes: int = 0  #: the file system `/`
    root_free_bytes: int = 0
    disk_read_bytes_per_s: float = 0.0
    disk_written_bytes_per_s: float = 0.0
    network_received_bytes_per_s: float = 0.0  #: loopback left out
    network_sent_bytes_per_s: float = 0.0
    gpus: tuple[GpuLoad, ...] = ()


class LoadFigures(Struct, frozen=True, gc=False):
    """What is kept of a host's load over time. Those of GPUs are of all together."""

    load1: float = 0.0
    load5: float = 0.0
    load15: float = 0.0
    cpu_percent: float = 0.0
    tasks_cpu_percent: float = 0.0
    foreign_cpu_percent: float = 0.0
    memory_percent: float = 0.0
    memory_used_bytes: float = 0.0
    swap_used_bytes: float = 0.0
    folder_free_bytes: float = 0.0
    root_free_bytes: float = 0.0
    disk_read_bytes_per_s: float = 0.0
    disk_written_bytes_per_s: float = 0.0
    network_received_bytes_per_s: float = 0.0
    network_sent_bytes_per_s: float = 0.0
    gpu_busy_percent: float = 0.0
    gpu_memory_used_bytes: float = 0.0


class LoadPoint(Struct, frozen=True, gc=False):
    """The load over one step: the mean and the highest of its samples, about one a second."""

    at: float  #: begin of the step, seconds since the epoch
    samples: int
    mean: LoadFigures
    max: LoadFigures


class LoadHistory(Struct, frozen=True, gc=False):
    """The load of a host over time, oldest first. Steps without a point: the host slept, or its agent was not there."""

    began_at: float  #: since when the agent measures: what was before its start, nobody knows
    step_s: float
    points: tuple[LoadPoint, ...]


class HostView(Struct, frozen=True, kw_only=True):
    name: str
    state: HostState
    groups: tuple[str, ...]
    labels: dict[str, str]
    priority: int
    slots: int
    running: int
    code_index: int
    cpus: int
    memory_bytes: int
    load: Load
    last_seen_s: float | None  #: seconds since the leader heard it; None = not since this leader leads
    reason: str = ""
    version: str = ""
    python: str = ""
    address: str = ""
    gpus: int = 0
    since: float = 0.0  #: when the state began
    deadline_at: float | None = None  #: of a drain: what still runs then is moved; None = nothing is moved
    limits: str = ""  #: how its tasks are limited: `memory: cgroup v2, …`
    owner_policy: OwnerPolicy = OwnerPolicy()  #: when its owner lets it work
    owner_step: str = ""  #: while the owner is there: how far its tasks made way
    resources: dict[str, int] = {}  #: what it has so many of, besides slots, memory and GPUs
    taken: dict[str, int | float] = {}  #: what its tasks have of them: `memory_bytes`, `gpus`, and its resources


class MasterAddress(Struct, frozen=True, array_like=True, gc=False):
    """A master, and where it is."""

    id: str
    host: str
    port: int  #: API, agents, web page, metrics
    raft_port: int

    @property
    def url(self) -> str:
        """Returns the base URL of its API."""
        return f"http://{self.host}:{self.port}"


class MasterView(Struct, frozen=True, kw_only=True):
    id: str
    url: str
    role: Literal["leader", "follower", "candidate", "unreachable"]
    term: int
    commit_index: int
    applied_index: int
    state_hash: str
    last_contact_s: float | None
    version: str


class CodeView(Struct, frozen=True, kw_only=True):
    index: int
    name: str
    kind: str
    digest: str
    size: int
    added_at: float
    added_by: str
    acknowledged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  #: live hosts that have not acknowledged, those kicked out left out
    requirements: str = ""  #: digest of the requirements file; empty = none
    rollback_of: int = 0  #: the tree is that of this index again; 0 = no rollback
    argv: tuple[str, ...] = ()  #: of a command
    timeout_s: float = 0.0  #: of a command
    lagging: dict[str, str] = field(default_factory=dict)  #: hosts that are marked as behind it, with the reason
    failed: dict[str, int] = field(default_factory=dict)  #: hosts where the command failed, with the exit code


class ProcessView(Struct, frozen=True, kw_only=True):
    """One operating system process of a task, as its host sees it now."""

    task: str
    host: str
    pid: int
    ppid: int
    user: str
    state: str
    cpu_percent: float
    rss_bytes: int
    threads: int
    elapsed_s: float
    command: str
    suspended: str = ""  #: why it stands still, if the cluster has stopped it


class ScheduleView(Struct, frozen=True, kw_only=True):
    name: str
    cron: str
    zone: str
    next_at: float
    last_at: float | None  #: its last tick
    last_job: int | None
    runs: int
    skipped: int  #: ticks without a job
    catch_up: str
    overlap: str
    created_at: float
    by: str
    command: str  #: for people
    spec: JobSpec


class EventView(Struct, frozen=True, kw_only=True):
    """One line of `events`. `index` grows by one an event and never repeats: resume with `--after index`."""

    index: int
    at: float
    kind: str  #: `job.submitted`, `task.finished`, `host.lost`, …
    job: int | None = None
    task: int | None = None
    host: str = ""
    detail: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class WebhookView(Struct, frozen=True, kw_only=True):
    """A target that is told what happens. Its ids count from 1 without gaps."""

    name: str
    url: str
    kinds: tuple[str, ...]  #: of events: `job.finished`, `task.*`, `*`
    jobs: tuple[int, ...]  #: only events of these; empty = of any, and what is of no job
    tags: tuple[str, ...]
    users: tuple[str, ...]
    keep: int  #: so many of the latest ids are kept, delivered or not
    made_at: float
    by: str
    last: int  #: the newest id
    delivered: int  #: the last id that was delivered
    oldest: int  #: the oldest id that is kept
    waiting: int  #: ids that are kept and not delivered
    missing: int | None  #: ids that were dropped undelivered; None = not known, the cluster was restored
    error: str = ""  #: why the next one cannot be delivered
    failing_since: float | None = None

"""Bodies and answers that only the HTTP interface knows; everything else is in depalma.model."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from depalma.accounting import JobUse
from depalma.model import (
    CodeView,
    EventView,
    HostState,
    HostView,
    JobView,
    Load,
    LoadHistory,
    MasterView,
    Payload,
    ProcessView,
    TaskView,
    WebhookView,
)


class JobCreated(Struct, frozen=True):
    id: int


class JobList(Struct, frozen=True):
    jobs: list[JobView]
    more: bool
    next: int | None = None  #: what to give as `before` for the next page; None = this is the last one
    notes: list[str] = []  #: what is not here that was asked for: no longer kept, or not in this master's archive


class AccountingPage(Struct, frozen=True):
    rows: list[JobUse]
    next: int | None = None
    notes: list[str] = []
    master: str = ""  #: who answered, from its own archive


class TaskList(Struct, frozen=True):
    tasks: list[TaskView]
    more: bool


class TasksAdded(Struct, frozen=True):
    first: int


class TasksToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    arguments: Payload
    count: int


class JobsToCancel(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: tuple[int, ...]
    by: str = ""


class JobsCancelled(Struct, frozen=True):
    cancelled: list[int]


class Lines(Struct, frozen=True):
    lines: list[str]


class Empty(Struct, frozen=True):
    pass


class CodeToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: str
    digest: str
    size_bytes: int
    by: str = ""
    requirements: str = ""  #: digest of an uploaded requirements file; empty = none


class Rollback(Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    by: str = ""


class CommandToRun(Struct, frozen=True, forbid_unknown_fields=True):
    argv: tuple[str, ...]
    timeout_s: float = 0.0
    by: str = ""


class HostsToRetry(Struct, frozen=True, forbid_unknown_fields=True):
    hosts: tuple[str, ...] = ()  #: empty = all that are connected and behind


class Retried(Struct, frozen=True):
    hosts: list[str]


class CodeAdded(Struct, frozen=True):
    index: int


class CodeList(Struct, frozen=True):
    entries: list[CodeView]


class HostCode(Struct, frozen=True):
    host: str
    state: HostState
    code_index: int
    lag: int  #: entries it has not acknowledged
    reason: str = ""  #: why it lags
    since: float | None = None  #: of the lag
    signature: str = "none"  #: of its newest acknowledgement: valid, invalid, none


class HostAcknowledgement(Struct, frozen=True):
    """What one host said of one entry."""

    host: str
    signature: str  #: valid, invalid, none (no longer kept, or not acknowledged)
    exit_code: int | None = None  #: of a command
    output: str = ""  #: its last lines


class HostAcknowledgements(Struct, frozen=True):
    hosts: list[HostAcknowledgement]


class CodeStatus(Struct, frozen=True):
    index: int
    hosts: list[HostCode]


class HostList(Struct, frozen=True):
    hosts: list[HostView]


class HostToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    groups: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    priority: int = 0
    slots: int = 0  #: 0 = what its agent says
    gpus: int = 0  #: 0 = what its agent says
    resources: dict[str, int] = {}  #: what it has so many of, such as licences


class InvitationToMake(Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    secret_hash: str  #: SHA-256 of the secret, in hex
    valid_s: float = 3600.0
    by: str = ""


class Invited(Struct, frozen=True):
    host: str
    expires_at: float
    cluster: str
    masters: list[str]  #: base URLs
    authority_sha256: str  #: of the certificate by which the masters prove themselves


class HostChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays. Of the labels, those given are set, and those that are null are removed;
    of the resources, those given are set, and those that are 0 removed."""

    groups: tuple[str, ...] | None = None
    labels: dict[str, str | None] = {}
    priority: int | None = None
    slots: int | None = None
    gpus: int | None = None
    resources: dict[str, int] = {}


class OwnerChange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields of OwnerPolicy; what is not given stays. A step that is null is not taken."""

    idle_s: float | UnsetType = UNSET
    cpu_percent: float | UnsetType = UNSET
    gpu_percent: float | UnsetType = UNSET
    hours: str | UnsetType = UNSET
    lower_s: float | UnsetType | None = UNSET
    suspend_s: float | UnsetType | None = UNSET
    warn_s: float | UnsetType | None = UNSET
    requeue_s: float | UnsetType | None = UNSET
    requeue_all: bool | UnsetType = UNSET


class LimitToSet(Struct, frozen=True, forbid_unknown_fields=True):
    limit: int


class QuotaToSet(Struct, frozen=True, forbid_unknown_fields=True):
    most: dict[str, float]  #: of slots, gpus, memory_bytes, and resources; what is not named is not limited


class ShareToSet(Struct, frozen=True, forbid_unknown_fields=True):
    weight: float


class OrderChange(Struct, frozen=True, forbid_unknown_fields=True):
    half_life_s: float | None = None
    age_s: float | None = None  #: 0 = no ageing


class DrainToBegin(Struct, frozen=True, forbid_unknown_fields=True):
    deadline_s: float | None = None  #: from now; then what still runs is moved. None = it may end by itself
    reason: str = ""
    by: str = ""


class HostRemoved(Struct, frozen=True):
    removed: bool
    waits_for: int  #: tasks that must be dead before it is


class Group(Struct, frozen=True):
    name: str
    hosts: list[str]
    slots: int = 0
    free_slots: int = 0  #: of hosts that take work now


class GroupHosts(Struct, frozen=True, forbid_unknown_fields=True):
    hosts: tuple[str, ...]


class GroupChanged(Struct, frozen=True):
    hosts: list[str]  #: that are in it now
    changed: int  #: hosts that came or went


class GroupList(Struct, frozen=True):
    groups: list[Group]


class MasterToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    host: str
    port: int = 7070
    raft_port: int = 7071
    wait_s: float = 10.0  #: for it to catch up


class MasterToMove(Struct, frozen=True, forbid_unknown_fields=True):
    host: str | None = None
    port: int | None = None
    raft_port: int | None = None


class MasterPlace(Struct, frozen=True):
    id: str
    url: str
    raft: str


class MasterPlaces(Struct, frozen=True):
    masters: list[MasterPlace]


class LeaderView(Struct, frozen=True):
    leader: str


class MasterList(Struct, frozen=True):
    masters: list[MasterView]


class MasterStatus(Struct, frozen=True):
    """What masters tell each other."""

    view: MasterView
    contacts: dict[str, float | None]


class EventList(Struct, frozen=True):
    events: list[EventView]
    oldest: int
    latest: int


class WebhookList(Struct, frozen=True):
    webhooks: list[WebhookView]


class WebhookToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    url: str
    kinds: tuple[str, ...] = ("job.finished",)
    jobs: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    keep: int = 50_000  #: ids that are kept, delivered or not
    by: str = ""


class WebhookChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays."""

    url: str | None = None
    kinds: tuple[str, ...] | None = None
    jobs: tuple[int, ...] | None = None
    tags: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    keep: int | None = None
    new_secret: bool = False
    by: str = ""


class WebhookSaved(Struct, frozen=True):
    webhook: WebhookView
    secret: str = ""  #: a new one: it is not shown again


class WebhookReplay(Struct, frozen=True, forbid_unknown_fields=True):
    from_id: int = field(name="from")
    skip: bool = False  #: leave out what was not delivered
    by: str = ""


class WebhookTested(Struct, frozen=True):
    id: int


class HostLoad(Struct, frozen=True):
    host: str
    state: HostState
    slots: int
    running: int
    load: Load
    history: LoadHistory | None = None  #: if it was asked for, and the host answered


class LoadList(Struct, frozen=True):
    hosts: list[HostLoad]
    missing: list[str] = []  #: hosts that were asked for their history and did not answer in time


class ProcessList(Struct, frozen=True):
    processes: list[ProcessView]
    missing: list[str]


class RatesView(Struct, frozen=True):
    finished_per_s: float
    submitted_per_s: float


class Overview(Struct, frozen=True):
    """One look at the whole cluster, for `top`."""

    cluster: str
    leader: str
    term: int
    index: int
    masters: list[MasterView]
    hosts: list[HostView]
    tasks: dict[str, int]
    jobs: dict[str, int]
    rates: RatesView
    events: list[EventView]


class AgentGone(Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    incarnation: str
    reason: str = ""
    reports: tuple[bytes, ...] = ()  #: of attempts that had ended: packed arrays of reports, as the agent keeps them


class BlobStored(Struct, frozen=True):
    digest: str
    size_bytes: int


class Health(Struct, frozen=True):
    ok: bool
    detail: str = ""

"""The replicated commands and what applying one answers. [pure]

A command is a frozen value made by the proposer: time, ids and chance are in it. A kind (the tag) is never reused nor
changed in meaning; fields are only added, at the end, with a default. Batches (`AssignTasks`, …) are many guarded
writes: each is accepted or refused on its own. One about an attempt names it; a stale one changes nothing.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from depalma import errors
from depalma.model import AttemptRef, HostFacts, JobSpec, MasterAddress, Payload, Report
from depalma.state.command import Command
from depalma.state.job_commands import JobCommand
from depalma.state.order_commands import AssignGang, SetLimit, SetOrder, SetQuota, SetShare
from depalma.state.texts import shown
from depalma.state.webhook_commands import (
    AddWebhook,
    DeliverWebhooks,
    RemoveWebhook,
    ReplayWebhook,
    SetWebhook,
    TryWebhook,
)


class SubmitJob(Command, frozen=True, tag="job.submit"):
    """Creates a job. Answers Applied(job id)."""

    request: str
    spec: JobSpec
    at: float


class AddTasks(Command, frozen=True, tag="job.add_tasks"):
    """Adds `count` tasks with packed `arguments` to an open job. Answers Applied(index of the first one)."""

    request: str
    job: int
    arguments: Payload
    count: int
    at: float


class CloseJob(Command, frozen=True, tag="job.close"):
    """No more tasks will be added; the job ends when its tasks have."""

    request: str
    job: int
    at: float


class CancelJobs(Command, frozen=True, tag="job.cancel"):
    """Queued tasks are cancelled now, those on a host are to be killed there. Answers Applied(jobs that were live)."""

    request: str
    jobs: tuple[int, ...]
    at: float
    by: str = ""


class AssignTasks(Command, frozen=True, tag="task.assign"):
    """Gives queued tasks to a host. Answers Applied(AssignOutcome). `term` is the proposing leader's."""

    term: int
    host: str
    incarnation: str
    tasks: tuple[AttemptRef, ...]
    at: float
    reason: str = ""
    avoid: tuple[int, ...] = ()  #: GPUs there that something else uses
    gpus: tuple[tuple[int, ...], ...] = ()  #: those of each task, where parts of some are given; else the state chooses
    alternative: int = 0  #: as which of their alternatives the tasks are to run


class StartTasks(Command, frozen=True, tag="task.start"):
    """Records that attempts run (proposed only for those that run longer than a moment)."""

    host: str
    incarnation: str
    tasks: tuple[tuple[int, int, int, float], ...]  #: attempt ref and started_at
    at: float


class FinishTasks(Command, frozen=True, tag="task.finish"):
    """Records outcomes. Answers Applied(FinishOutcome)."""

    host: str
    incarnation: str
    reports: tuple[Report, ...]
    at: float


class AddHost(Command, frozen=True, tag="host.add"):
    """Makes a host known. `from_file`: the cluster file lists it (before there was this field, all were of it); such a
    one is refused if it was removed since. Refused if the name is taken."""

    request: str
    name: str
    groups: tuple[str, ...]
    labels: dict[str, str]
    priority: int
    slots: int
    gpus: int
    at: float
    from_file: bool = True
    resources: dict[str, int] = msgspec.field(default_factory=dict)


class HostUp(Command, frozen=True, tag="host.up"):
    """An agent process (`incarnation`) of the host is connected. Attempts of an earlier one are lost, but for those
    that are `unreported`: they ended, their reports come next. `code_index` is what the agent has (its folder may have
    been wiped): it lowers what was acknowledged, never raises it; -1 = not said. Answers Applied(attempts lost)."""

    host: str
    incarnation: str
    facts: HostFacts
    at: float
    code_index: int = -1
    unreported: tuple[AttemptRef, ...] = ()


class HostSuspect(Command, frozen=True, tag="host.suspect"):
    """The host went silent: no new work, its tasks stay."""

    host: str
    incarnation: str
    reason: str
    at: float


class HostRecovered(Command, frozen=True, tag="host.recovered"):
    """A suspect host was heard again in time, with the same incarnation: nothing was lost."""

    host: str
    incarnation: str
    at: float


class HostLost(Command, frozen=True, tag="host.lost"):
    """Lease and margin are over, or its supervisor said that everything is dead: its tasks run elsewhere."""

    host: str
    incarnation: str
    reason: str
    at: float


class AddCode(Command, frozen=True, tag="code.add"):
    """Appends to the code log; the blob is on a majority of masters already. Answers Applied(code index)."""

    request: str
    name: str
    kind: str
    digest: str
    size_bytes: int
    by: str
    at: float


class AckCode(Command, frozen=True, tag="code.ack"):
    """A host has the tree of `index` on its disk. `signature`: HMAC over host, index and tree digest."""

    host: str
    incarnation: str
    index: int
    tree_digest: str
    signature: str
    at: float
    exit_code: int | None = None  #: when the entry is a command
    output: str = ""  #: its last lines


class ForgetJobs(Command, frozen=True, tag="job.forget"):
    """Drops finished jobs that are older than the history setting. Never drops a live one."""

    jobs: tuple[int, ...]
    at: float


class ChangeMasters(Command, frozen=True, tag="master.change"):
    """These are the masters from now on. Carried by the log entry that makes it so."""

    request: str
    masters: tuple[MasterAddress, ...]
    at: float
    by: str = ""


class SetHost(Command, frozen=True, tag="host.set"):
    """Changes what is given of a host; None leaves as it is. `labels` are set, `drop_labels` removed; of `resources`
    those named are set, 0 removes one. What runs there stays."""

    request: str
    host: str
    at: float
    groups: tuple[str, ...] | None = None
    priority: int | None = None
    slots: int | None = None
    gpus: int | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    drop_labels: tuple[str, ...] = ()
    resources: dict[str, int] = msgspec.field(default_factory=dict)


class RemoveHost(Command, frozen=True, tag="host.remove"):
    """Takes a host off the list. Refused while attempts live there; with `force` it gets no more work and is gone as
    soon as none of them can live any more (its agent's word, or HostLost). Answers Applied(attempts it waits for)."""

    request: str
    host: str
    force: bool
    at: float
    by: str = ""


class DrainHost(Command, frozen=True, tag="host.drain"):
    """The host gets no new work until UndrainHost. `deadline_at`: then what still runs there is moved; None = never.
    Said again, it changes deadline and reason. Answers Applied(attempts that live there)."""

    request: str
    host: str
    deadline_at: float | None
    at: float
    reason: str = ""
    by: str = ""


class UndrainHost(Command, frozen=True, tag="host.undrain"):
    """The host gets work again."""

    request: str
    host: str
    at: float


class SetGroup(Command, frozen=True, tag="group.set"):
    """The group has exactly these hosts from now on."""

    request: str
    group: str
    hosts: tuple[str, ...]
    at: float


class AddToGroup(Command, frozen=True, tag="group.add"):
    """The group has these hosts, too."""

    request: str
    group: str
    hosts: tuple[str, ...]
    at: float


class RemoveGroup(Command, frozen=True, tag="group.remove"):
    """Takes hosts out of the group, all of them when none is named. Refused, unless `force`, when it would be left
    without any host while a job with queued tasks names it."""

    request: str
    group: str
    hosts: tuple[str, ...]
    force: bool
    at: float


class AppendCode(Command, frozen=True, tag="code.append"):
    """Appends an entry of any kind (see `codetree.CodeEntry`), or, with `rollback_of`, one that repeats an earlier
    tree. Plain modules and folders go as AddCode, which older masters know. Answers Applied(code index)."""

    request: str
    name: str
    kind: str
    digest: str
    size_bytes: int
    by: str
    at: float
    requirements: str = ""
    argv: tuple[str, ...] = ()
    timeout_s: float = 0.0
    rollback_of: int = 0


class FailCode(Command, frozen=True, tag="code.fail"):
    """A host could not apply entry `index`, for this reason; it may try again."""

    host: str
    incarnation: str
    index: int
    reason: str
    at: float
    exit_code: int | None = None
    output: str = ""


class LagCode(Command, frozen=True, tag="code.lag"):
    """A connected host has stayed at code index `index` for too long: it lags, or is kicked out."""

    host: str
    incarnation: str
    index: int
    reason: str
    kicked: bool
    at: float


class SetOwner(Command, frozen=True, tag="host.set_owner"):
    """Changes what the owner of a host allows: fields of OwnerPolicy by name, the others stay; with `anew` those have
    their defaults. `from_file`: the cluster file says so; refused if anybody has said so before."""

    request: str
    host: str
    changes: dict[str, bool | float | str | None]
    at: float
    anew: bool = False
    from_file: bool = False


class NoteOwner(Command, frozen=True, tag="host.note_owner"):
    """The owner of a host uses it (`reason`), or does not any more (empty); how far its tasks made way."""

    host: str
    incarnation: str
    reason: str
    step: str
    suspended: bool
    at: float


class InviteHost(Command, frozen=True, tag="host.invite"):
    """Lets a machine that knows the secret join as this host, once, until it expires. The log has the hash only."""

    request: str
    secret_hash: str
    host: str
    expires_at: float
    at: float
    by: str = ""


class JoinHost(Command, frozen=True, tag="host.join"):
    """Uses an invitation; `request` is the joining machine's own, and needed."""

    request: str
    secret_hash: str
    address: str
    at: float


AnyCommand = (
    SubmitJob
    | AddTasks
    | CloseJob
    | CancelJobs
    | AssignTasks
    | StartTasks
    | FinishTasks
    | AddHost
    | HostUp
    | HostSuspect
    | HostRecovered
    | HostLost
    | AddCode
    | AckCode
    | ForgetJobs
    | ChangeMasters
    | SetHost
    | RemoveHost
    | DrainHost
    | UndrainHost
    | SetGroup
    | AddToGroup
    | RemoveGroup
    | AppendCode
    | FailCode
    | LagCode
    | SetOwner
    | NoteOwner
    | JobCommand
    | AddWebhook
    | SetWebhook
    | RemoveWebhook
    | ReplayWebhook
    | TryWebhook
    | DeliverWebhooks
    | InviteHost
    | JoinHost
    | SetLimit
    | SetShare
    | SetOrder
    | AssignGang
    | SetQuota
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)


def encode(command: AnyCommand) -> bytes:
    """Returns the bytes that go into the log. Errors: errors.Rejected, for a number that it cannot hold."""
    try:
        return _encoder.encode(command)
    except OverflowError:
        field = next(filter(lambda name: _is_too_large(getattr(command, name)), command.__struct_fields__))
        message = f"{field}: {shown(getattr(command, field))[:80]} given; allowed: whole numbers of at most 64 bits"
        raise errors.Rejected(message, code="bad_field") from None


def _is_too_large(value: object) -> bool:
    try:
        _encoder.encode(value)
    except OverflowError:
        return True
    return False


def decode(data: bytes) -> AnyCommand:
    """Returns the command. Errors: msgspec.ValidationError for an unknown kind or a malformed value."""
    return _decoder.decode(data)


class Applied(Struct, frozen=True, gc=False):
    """The command took effect. `version` is the state's version (commands applied) after it."""

    value: object = None
    version: int = 0


class Rejected(Struct, frozen=True, gc=False):
    """The command was refused and changed nothing."""

    code: str
    message: str


class AssignOutcome(Struct, frozen=True, gc=False):
    """Which of an AssignTasks were accepted, and the fence they carry (grows with every command)."""

    accepted: tuple[AttemptRef, ...]
    fence: int
    refused: tuple[tuple[AttemptRef, str], ...] = ()


class FinishOutcome(Struct, frozen=True, gc=False):
    """Reports that were recorded, and those that were stale (the agent forgets both)."""

    recorded: tuple[AttemptRef, ...]
    stale: tuple[AttemptRef, ...] = ()

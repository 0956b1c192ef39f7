"""The frames between an agent and the leader: msgpack, one WebSocket that the agent opens (`/v1/agent`).

Both sides decode into these closed unions with the size limits below; anything else closes the connection.
Orders carry the leader's term; an agent refuses an order of an older term than it has seen. Reports are resent until
`ReportsCommitted` names them; a master records an attempt's outcome once, so resending is harmless.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from depalma.codetree import CodeEntry
from depalma.model import AttemptRef, HostFacts, JobSpec, Load, LoadHistory, ProcessView, Report
from depalma.ownership import OwnerPolicy

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: Headers of the WebSocket request: who connects, besides the bearer token of the agents.
HOST_HEADER = "Depalma-Host"


class Frame(Struct, frozen=True, array_like=True, gc=False):
    """Base of all frames."""


# ---------------------------------------------------------------- agent → leader


class Hello(Frame, frozen=True, tag="hello"):
    """First frame. `running`: attempts that live on this host, waiting ones included; `unreported`: ended ones whose
    report is not known to be committed (the reports follow)."""

    protocol: int
    host: str
    incarnation: str
    facts: HostFacts
    code_index: int
    running: tuple[AttemptRef, ...]
    unreported: tuple[AttemptRef, ...]
    tells_history: bool = False  #: AskLoadHistory may be sent
    suspends_jobs: bool = False  #: Suspended may be sent
    takes_visits: bool = False  #: OpenVisit may be sent
    #: incarnations of this host of which it is certain that nothing lives; None: an older agent, which does not say
    over: tuple[str, ...] | None = None


class Heartbeat(Frame, frozen=True, tag="beat"):
    """`sent_s` is the agent's own monotonic clock; the answer echoes it, and the lease runs from it."""

    sequence: int
    sent_s: float
    load: Load
    free_slots: int


class Started(Frame, frozen=True, tag="started"):
    """Attempts that have been running for a moment (short ones are only reported at their end)."""

    tasks: tuple[tuple[int, int, int, float], ...]


class Reports(Frame, frozen=True, tag="reports"):
    reports: tuple[Report, ...]


class CodeAcknowledged(Frame, frozen=True, tag="code_ack"):
    """The tree of `index` is complete on this host. The signature is HMAC-SHA256 with the agents' key over
    `host\\0index\\0tree_digest`, hex."""

    index: int
    tree_digest: str
    signature: str
    exit_code: int | None = None  #: when the entry is a command
    output: str = ""  #: its last lines


class CodeProblem(Frame, frozen=True, tag="code_problem"):
    """Entry `index` cannot be applied here; only for leaders whose welcome says that they take it."""

    index: int
    reason: str
    exit_code: int | None = None
    output: str = ""


class Processes(Frame, frozen=True, tag="processes"):
    """Answers AskProcesses."""

    request: int
    processes: tuple[ProcessView, ...]


class LoadTold(Frame, frozen=True, tag="load_history"):
    """Answers AskLoadHistory."""

    request: int
    history: LoadHistory


class Output(Frame, frozen=True, tag="output"):
    """Answers AskOutput: bytes from `offset`, the file's size now, and whether the attempt has ended."""

    request: int
    data: bytes
    size_bytes: int
    ended: bool
    error: str = ""


class OwnerNews(Frame, frozen=True, tag="owner"):
    """Whether the owner of the machine uses it (`reason`; empty: no), and how far tasks made way; only for leaders
    whose welcome says what they know of it."""

    reason: str = ""
    step: str = ""  #: lowered, suspended, warned, requeued; the last one that was taken
    suspended: bool = False  #: what was not told to end stands still


class VisitOver(Frame, frozen=True, tag="visit_over"):
    """Nothing of a visit is left, and nothing more is said in it."""

    visit: int


# ---------------------------------------------------------------- leader → agent


class Welcome(Frame, frozen=True, tag="welcome"):
    """The leader accepted the agent. Said again on the same connection when something in it has changed."""

    term: int
    leader: str
    lease_s: float
    heartbeat_s: float
    masters: tuple[str, ...]  #: base URLs of all masters
    slots: int = 0  #: what the cluster says that the host has; 0 = what the agent says
    takes_problems: bool = False  #: CodeProblem may be sent
    owner_policy: OwnerPolicy = OwnerPolicy()  #: when the machine may work
    owner_known: OwnerNews | None = None  #: what the cluster knows of its owner; None = it does not want to


class Masters(Frame, frozen=True, tag="masters"):
    """Other masters than the welcome named: base URLs of all."""

    masters: tuple[str, ...]


class Refused(Frame, frozen=True, tag="refused"):
    """The connection ends. `stop`: kill everything; `restart_incarnation`: then come back as a new incarnation."""

    reason: str
    stop: bool = False
    restart_incarnation: bool = False


class HeartbeatAnswer(Frame, frozen=True, tag="beat_answer"):
    sequence: int
    sent_s: float
    term: int


class Assignment(Struct, frozen=True, array_like=True, gc=False):
    """One attempt to run; its job's spec came in this or an earlier frame of the same connection."""

    job: int
    task: int
    attempt: int
    fence: int
    argument: bytes | None = None  #: inline argument
    argument_blob: str = ""  #: or: digest of a blob that is the argument alone…
    argument_item: int = -1  #: …or, when ≥ 0, the packed items blob in which it is item n
    gpus: tuple[int, ...] = ()  #: those that it has
    gang: tuple[str, ...] = ()  #: hosts of its gang, in order of rank; empty = it is in none
    alternative: int = 0  #: as which of its job's alternatives it runs; 0 = as the job says first


class JobTemplate(Struct, frozen=True, array_like=True, gc=False):
    """What all tasks of a job share."""

    job: int
    spec: JobSpec
    code_index: int
    tree_digest: str


class Assign(Frame, frozen=True, tag="assign"):
    """Run these (each at most once: an attempt that is known already is ignored)."""

    order: int
    term: int
    jobs: tuple[JobTemplate, ...]
    tasks: tuple[Assignment, ...]


class Kill(Frame, frozen=True, tag="kill"):
    """End these attempts: SIGTERM, the job's grace time, SIGKILL to the tree; waiting ones never start.
    `outcome` is what the agent is to report (`cancelled`, `moved`, or `returned` to take back what has not started)."""

    order: int
    term: int
    tasks: tuple[AttemptRef, ...]
    outcome: str
    reason: str


class Forget(Frame, frozen=True, tag="forget"):
    """Attempts that the cluster no longer counts as this host's: kill them if they live, report nothing."""

    order: int
    term: int
    tasks: tuple[AttemptRef, ...]


class Suspended(Frame, frozen=True, tag="suspended"):
    """Of the jobs that have attempts on this host these, and no others, are suspended: what runs of them stands still,
    and nothing of them begins. Only for agents whose hello says that they do it; said first on a connection."""

    order: int
    term: int
    jobs: tuple[int, ...]


class ReportsCommitted(Frame, frozen=True, tag="committed"):
    """A majority has these on disk (or they were stale): the agent may forget them."""

    tasks: tuple[AttemptRef, ...]


class CodeLog(Frame, frozen=True, tag="code_log"):
    """Entries after what the host has acknowledged, in order; archives are fetched as blobs (`GET /v1/blobs/DIGEST`).
    Those that the agent has already are acknowledged again."""

    order: int
    term: int
    entries: tuple[CodeEntry, ...]
    again: bool = False  #: try at once what failed, a command too


class AskProcesses(Frame, frozen=True, tag="ask_processes"):
    request: int
    job: int | None = None


class AskLoadHistory(Frame, frozen=True, tag="ask_load_history"):
    """The load of the last `last_s` seconds; only for agents whose hello says that they tell it."""

    request: int
    last_s: float


class AskOutput(Frame, frozen=True, tag="ask_output"):
    request: int
    job: int
    task: int
    attempt: int
    stream: str  #: stdout or stderr
    offset: int
    limit_bytes: int


class OpenVisit(Frame, frozen=True, tag="visit_open"):
    """Run this inside a running attempt (no words: a shell), with a terminal or without; see `visits.py`. Its number
    is one of this connection; the visit ends with it. Only for agents whose hello says that they do it."""

    visit: int
    job: int
    task: int
    attempt: int
    argv: tuple[str, ...]
    tty: bool = False
    rows: int = 24
    columns: int = 80
    terminal: str = ""  #: the user's TERM


class CloseVisit(Frame, frozen=True, tag="visit_close"):
    """The user is gone: end what runs there; nothing more of it is wanted."""

    visit: int


class InVisit(Frame, frozen=True, tag="visit"):
    """What one end of a visit says to the other, both ways; the masters do not read it."""

    visit: int
    message: bytes


#: What answers a question, and what is one.
Answer = Processes | LoadTold | Output
Question = AskProcesses | AskLoadHistory | AskOutput
FromVisit = InVisit | VisitOver
ToVisit = OpenVisit | InVisit | CloseVisit
FromAgent = Hello | Heartbeat | Started | Reports | CodeAcknowledged | CodeProblem | OwnerNews | Answer | FromVisit
ToAgent = (
    Welcome | Masters | Refused | HeartbeatAnswer | Assign | Kill | Forget | Suspended | ReportsCommitted | CodeLog
    | Question | ToVisit
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def encode(frame: FromAgent | ToAgent) -> bytes:
    """Returns the frame's bytes."""
    return _encoder.encode(frame)


def decode_from_agent(data: bytes) -> FromAgent:
    """Errors: msgspec.ValidationError, msgspec.DecodeError; never another, whatever the bytes are."""
    try:
        return _from_agent.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def decode_to_agent(data: bytes) -> ToAgent:
    """Errors: msgspec.ValidationError, msgspec.DecodeError."""
    return _to_agent.decode(data)

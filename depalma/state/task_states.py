"""States of a task: one byte each in the job, one word each for people, and the table of legal moves. [pure]

`held` is no byte of its own: it is what `queued` is called while its job is held, so holding a job of a million
tasks changes one flag. `suspended` is what everything that has not ended is called while its job is suspended.
"""

from __future__ import annotations

from typing import Final

from depalma.model import TaskState

QUEUED: Final = 0  #: zero, so that a fresh bytearray is a job of queued tasks
ASSIGNED: Final = 1
RUNNING: Final = 2
SUCCEEDED: Final = 3
FAILED: Final = 4
CANCELLED: Final = 5
TIMED_OUT: Final = 6
LOST: Final = 7
BLOCKED: Final = 8  #: waits for a task of another job; of a whole job that waits, tasks are QUEUED (see Job.unmet)

#: The word of each byte.
WORDS: Final[tuple[TaskState, ...]] = (
    "queued",
    "assigned",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
    "lost",
    "blocked",
)
WAITING_WORDS: Final = ("held", "blocked", "queued")
#: Turns the bytes of blocked tasks into those of queued ones.
UNBLOCKED: Final = bytes(QUEUED if code == BLOCKED else code for code in range(256))
FINAL_CODES: Final = range(SUCCEEDED, BLOCKED)  #: bytes of final states
#: Turns the bytes of everything that has not ended into those of queued tasks.
UNENDED: Final = bytes(code if code in FINAL_CODES else QUEUED for code in range(256))
#: Bytes that a final state may follow from an agent's report.
OUTCOMES: Final = {"succeeded": SUCCEEDED, "failed": FAILED, "cancelled": CANCELLED, "timed_out": TIMED_OUT}

_AGAIN = "FinishTasks: returned, moved, or failed with retries left; HostLost or HostUp of a new incarnation"
_LOST = "HostLost, HostUp of a new incarnation or FinishTasks: moved, and the task may not run again"
_CANCELLED = "FinishTasks: cancelled; or its host was lost, or a retry was due, in a cancelled job"
_NO_RETRY = "FinishTasks, no retry left"
_CANCELLED_WAITING = "CancelJobs; what it waited for ended otherwise than it asked for; PassTime: its start deadline"
_BACK_OFF = "FinishTasks: failed with retries left, and a back-off; or the rest of its gang has not ended"
_GANG = "FinishTasks, HostLost or HostUp: another one of its gang goes back to the queue"
_AGAIN_HELD = "as to queued, in a job that is held meanwhile"
_RETRIED = "RetryJobs"
_RETRIED_HELD = "RetryJobs, in a job that is held"
_RETRIED_GANG = "RetryJobs, as another one of its gang failed"
_RETRIED_SUSPENDED = "RetryJobs, in a job that is suspended"
_SUSPENDED = "SuspendJobs"
_RESUMED = "ResumeJobs"

#: Every legal move of a task and what makes it. A pair that is not here never happens.
TRANSITIONS: Final[dict[tuple[TaskState, TaskState], str]] = {
    ("held", "cancelled"): _CANCELLED_WAITING,
    ("held", "queued"): "ReleaseJobs",
    ("held", "blocked"): "ReleaseJobs, and what it waits for has not ended",
    ("blocked", "held"): "HoldJobs",
    ("blocked", "queued"): "what it waited for ended as it asked for; PassTime: its time has come",
    ("blocked", "cancelled"): _CANCELLED_WAITING,
    ("queued", "held"): "HoldJobs",
    ("queued", "assigned"): "AssignTasks",
    ("queued", "cancelled"): "CancelJobs; PassTime: its start deadline",
    ("assigned", "running"): "StartTasks",
    ("assigned", "queued"): _AGAIN,
    ("assigned", "succeeded"): "FinishTasks",
    ("assigned", "failed"): _NO_RETRY,
    ("assigned", "timed_out"): _NO_RETRY,
    ("assigned", "cancelled"): _CANCELLED,
    ("assigned", "lost"): _LOST,
    ("running", "queued"): _AGAIN,
    ("running", "succeeded"): "FinishTasks",
    ("running", "failed"): _NO_RETRY,
    ("running", "timed_out"): _NO_RETRY,
    ("running", "cancelled"): _CANCELLED,
    ("running", "lost"): _LOST,
    ("assigned", "blocked"): _BACK_OFF,
    ("running", "blocked"): _BACK_OFF,
    ("succeeded", "blocked"): f"{_GANG}, after a back-off",
    ("succeeded", "queued"): f"{_GANG}; or RetryJobs",
    ("succeeded", "held"): "as to queued, in a job that is held",
    ("cancelled", "queued"): _RETRIED_GANG,
    ("cancelled", "held"): f"{_RETRIED_GANG}, in a job that is held",
    ("assigned", "held"): _AGAIN_HELD,
    ("running", "held"): _AGAIN_HELD,
    ("failed", "queued"): _RETRIED,
    ("timed_out", "queued"): _RETRIED,
    ("lost", "queued"): _RETRIED,
    ("failed", "held"): _RETRIED_HELD,
    ("timed_out", "held"): _RETRIED_HELD,
    ("lost", "held"): _RETRIED_HELD,
    ("held", "suspended"): _SUSPENDED,
    ("blocked", "suspended"): _SUSPENDED,
    ("queued", "suspended"): _SUSPENDED,
    ("assigned", "suspended"): _SUSPENDED,
    ("running", "suspended"): _SUSPENDED,
    ("suspended", "held"): _RESUMED,
    ("suspended", "blocked"): _RESUMED,
    ("suspended", "queued"): _RESUMED,
    ("suspended", "assigned"): "ResumeJobs; CancelJobs, until it is dead",
    ("suspended", "running"): "ResumeJobs; CancelJobs, until it is dead",
    ("suspended", "succeeded"): "FinishTasks",
    ("suspended", "failed"): _NO_RETRY,
    ("suspended", "timed_out"): _NO_RETRY,
    ("suspended", "cancelled"): "as from what it is besides being suspended",
    ("suspended", "lost"): _LOST,
    ("failed", "suspended"): _RETRIED_SUSPENDED,
    ("timed_out", "suspended"): _RETRIED_SUSPENDED,
    ("lost", "suspended"): _RETRIED_SUSPENDED,
}


def transitions_markdown() -> str:
    """Returns the table as it stands in DESIGN.md."""
    rows = [f"| {start} | {end} | {cause} |" for (start, end), cause in TRANSITIONS.items()]
    return "\n".join(["| from | to | by |", "|---|---|---|", *rows])

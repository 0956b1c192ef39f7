"""Whether a task is tried again after an attempt that did not succeed, and when. [pure]"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from depalma.state.jobs import Job
from depalma.state.task_states import FAILED, LOST, TIMED_OUT

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState


class Verdict(NamedTuple):
    """What an attempt's end means for its task."""

    code: int  #: its state, if it is not to run again
    again: bool
    counts: bool  #: against the retries
    word: str  #: for people


#: The longest pause between two attempts.
MAX_BACKOFF_S = 3600.0


def may_retry(job: Job, index: int, code: int, exit_code: int | None) -> bool:
    """Returns whether the task is tried again after an attempt that failed, timed out, or was lost with its host.

    Each reason has its own allowance; time-outs share that of failures unless `timeout_retries` is given.
    """
    spec = job.spec
    story = job.stories.get(index - job.first)
    failures, timeouts, losses = (story.failures, story.timeouts, story.losses) if story else (0, 0, 0)
    if code == LOST:
        return spec.lost_retries < 0 or losses < spec.lost_retries
    if code == TIMED_OUT and spec.timeout_retries >= 0:
        return timeouts < spec.timeout_retries
    if code == FAILED and spec.retry_exit_codes and exit_code not in spec.retry_exit_codes:
        return False
    return failures - (timeouts if spec.timeout_retries >= 0 else 0) < spec.retries


def hold_off(state: ClusterState, job: Job, index: int, code: int, at: float) -> None:
    """Follows up that the task came back after a failure: it waits, twice as long each time."""
    position = index - job.first
    story = job.stories[position]
    story.timeouts += code == TIMED_OUT
    if job.spec.backoff_s > 0:
        # Counted up to 50 only: beyond that it is the longest pause for any back-off, and no float is so large.
        until = at + min(MAX_BACKOFF_S, job.spec.backoff_s * 2.0 ** min(50, story.failures - 1))
        job.delay(position, until)
        state.due.add(until, job.id, position)

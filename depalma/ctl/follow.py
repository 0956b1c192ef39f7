"""Output of a task as it is written: across retries, and across changes of the leader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from depalma.client.transport import Answer, refusal
from depalma.ctl.failures import Failure
from depalma.ctl.session import Session
from depalma.ctl.wait import FINAL
from depalma.ctl.wording import clean

#: How long one read may block. Short, as a frozen leader looks like a long wait.
LOG_WAIT_S = 3.0
CHUNK_BYTES = 1024 * 1024
#: Output of an attempt that is over is asked for so long while its host does not answer.
_UNREACHABLE_S = 5.0
#: And so long if it was lost with it: where only the agent had died, the next one has what was written.
_LOST_S = 2.0
_RETRY_S = 0.3


class Chunk(NamedTuple):
    """Bytes that one attempt wrote."""

    attempt: int
    data: bytes


def read_attempt(session: Session, task: str, stream: str, attempt: int | None = None) -> Iterator[Chunk]:
    """Yields what one attempt (the latest by default) has written until now. Errors: Rejected."""
    offset = 0
    while True:
        answer = session.ask(f"/v1/tasks/{task}/logs", stream=stream, attempt=attempt, offset=offset, limit=CHUNK_BYTES)
        attempt = int(answer.headers.get("depalma-attempt", attempt or 0))
        tell_missing(answer, session.warn)
        if not answer.body:
            return
        yield Chunk(attempt, answer.body)
        offset = int(answer.headers["depalma-next-offset"])
        if answer.headers.get("depalma-ended") == "true":
            return


def follow_task(
    session: Session,
    task: str,
    stream: str,
    *,
    from_the_first: bool = False,
    note: Callable[[str], None] | None = None,
) -> Iterator[Chunk]:
    """Yields what the task writes until it is over: its present attempt from the beginning (or the first one), then
    each further one, however quickly they follow each other.

    `note` gets a line for people when an attempt is followed by another. What is missing is warned of, if there is one.
    Errors: Rejected, NoLeader.
    """
    say = note or (lambda _text: None)
    warn = session.warn if note else say
    attempt = 0
    while True:
        view = next_attempt(session, task, attempt)
        if view["attempt"] <= attempt:
            return
        if attempt:
            say(f"{task}: attempt {attempt} is over ({_how(view, attempt)}); attempt {attempt + 1} follows")
        attempt = attempt + 1 if attempt or from_the_first else view["attempt"]
        if _past(view, attempt).get("state") == "returned":
            continue  # it never began, so it wrote nothing
        try:
            yield from _follow_attempt(session, task, stream, attempt, warn)
        except Failure as failure:
            warn(f"the rest is missing: {clean(str(failure))}")


def next_attempt(session: Session, task: str, after: int) -> dict[str, Any]:
    """Returns the task's view once it has an attempt later than `after`, or is final."""
    index = None
    while True:
        answer = session.ask(f"/v1/tasks/{task}", wait=f"{LOG_WAIT_S:g}s" if index else None, index=index)
        session.be_patient()
        view: dict[str, Any] = answer.json()
        if view["state"] in FINAL or view["attempt"] > after:
            return view
        index = answer.headers.get("depalma-index")


def tell_missing(answer: Answer, warn: Callable[[str], None]) -> None:
    """Warns of output that is not kept any more, where the answer says so."""
    if "depalma-note" in answer.headers:
        warn(clean(answer.headers["depalma-note"]))


def _follow_attempt(
    session: Session, task: str, stream: str, attempt: int, warn: Callable[[str], None]
) -> Iterator[Chunk]:
    """Errors: Failure when the host that has the output stays out of reach although the attempt is over."""
    offset = 0
    given_up_at: float | None = None
    while True:
        answer = session.ask(
            f"/v1/tasks/{task}/logs",
            raw=True,
            stream=stream,
            attempt=attempt,
            offset=offset,
            limit=CHUNK_BYTES,
            wait=f"{LOG_WAIT_S:g}s",
        )
        if answer.status >= 400:
            given_up_at = _patience(session, task, attempt, answer, given_up_at)
            continue
        given_up_at = None
        tell_missing(answer, warn)
        if answer.body:
            yield Chunk(attempt, answer.body)
            offset = int(answer.headers["depalma-next-offset"])
        if answer.headers.get("depalma-ended") == "true":
            return


def _patience(session: Session, task: str, attempt: int, answer: Answer, given_up_at: float | None) -> float | None:
    """Waits a moment when the output is out of reach: the host may be on its way to a new leader.

    Returns when to give up (monotonic seconds), None while the attempt lives. Errors: Failure, Rejected.
    """
    if str(answer.problem().get("code")) != "log_unavailable":
        raise refusal(answer)
    view = session.get(f"/v1/tasks/{task}")
    alive = view["attempt"] == attempt and view["state"] not in FINAL
    now = time.monotonic()
    if not alive and given_up_at is None:
        lost = _past(view, attempt).get("state") == "lost"
        given_up_at = now + (_LOST_S if lost else _UNREACHABLE_S)
    if given_up_at is not None and now >= given_up_at:
        raise Failure(str(answer.problem().get("detail")), code="log_unavailable")
    time.sleep(_RETRY_S)
    return None if alive else given_up_at


def _past(view: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns what the view tells of one attempt; nothing when it is not remembered."""
    return next((attempt for attempt in view.get("attempts", ()) if attempt["number"] == number), {})


def _how(view: dict[str, Any], number: int) -> str:
    attempt = _past(view, number)
    if not attempt:
        return "ended"
    reason = f": {clean(attempt['reason'])}" if attempt.get("reason") else ""
    return f"{attempt['state']} on {attempt['host']}{reason}"

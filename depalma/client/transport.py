"""One call to the cluster, whichever master answers it: what to send next and when to give up. No I/O here.

`Exchange` is driven by `connections.py` (threads) and `aio.py` (asyncio): ask `next` what to do, do it, tell it what
came of it. All attempts of one call carry the same Idempotency-Key, so that a write whose answer was lost is not done
twice.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct, structs

from depalma.errors import DepalmaError, NoLeader, Rejected

JSON = "application/json"
MSGPACK = "application/msgpack"
BYTES = "application/octet-stream"

#: Pause after all masters were tried in vain: doubles from the first to the last value.
BACKOFF_S = (0.02, 0.5)
#: A master that could not be reached is not believed to lead, whoever says so, for this long.
AVOID_S = 0.4
#: How long the first attempt may stay unanswered before another master is asked; later ones wait longer.
#: Short, because a frozen leader looks like this, and cheap when wrong, because all attempts carry one key.
ATTEMPT_S = 1.0
#: Slowest upload that is still waited for.
UPLOAD_BYTES_PER_S = 4_000_000.0
#: Answers that mean "try again": the outcome is unknown, or there is nobody to decide.
_RETRY_STATUS = frozenset({429, 502, 503, 504})
UNTRUSTED = "not to be trusted: "
#: How a write that found no leader ends: what is known of its effect.
NOT_DONE = "nothing was changed"
MAYBE_DONE = "whether it was done is not known"
#: The code of a refusal: it may have been done, so long ago that the masters do not know.
FORGOTTEN = "request_forgotten"
#: A connection that failed so has carried nothing.
_NEVER_SENT = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})
_WRITES = frozenset({"POST", "PUT", "DELETE", "PATCH"})


class Request(Struct, frozen=True):
    """One HTTP request, whichever master it goes to."""

    method: str
    path: str  #: with the query
    body: bytes = b""
    content_type: str = ""
    accept: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    wait_s: float = 0.0  #: the server may block for so long on purpose
    raw: bool = False  #: hand any answer below 500 to the caller instead of raising Rejected
    stream: bool = False  #: a successful answer is an endless body that the caller reads
    key: str = ""  #: idempotency key; made here if empty
    #: version that was heard of before the key was first used; None: not known, as the key is somebody else's
    seen: int | None = None
    maybe_done: bool = False  #: it was sent before with this key, and nobody knows what came of it


class Answer(Struct, frozen=True):
    """What a master said. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def json(self) -> Any:
        """Returns the decoded body."""
        if self.headers.get("content-type", "").startswith(MSGPACK):
            return msgspec.msgpack.decode(self.body)
        return msgspec.json.decode(self.body) if self.body else {}

    def problem(self) -> dict[str, Any]:
        """Returns the problem+json of a refusal (made up from the status if the body is something else)."""
        try:
            value = msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            value = None
        if not isinstance(value, dict):
            text = self.body[:200].decode("utf-8", "replace")
            value = {"title": f"HTTP {self.status}", "detail": text, "code": ""}
        return value

    @property
    def master(self) -> str:
        """The id of the master that answered."""
        return self.headers.get("depalma-master", "")


class Attempt(Struct, frozen=True):
    """Send the request to this master now."""

    url: str
    timeout_s: float


class Pause(Struct, frozen=True):
    """Wait before asking again."""

    seconds: float


class Endpoints:
    """The masters' base URLs, and which of them is believed to lead. Shared by all calls of a client.

    Races between threads cost at most an attempt at the wrong master.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls:
            raise ValueError("no master given")
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._scheme = self.urls[0].partition("://")[0]
        self.leader = ""
        self.seen = 0  #: version of the state that a master has told last
        self._given = self.urls
        self._masters = ""
        self._preferred = 0
        self._avoid_until: dict[str, float] = {}

    def heard(self, url: str, headers: Mapping[str, str]) -> None:
        """Notes that `url` answered, whom it holds for the leader, and how far the state is."""
        self._avoid_until.pop(url, None)
        if leader := headers.get("depalma-leader", ""):
            self.leader = self._ours(leader)
        index = headers.get("depalma-index", "")
        if index.isascii() and index.isdigit():
            self.seen = int(index)  # not the highest one: a cluster that was restored counts from an earlier one

    def keyed(self, request: Request) -> Request:
        """Returns a write with a key, and how far the state had been seen before; with its own if it has one."""
        if request.key or request.method not in _WRITES:
            return request
        return structs.replace(request, key=new_key(), seen=self.seen)

    def learn(self, masters: str) -> None:
        """Notes who the masters are, as one of them says it, separated by commas: they may change while a client lives.

        Those that it was given are asked first: they are how it reaches the cluster.
        """
        if masters and masters != self._masters:
            self._masters = masters
            self.urls = tuple(dict.fromkeys([*self._given, *map(self._ours, masters.split(","))]))

    def _ours(self, url: str) -> str:
        """Returns a base URL as we speak to masters, whatever they call it: who was given https never says a word in
        plain text."""
        return f"{self._scheme}://{url.rstrip('/').partition('://')[2]}"

    def unreachable(self, url: str, now: float) -> None:
        """Notes that `url` did not answer."""
        self._avoid_until[url] = now + AVOID_S
        if self.leader == url:
            self.leader = ""
        if self.urls[self._preferred % len(self.urls)] == url:
            self._preferred += 1

    def avoided(self, url: str, now: float) -> bool:
        """Returns whether `url` failed a moment ago."""
        return self._avoid_until.get(url, now) > now

    def order(self, now: float) -> list[str]:
        """Returns whom to ask, best first: the leader, then those that answered last, then those that failed."""
        start = self._preferred % len(self.urls)
        urls = [*self.urls[start:], *self.urls[:start]]
        if self.leader:
            urls = [self.leader, *(url for url in urls if url != self.leader)]
        return sorted(urls, key=lambda url: self.avoided(url, now))


class Exchange:
    """One call, from the first attempt to an answer or the deadline."""

    def __init__(self, endpoints: Endpoints, request: Request, *, now: float, deadline_s: float) -> None:
        self.request = endpoints.keyed(request)
        self._endpoints = endpoints
        self._upload_s = len(request.body) / UPLOAD_BYTES_PER_S
        self._deadline = now + deadline_s + request.wait_s + self._upload_s
        self._deadline_s = deadline_s
        self._tried: set[str] = set()
        self._pause_s = BACKOFF_S[0]
        self._resume_at = 0.0
        self._timeouts = 0
        self._trouble: dict[str, str] = {}
        self._maybe_done = request.maybe_done  #: some attempt may have reached a leader

    @property
    def again(self) -> Request:
        """The request as it has to be sent if this call came to nothing, and another goes on with it."""
        return structs.replace(self.request, maybe_done=self._maybe_done)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What to send with the next attempt."""
        request = self.request
        headers = [("Accept", request.accept), *request.headers]
        if request.content_type:
            headers.append(("Content-Type", request.content_type))
        if request.key:
            headers.append(("Idempotency-Key", request.key))
        if request.seen is not None:
            headers.append(("Depalma-Seen", str(request.seen)))
        return headers

    def next(self, now: float) -> Attempt | Pause:
        """Returns what to do now. Errors: NoLeader after the deadline, with the last words of each master.

        One attempt is made in any case: who stood still until the deadline has asked nobody yet.
        """
        if now >= self._deadline and self._trouble:
            raise NoLeader(self._story())
        if now < self._resume_at:
            return Pause(min(self._resume_at, self._deadline) - now)
        for url in self._endpoints.order(now):
            if url not in self._tried:
                self._tried.add(url)
                return Attempt(url, self._attempt_timeout_s(now))
        if all(self._trouble.get(url, "").startswith(UNTRUSTED) for url in self._endpoints.urls):
            raise NoLeader(f"no master proves to be one: {self._said()}")  # and none will: nobody waits for it
        return self._back_off(now)

    def answered(self, attempt: Attempt, answer: Answer, now: float) -> bool:
        """Takes an answer; True = it is the answer to the call. Errors: Rejected, DepalmaError (a fault there)."""
        self._endpoints.heard(attempt.url, answer.headers)
        self._endpoints.learn(answer.headers.get("depalma-masters", ""))
        status = answer.status
        if status < 400:
            return True
        if status == 421 or status in _RETRY_STATUS:
            problem = answer.problem()
            self._trouble[attempt.url] = f"{status} {problem.get('code') or problem.get('title', '')}"
            self._maybe_done |= status != 421 and problem.get("code") != "no_leader"
            if status == 429:
                self._resume_at = now + min(float(problem.get("retry_after_s") or 0.0), BACKOFF_S[1])
            self._look_elsewhere(attempt, now)
            return False
        error = refusal(answer)
        if isinstance(error, Rejected) and error.code == FORGOTTEN and self._is_new():
            self.request = self._endpoints.keyed(structs.replace(self.request, key="", seen=None))
            self._tried.discard(attempt.url)
            return False
        if self.request.raw and status < 500:
            return True
        raise error

    def _is_new(self) -> bool:
        """Returns whether a request that may have been done long ago, as it seems to the masters, was not.

        They think so of one whose sender has not looked at the cluster for long. No attempt before this one came
        through, and by now it has looked.
        """
        seen = self.request.seen
        return seen is not None and not self._maybe_done and self._endpoints.seen > seen

    def failed(self, attempt: Attempt, error: BaseException, now: float) -> None:
        """Takes a connection that failed, or an attempt that was not answered in time."""
        self._trouble[attempt.url] = _words(error)
        self._maybe_done |= getattr(error, "errno", None) not in _NEVER_SENT
        self._timeouts += isinstance(error, TimeoutError)
        self._endpoints.unreachable(attempt.url, now)
        leader = self._endpoints.leader
        if leader and not self._endpoints.avoided(leader, now):
            self._tried.discard(leader)

    def unanswered(self) -> None:
        """Notes that the request was sent, and will be sent again: a later failure to connect says nothing of it."""
        self._maybe_done = True

    def _look_elsewhere(self, attempt: Attempt, now: float) -> None:
        """A new leader is asked at once; otherwise the next master, and after all of them a pause."""
        leader = self._endpoints.leader
        if leader and leader != attempt.url and not self._endpoints.avoided(leader, now):
            if leader in self._trouble:  # two masters that point at each other must not spin
                self._back_off(now)
            self._tried.discard(leader)

    def _back_off(self, now: float) -> Pause:
        pause = self._pause_s
        self._pause_s = min(2 * pause, BACKOFF_S[1])
        self._resume_at = now + pause
        self._tried.clear()
        return Pause(min(pause, max(0.0, self._deadline - now)))

    def _attempt_timeout_s(self, now: float) -> float:
        request = self.request
        patience = ATTEMPT_S * (1 << min(self._timeouts, 4)) + request.wait_s
        return max(0.05, min(patience + self._upload_s, self._deadline - now))

    def _story(self) -> str:
        story = f"no master that leads answered within {self._deadline_s:g} s ({self._said()})"
        if self.request.method in _WRITES:
            story += f"; {MAYBE_DONE if self._maybe_done else NOT_DONE}"
        return story

    def _said(self) -> str:
        return "; ".join(f"{url}: {words}" for url, words in self._trouble.items()) or "none was asked in time"


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{UNTRUSTED}{getattr(error, 'verify_message', '') or error}"
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "it does not speak TLS"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def refusal(answer: Answer) -> DepalmaError:
    """Returns the error that a problem+json answer stands for."""
    problem = answer.problem()
    text = str(problem.get("detail") or problem.get("title") or f"HTTP {answer.status}")
    if answer.status >= 500:
        return DepalmaError(f"the master failed: HTTP {answer.status}: {text}")
    code = str(problem.get("code") or ("not_authorised" if answer.status in (401, 403) else "rejected"))
    return Rejected(text, code=code)


def new_key() -> str:
    """Returns a fresh idempotency key."""
    return os.urandom(16).hex()


def with_query(path: str, params: Mapping[str, object]) -> str:
    """Returns the path with a query of those params that are not None (True becomes 1, False is left out)."""
    values = {k: 1 if v is True else v for k, v in params.items() if v is not None and v is not False}
    return f"{path}?{urlencode(values)}" if values else path


def segment(value: object) -> str:
    """Returns a value quoted for use as one path segment."""
    return quote(str(value), safe="")

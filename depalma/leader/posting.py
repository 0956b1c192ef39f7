"""One delivery to a webhook: what is sent, how it is signed, and when it is tried again. [pure]"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

import depalma
from depalma.model import EventView
from depalma.state.jobs import Job
from depalma.state.outbox import Webhook
from depalma.state.restoring import NUMBERS_JUMP

#: Pause after a failure: doubles from the first to the last value, less a quarter at most by chance.
BACKOFF_S = (0.5, 60.0)
JITTER = 0.25
#: `Retry-After` is honoured up to this.
MAX_RETRY_AFTER_S = 3600.0

_json = msgspec.json.Encoder()


def body_of(
    webhook: Webhook, cluster: str, number: int, missing: int | None, event: EventView, job: Job | None
) -> bytes:
    """Returns the JSON of one delivery: the same each time it is tried, as long as its job is known."""
    spec = job.spec if job is not None else None
    about = None if spec is None else {"name": spec.name, "user": spec.user, "tags": spec.tags}
    return _json.encode(
        {
            "id": number,
            "webhook": webhook.name,
            "cluster": cluster,
            "missing": missing,
            "event": event,
            "job": about,
        }
    )


def missing_before(number: int, position: int) -> int | None:
    """Returns how many ids between the last one delivered and this one are lost; None: a restored cluster cannot
    know."""
    gap = number - position - 1
    return gap if gap < NUMBERS_JUMP else None


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Returns `v1=` and the HMAC-SHA256 of timestamp, a dot and the body, in hex."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def headers_of(webhook: Webhook, number: int, kind: str, body: bytes, now: float) -> dict[str, str]:
    """Returns the headers of one try."""
    timestamp = str(int(now))
    return {
        "Content-Type": "application/json",
        "User-Agent": f"depalma/{depalma.__version__}",
        "Depalma-Webhook": webhook.name,
        "Depalma-Id": str(number),
        "Depalma-Event": kind,
        "Depalma-Timestamp": timestamp,
        "Depalma-Signature": signature(webhook.secret, timestamp, body),
    }


def pause_s(failures: int, chance: float, retry_after_s: float) -> float:
    """Returns how long to wait after so many failures in a row; `chance` is 0..1."""
    first, last = BACKOFF_S
    # 2.0 ** 1024 is an error, and nobody needs it.
    backoff = min(last, first * 2.0 ** min(failures - 1, 30))
    return max(backoff * (1 - JITTER * chance), retry_after_s)


def retry_after_s(headers: Mapping[str, str], now: float) -> float:
    """Returns what the receiver asks for, in seconds or as a date; 0 if it says nothing sensible."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(text) if text else None
        seconds = 0.0 if at is None else (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def plain(text: str, limit: int = 200) -> str:
    """Returns the text of a foreign machine without what could disturb a terminal or a log, cut."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"

"""Reading requests: bodies within their limit, values of the right type, errors that name what is wrong."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from depalma.api.problems import Problem, bad_field, shown
from depalma.state.requests import with_seen

T = TypeVar("T")

BODY_TIMEOUT_S = 30.0
MAX_WAIT_S = 600.0
MAX_KEY_CHARACTERS = 128
_MOST_DIGITS = 18
MAX_INTEGER = 2**53  # what every JSON reader keeps exact
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_NUMBER = re.compile(r"-?\d{1,16}")


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """Returns the body. Errors: Problem too_large (told before reading if the length is known), body_timeout."""
    check_encoding(request)
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise too_large(limit_bytes, f"{length} bytes")
    try:
        if request.content.is_eof():  # the usual case: the body came with the headers, no timer needed
            return await _read_all(request, limit_bytes)
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_all(request, limit_bytes)
    except TimeoutError:
        raise Problem("body_timeout", f"the body did not come within {BODY_TIMEOUT_S:g} s") from None


async def _read_all(request: web.Request, limit_bytes: int) -> bytes:
    """Returns the body. Not by `request.read`: that knows one limit for all, and strangers may send bodies too."""
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large(limit_bytes, "more")
    return bytes(body)


def too_large(limit_bytes: int, given: str) -> Problem:
    """Returns the problem of a body that is over the limit."""
    return Problem("too_large", f"body: {given} given; allowed: up to {limit_bytes} bytes")


def check_encoding(request: web.Request) -> None:
    """Compressed bodies are refused: their true size is not known before they are unpacked."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Problem("unsupported_encoding", f"Content-Encoding: {shown(encoding)} given; allowed: identity")


class Body:
    """Decodes request bodies to one type, from JSON or msgpack as the request says."""

    def __init__(self, type_: type[T]) -> None:
        self._type = type_
        self._json: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type_)
        self._msgpack: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(type_)

    @property
    def type(self) -> type:
        """The type, for the OpenAPI document."""
        return self._type

    def decode(self, request: web.Request, data: bytes) -> Any:
        """Returns the value. Errors: Problem bad_json, bad_field."""
        packed = request.headers.get("Content-Type") == "application/msgpack"
        try:
            return (self._msgpack if packed else self._json).decode(data)
        except msgspec.ValidationError as error:
            raise Problem("bad_field", _explain(str(error), _raw(data, packed), self._type)) from None
        except _UNREADABLE as error:
            kind = "msgpack" if packed else "JSON"
            raise Problem("bad_json", f"body: not {kind}: {error}") from None


#: What decoders raise for bytes that are no JSON or msgpack; nesting without end is one of it.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _raw(data: bytes, packed: bool) -> Any:
    """Returns the plain value, to show what was given; nothing if there is another error further on."""
    try:
        return msgspec.msgpack.decode(data) if packed else msgspec.json.decode(data)
    except _UNREADABLE:
        return None


def _explain(message: str, raw: Any, type_: type) -> str:
    """Returns msgspec's message with the field's name, the value found there, and the fields that are allowed."""
    what, _, place = message.partition(" - at `")
    path = [p for p in re.split(r"\.|\[|\]", place.removesuffix("`").removeprefix("$")) if p]
    value, allowed = raw, msgspec.inspect.type_info(type_)
    for step in path:
        value = _step(value, step)
        allowed = _step_type(allowed, step)
    name = ".".join(path) or "body"
    if "unknown field" in what and isinstance(allowed, msgspec.inspect.StructType):
        fields = ", ".join(field.encode_name for field in allowed.fields)
        return f"{name}: {_lower(what)}; allowed: {fields}"
    if "missing required field" in what:
        return f"{name}: {_lower(what)}"
    if isinstance(allowed, msgspec.inspect.LiteralType):
        return f"{name}: {shown(value)} given; allowed: {', '.join(map(str, allowed.values))}"
    given = "" if raw is None else f"; {shown(value)} given"
    return f"{name}: {_lower(what)}{given}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _step(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step, value)
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    return value


def _step_type(type_: Any, step: str) -> Any:
    if isinstance(type_, msgspec.inspect.UnionType):
        type_ = next((t for t in type_.types if isinstance(t, msgspec.inspect.StructType)), type_)
    if isinstance(type_, msgspec.inspect.StructType):
        found = next((field.type for field in type_.fields if field.encode_name == step), type_)
        return _step_type(found, "") if isinstance(found, msgspec.inspect.UnionType) else found
    return getattr(type_, "item_type", type_) if step.isdigit() else type_  # of a list, what is in it


def duration_s(text: str, field: str, *, most_s: float = MAX_WAIT_S) -> float:
    """Returns seconds of `30s`, `500ms`, `2m`, `5` or `0.5`. Errors: Problem bad_field."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNIT_S[match[2]] if match else -1.0
    if not 0 <= seconds <= most_s:
        raise bad_field(field, text, f"a duration like 30s, 500ms, 2m or 5 (seconds), up to {most_s:g} s")
    return seconds


def query_wait_s(request: web.Request) -> float:
    """Returns `?wait=` in seconds, 0 without it."""
    text = request.query.get("wait")
    return duration_s(text, "wait") if text is not None else 0.0


def integer(text: str, field: str, *, least: int = 0, most: int = MAX_INTEGER) -> int:
    """Returns a whole number in its range. Errors: Problem bad_field."""
    number = int(text) if _NUMBER.fullmatch(text) else least - 1
    if not least <= number <= most:
        upper = f" to {most}" if most != MAX_INTEGER else " or more"
        raise bad_field(field, text, f"a whole number, {least}{upper}")
    return number


def query_integer(request: web.Request, field: str, default: int, *, least: int = 0, most: int = MAX_INTEGER) -> int:
    """Returns a whole number of the query string, or the default."""
    text = request.query.get(field)
    return default if text is None else integer(text, field, least=least, most=most)


def query_choice(request: web.Request, field: str, choices: Sequence[str], default: str = "") -> str:
    """Returns one of the allowed words, or the default."""
    text = request.query.get(field)
    if text is None:
        return default
    if text not in choices:
        raise bad_field(field, text, ", ".join(choices))
    return text


def query_flag(request: web.Request, field: str) -> bool:
    """Returns whether `?field=1` (or true) is given."""
    return query_choice(request, field, ("1", "true", "0", "false"), "0") in ("1", "true")


def check_query(request: web.Request, allowed: frozenset[str]) -> None:
    """A parameter that the route does not know is a typing error, and refused by name."""
    for name in request.query:
        if name not in allowed:
            names = ", ".join(sorted(allowed)) or "none here"
            raise Problem("bad_field", f"unknown query parameter {shown(name)}; allowed: {names}")


def plain_key(request: web.Request) -> str:
    """Returns the key of a write, made here if the client gives none."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return uuid.uuid4().hex
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
        raise bad_field("Idempotency-Key", key, f"1 to {MAX_KEY_CHARACTERS} printable characters")
    return key


def idempotency_key(request: web.Request) -> str:
    """Returns the request id of a write: its key, and how far the client had seen when it first sent it, if it says."""
    key, seen = plain_key(request), request.headers.get("Depalma-Seen")
    if seen is None:
        return key
    if not (seen.isascii() and seen.isdigit() and len(seen) <= _MOST_DIGITS):
        raise bad_field("Depalma-Seen", seen, "a Depalma-Index that came with an answer")
    return with_seen(key, int(seen))

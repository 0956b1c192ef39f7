"""Settles what users submit before it is proposed: large values become blobs on a majority, wrong ones are refused.

The state checks every spec again when it applies it; asking here too keeps refused submissions out of the log.
"""

from __future__ import annotations

import asyncio

import msgspec

from depalma import items
from depalma.api.problems import Problem, bad_field
from depalma.blobs import Blobs, UnknownBlob, is_digest
from depalma.model import INLINE_LIMIT_BYTES, MAX_TASKS, JobSpec, Payload
from depalma.state.checks import bad_spec


async def settled(spec: JobSpec, blobs: Blobs) -> JobSpec:
    """Returns the spec as it goes into the log. Errors: Problem bad_field, unknown_blob; NoMajority."""
    arguments = spec.arguments
    if arguments is not None:
        arguments = await settled_items(arguments, spec.count, blobs)
        if arguments is not spec.arguments:
            spec = msgspec.structs.replace(spec, arguments=arguments)
    for field in ("function_pickle", "inputs", "stdin"):
        given: Payload | None = getattr(spec, field)
        if given is not None and (payload := await settled_payload(given, field, blobs)) is not given:
            spec = msgspec.structs.replace(spec, **{field: payload})
    wrong = bad_spec(spec)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    return spec


async def settled_items(payload: Payload, count: int, blobs: Blobs) -> Payload:
    """Returns the payload of packed arguments, of which there must be `count`. Errors: Problem; NoMajority."""
    _check_payload(payload, "arguments")
    try:
        if payload.digest:
            found = await blobs.items_count(payload.digest)
        else:
            found = items.count(payload.inline)
        # What goes beside the log is looked at here, or leaders and agents would find out, one after the other.
        if payload.digest and found == count <= MAX_TASKS:
            await blobs.check_items(payload.digest)
        elif len(payload.inline) > INLINE_LIMIT_BYTES:
            await asyncio.to_thread(items.check, payload.inline)
    except items.BadItems as error:
        raise Problem("bad_field", f"arguments: {error}; allowed: what depalma.items.pack makes") from None
    except UnknownBlob as error:
        raise Problem("unknown_blob", f"arguments: {error}") from None
    if found != count:
        raise bad_field("arguments", f"{found} packed items", f"as many as count says ({count})")
    return await settled_payload(payload, "arguments", blobs)


async def settled_payload(payload: Payload, field: str, blobs: Blobs) -> Payload:
    """Returns the payload with its size; a large inline one is moved to the blobs, a digest must be on a majority.

    Errors: Problem bad_field, unknown_blob; NoMajority.
    """
    _check_payload(payload, field)
    if payload.digest:
        size = await settled_blob(payload.digest, payload.size_bytes, field, blobs)
        return payload if payload.size_bytes == size else Payload(digest=payload.digest, size_bytes=size)
    size = len(payload.inline)
    if size > INLINE_LIMIT_BYTES:
        return Payload(digest=await blobs.put_bytes(payload.inline), size_bytes=size)
    return payload if payload.size_bytes == size else Payload(inline=payload.inline, size_bytes=size)


async def settled_blob(digest: str, size_bytes: int, field: str, blobs: Blobs) -> int:
    """Returns the blob's size once a majority of masters has it; a `size_bytes` other than 0 must be that size.

    Errors: Problem bad_field, unknown_blob; NoMajority.
    """
    try:
        await blobs.ensure_majority(digest)
    except UnknownBlob as error:
        raise Problem("unknown_blob", f"{field}: {error}") from None
    size = blobs.store.size(digest) or 0
    if size_bytes not in (0, size):
        raise bad_field(f"{field}.size_bytes", size_bytes, f"the blob's size ({size}), or leave it out")
    return size


def check_digest(digest: str, field: str) -> None:
    """Errors: Problem bad_field if it is no SHA-256."""
    if not is_digest(digest):
        raise bad_field(field, digest, "a SHA-256 in 64 lower-case hexadecimal digits")


def _check_payload(payload: Payload, field: str) -> None:
    if payload.digest:
        if payload.inline:
            raise Problem("bad_field", f"{field}: inline and digest given; allowed: one of the two")
        check_digest(payload.digest, f"{field}.digest")
    elif payload.size_bytes not in (0, len(payload.inline)):
        raise bad_field(f"{field}.size_bytes", payload.size_bytes, f"the length of inline ({len(payload.inline)})")

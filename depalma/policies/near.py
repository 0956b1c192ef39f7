"""Data that is already there: of hosts that are equally wished for, those that hold a job's files come first. [pure]

What is large is fetched once a host and kept there. The leader knows what each host was told to fetch; it is a
preference only, so it costs nothing to be wrong.
"""

from __future__ import annotations

from depalma.model import JobSpec, Payload

#: Smaller files are not worth filling hosts unevenly.
LEAST_BYTES = 1 << 20


def data_of(spec: JobSpec) -> tuple[str, ...]:
    """Returns the digests of what a host has to fetch before it runs tasks of the job, if that is much."""
    return tuple(payload.digest for payload in (spec.inputs, spec.function_pickle) if payload and _is_large(payload))


def _is_large(payload: Payload) -> bool:
    return bool(payload.digest) and payload.size_bytes >= LEAST_BYTES

"""Whether a request of aiohttp may have reached the other side.

aiohttp sends some (PUT, DELETE) once more by itself when a kept connection ends unanswered: that nobody listens the
second time says nothing of the first.
"""

from __future__ import annotations

from types import SimpleNamespace

import aiohttp


class Sent:
    """To be given as `trace_request_ctx` to a request of a session that has `noting()` among its trace configs."""

    def __init__(self) -> None:
        self.begun = False  #: the request, or its beginning, has left at least once


def noting() -> aiohttp.TraceConfig:
    """Returns what has a session note in each request's Sent that it was sent."""
    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(_note)
    return config


async def _note(_: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams) -> None:
    if isinstance(context.trace_request_ctx, Sent):
        context.trace_request_ctx.begun = True

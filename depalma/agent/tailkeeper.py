"""Hands the ends of what attempts wrote over to the masters, so that a dead host does not take them along.

What is due at the same moment goes as one blob: the first one that has its turn takes all that wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque

from depalma import items
from depalma.agent.blobs import Blobs
from depalma.agent.measure import printable
from depalma.agent.store import OutputFiles
from depalma.model import AttemptRef
from depalma.tails import OutputTail, not_kept, pack

log = logging.getLogger(__name__)

#: Longer than any fail-over, and no outcome waits longer for its output.
HAND_OVER_S = 5.0
#: At most so many in one blob: 8 MiB.
_TOGETHER = 64

_Waiting = tuple[AttemptRef, "asyncio.Future[OutputTail]"]


class TailKeeper:
    """Keeps the tails of ended attempts."""

    def __init__(self, output: OutputFiles, blobs: Blobs) -> None:
        self._output = output
        self._blobs = blobs
        self._waiting: deque[_Waiting] = deque()
        self._turn = asyncio.Lock()
        self._trouble = ""  #: why the last one could not be kept: the next ones are offered only once

    async def keep(self, ref: AttemptRef) -> OutputTail:
        """Returns where the end of an attempt's output is, once a majority of masters has it; or, after a while, why
        it is not kept."""
        kept: asyncio.Future[OutputTail] = asyncio.get_running_loop().create_future()
        self._waiting.append((ref, kept))
        async with self._turn:
            await asyncio.sleep(0)  # those that ended together come together
            while not kept.done():
                await self._hand_over([self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))])
        return kept.result()

    async def _hand_over(self, some: list[_Waiting]) -> None:
        reason = "the agent was cut off"
        digest = ""
        data: list[bytes] = []
        try:
            data = await asyncio.to_thread(self._read, [ref for ref, _ in some])
            blob = items.pack(data)
            name = hashlib.sha256(blob).hexdigest()
            problem = await self._blobs.offer(blob, name, 0.0 if self._trouble else HAND_OVER_S)
            if problem and not self._trouble:
                log.warning("output cannot be handed over to the masters: %s", problem)
            self._trouble = problem
            reason = printable(f"no majority of masters took it: {problem}")
            digest = "" if problem else name
        finally:
            for place, (_, kept) in enumerate(some):
                if not kept.done():
                    if digest and not data[place]:
                        kept.set_result(not_kept("it could not be read"))
                    else:
                        kept.set_result(OutputTail(digest=digest, item=place) if digest else not_kept(reason))

    def _read(self, refs: list[AttemptRef]) -> list[bytes]:
        """Returns the tails of attempts; empty for one that cannot be read."""
        found = []
        for ref in refs:
            try:
                found.append(pack(self._output.tail(ref)))
            except OSError as error:
                log.warning("output of task %d.%d: %s", ref[0], ref[1], error)
                found.append(b"")
        return found

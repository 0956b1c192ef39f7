"""What attempts need before they start, and what they leave: between this disk and the masters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from depalma.agent import events as ev
from depalma.agent.blobs import Blobs, BlobUnavailable
from depalma.agent.codesync import CodeSync
from depalma.agent.measure import printable
from depalma.agent.stage import Stage
from depalma.agent.tailkeeper import TailKeeper
from depalma.archive import ArchiveError
from depalma.errors import DepalmaError
from depalma.model import Payload

log = logging.getLogger(__name__)

_FETCH_FOR_S = 30.0


class Supplies:
    """Answers the actions Prepare and Upload, by events."""

    def __init__(
        self,
        blobs: Blobs,
        code: CodeSync,
        stage: Stage,
        tails: TailKeeper,
        in_use: Callable[[str], bool],
        deliver: Callable[[ev.AnyEvent], None],
    ) -> None:
        self._blobs = blobs
        self._code = code
        self._stage = stage
        self._tails = tails
        self._in_use = in_use
        self._deliver = deliver

    async def prepare(self, need: str) -> None:
        """Gets a blob, builds a tree or unpacks inputs."""
        digest = ""
        try:
            if need.startswith("tree:"):
                digest = await self._code.have(int(need[5:]), _FETCH_FOR_S)
            elif need.startswith("stage:"):
                if not await self._place(need):
                    return
            else:
                await self._blobs.have(need, _FETCH_FOR_S)
        except (DepalmaError, TimeoutError, OSError, ValueError) as error:
            log.warning("%s cannot be had: %s", need[:20], error)
            self._deliver(ev.Unprepared(need, f"{need[:20]}: {error or type(error).__name__}"))
            return
        self._deliver(ev.Prepared(need, digest))
        for evicted in self._blobs.evict(self._in_use):
            self._deliver(ev.Evicted(evicted))

    async def _place(self, need: str) -> bool:
        """Puts the inputs of an attempt beside its scratch folder. Returns whether they are what they should be."""
        _, name, digest = need.split(":")
        job, task, attempt = map(int, name.split("."))
        path = await self._blobs.have(digest, _FETCH_FOR_S)
        try:
            await asyncio.to_thread(self._stage.place, path, (job, task, attempt))
        except ArchiveError as error:
            self._deliver(ev.Unprepared(need, printable(f"the input files cannot be used: {error}"), for_good=True))
            return False
        return True

    async def upload(self, action: ev.Upload) -> None:
        """Brings a result and output files to the masters, however long it takes; the end of its output if it can."""
        problem, code = "", ""
        outputs: Payload | None = None
        try:
            if action.outputs:
                outputs = await asyncio.to_thread(self._stage.collect, action.attempt, action.outputs)
            for digest in filter(None, (action.digest, outputs.digest if outputs is not None else "")):
                await self._blobs.upload(digest)
        except ArchiveError as error:
            problem, code = f"the output files cannot be kept: {error}", "bad_outputs"
        except (BlobUnavailable, OSError) as error:
            problem = f"the result was lost: {error}"
        tail = await self._tails.keep(action.attempt) if action.tail else None
        self._deliver(ev.Uploaded(action.attempt, printable(problem), outputs, code, tail))

"""Keeps this host's code at what the log says: applies entries, acknowledges them, says what fails, repairs trees."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from depalma.agent import events as ev
from depalma.agent.aside import Interrupted
from depalma.agent.codesync import CodeSync, EntryFailed, Reached
from depalma.agent.core import AgentCore
from depalma.agent.environments import CommandFailed, EnvironmentFailed
from depalma.agent.measure import printable
from depalma.agent.store import cut
from depalma.codetree import CodeEntry, sign
from depalma.errors import DepalmaError
from depalma.protocol import CodeAcknowledged, CodeProblem, FromAgent

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_LONGEST_AGAIN_S = 300.0
_LOOK_S = 2.0
#: Looking at files takes at most this part of the time.
_SHARE = 0.02


class CodeKeeper:
    """The code log's part of an agent. `send` drops frames while no leader is there."""

    def __init__(
        self,
        sync: CodeSync,
        core: AgentCore,
        deliver: Callable[[ev.AnyEvent], None],
        send: Callable[[FromAgent], None],
        host: str,
        token: str,
        output_limit_bytes: int,
    ) -> None:
        self.sync = sync
        self._core = core
        self._deliver = deliver
        self._send = send
        self._host = host
        self._token = token
        self._output_limit_bytes = output_limit_bytes
        self._applying = False
        self._wake = asyncio.Event()
        self._said: tuple[int, str] | None = None  #: the problem that this leader was told
        self.takes_problems = False
        core.code_index = sync.folder.index

    def welcomed(self, takes_problems: bool) -> None:
        """A leader is there that knows nothing of what was said before."""
        self.takes_problems = takes_problems
        self._said = None
        self._wake.set()

    async def apply(self, entries: tuple[CodeEntry, ...], *, again: bool) -> None:
        """Applies entries, tried again and again by one task with all that have come by then."""
        contradiction = self.sync.take(entries, again=again)
        if contradiction:
            self._deliver(ev.CodeDiffers(contradiction))
            return
        self._wake.set()
        if self._applying:
            return
        self._applying = True
        try:
            await self._apply_all()
        finally:
            self._applying = False

    async def _apply_all(self) -> None:
        pause_s = _AGAIN_S
        while True:
            self._wake.clear()
            try:
                reached = await self.sync.apply()
                if not reached:
                    return
                pause_s = _AGAIN_S
                self._acknowledge(reached)
                continue
            except Interrupted as error:
                log.info("code log: %s", error)
            except CommandFailed as error:
                self._say(error.index, str(error), error.exit_code, error.output)
                pause_s = _LONGEST_AGAIN_S  # only when somebody asks for it
            except EntryFailed as error:
                self._say(error.index, str(error.cause or error), None, "")
                slow = isinstance(error.cause, EnvironmentFailed)
                pause_s = min(_LONGEST_AGAIN_S, pause_s * 2) if slow else _AGAIN_S
            except (DepalmaError, OSError, ValueError) as error:
                self._say(self.sync.folder.index + 1, str(error), None, "")
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _say(self, index: int, reason: str, exit_code: int | None, output: str) -> None:
        """Logs a problem and tells the leader, once each."""
        if self._said == (index, reason):
            return
        log.error("code log, entry %d: %s", index, reason)
        if self._core.connected:
            self._said = (index, reason)
            if self.takes_problems:
                self._send(CodeProblem(index, printable(reason), exit_code, printable(output)))

    def _acknowledge(self, reached: list[Reached]) -> None:
        self._said = None
        self._deliver(ev.CodeReached(self.sync.folder.index))
        for each in reached:
            signature = sign(self._token, self._host, each.index, each.tree_digest)
            self._send(
                CodeAcknowledged(each.index, each.tree_digest, signature, each.exit_code, printable(each.output))
            )

    def reset_now(self) -> None:
        """What comes from here on belongs to the other log."""
        self.sync.drop_coming()

    # ------------------------------------------------------------ what is there

    async def watch(self) -> None:
        """Looks, for ever, whether somebody changed the files that tasks use, and puts them right."""
        pause_s, before_s = _LOOK_S, 0.0
        while True:
            await asyncio.sleep(pause_s)
            loop = asyncio.get_running_loop()
            begin_s = loop.time()
            try:
                broken = await self.sync.repair(self._in_use())
            except (DepalmaError, OSError) as error:
                log.error("the code cannot be put right: %s", error)
                continue
            if broken:
                log.warning("files of the code were changed and are as they were again; trees %s", sorted(broken))
                self._deliver(ev.CodeRepaired(broken))
            await self._evict_environments()
            for printed in self.sync.folder.runs.glob("*.log"):
                cut(printed, self._output_limit_bytes)
            took_s = loop.time() - begin_s
            pause_s, before_s = pause_after(took_s, before_s), took_s

    def _in_use(self) -> frozenset[int]:
        used = {attempt.job.code_index for attempt in self._core.attempts.values()}
        used |= {lane.code_index for lane in self._core.lanes.lanes.values() if lane.is_worker}
        return frozenset(index for index in used | {self.sync.folder.index} if index > 0)

    async def _evict_environments(self) -> None:
        environments = self.sync.environments
        kept = {environments.lock_of(needs) for i in self._in_use() if (needs := self.sync.requirements(i))}
        gone = set(await asyncio.to_thread(environments.evict, kept))
        if not gone:
            return
        log.info("environments removed: %s", ", ".join(sorted(gone)))
        for need in [need for need in self._core.needs if need.startswith("tree:")]:
            needs = self.sync.requirements(int(need[5:]))
            if needs and environments.lock_of(needs) in gone:
                self._deliver(ev.Evicted(need))


def pause_after(took_s: float, before_s: float) -> float:
    """Returns how long until files are looked at again, after looks that took so long, the last one first.

    One that took longer than the one before says more of the machine, or of a repair, than of looking: a host that had
    stood still for two seconds did not look for 100.
    """
    return max(_LOOK_S, min(took_s, before_s) / _SHARE)

"""The code log on this host, applied entry by entry, in order.

An entry counts here once its tree is complete, its environment is installed and, if it is a command, it has run. What
cannot be done is reported with its reason and tried again; nothing after it is applied before.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

from msgspec import Struct

from depalma.agent.aside import Interrupted
from depalma.agent.blobs import Blobs
from depalma.agent.codefolder import CodeFolder
from depalma.agent.environments import CommandFailed, Environments
from depalma.archive import ArchiveError
from depalma.codetree import ARCHIVE_KINDS, COMMAND, CodeEntry, requirements_of, tree_at
from depalma.errors import DepalmaError

log = logging.getLogger(__name__)

#: Masters keep the signatures of so many entries.
_ACKNOWLEDGED_AT_ONCE = 1000
#: How long a missing blob is looked for before that is said; a transfer may take longer.
_FETCH_FOR_S = 10.0


class Reached(Struct, frozen=True):
    """An entry that counts now, with the digest of its tree; of a command its end."""

    index: int
    tree_digest: str
    exit_code: int | None = None
    output: str = ""


class EntryFailed(DepalmaError):
    """Entry `index` cannot be applied now."""

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"entry {index}: {cause or type(cause).__name__}")
        self.index, self.cause = index, cause


class CodeSync:
    """Brings this host to what the log says, one change after the other."""

    def __init__(self, folder: CodeFolder, blobs: Blobs, environments: Environments) -> None:
        self.folder = folder
        self.environments = environments
        self._blobs = blobs
        self._applying = asyncio.Lock()
        self._lock = asyncio.Lock()  #: of the files; not held while something is installed or run
        self._coming: dict[int, CodeEntry] = {}
        self._again: set[int] = set()  #: to be acknowledged once more
        self._failed: CommandFailed | None = None
        self._one_by_one = False
        self._life = 0  #: how often the folder was reset
        self._advanced = asyncio.Event()

    def take(self, entries: tuple[CodeEntry, ...], *, again: bool) -> str:
        """Notes entries that are to be applied, and those that are here to be acknowledged once more.

        Returns how they contradict what is here; empty when they do not.
        """
        if again:
            self._failed = None
            self.environments.try_again()
        for entry in entries:
            if entry.index > self.folder.index:
                self._coming[entry.index] = entry
            elif self.folder.entries[entry.index - 1] != entry:
                return f"entry {entry.index} of the code log is another one here"
            else:
                self._again.add(entry.index)
        return ""

    async def apply(self) -> list[Reached]:
        """Applies the next entries that were taken, as many as go together. Empty when there are none.

        Errors: EntryFailed, CommandFailed, ValueError for a gap in the numbers: what was there stays in force, and
        the entries are tried again by the next call, with those that have come since.
        """
        async with self._applying:
            again, self._again = self._again, set()
            known = sorted(index for index in again if index <= self.folder.index)[-_ACKNOWLEDGED_AT_ONCE:]
            if known:
                digests = await self._digests(known[0], known[-1])
                return [Reached(index, digests[index]) for index in known]
            while fresh := self._next():
                try:
                    if reached := await self._apply(fresh):
                        return reached
                    # The log was thrown away meanwhile: what there is now is of another one.
                except (CommandFailed, Interrupted):
                    raise
                except (DepalmaError, OSError, TimeoutError):
                    if len(fresh) == 1:
                        raise
                    self._one_by_one = True  # as far as it goes, and to know which one it is
            return []

    def _next(self) -> list[CodeEntry]:
        """Returns the entries that are applied next: one command, or others up to the next command."""
        have = self.folder.index
        for index in [index for index in self._coming if index <= have]:
            del self._coming[index]
        if not self._coming:
            self._one_by_one = False
            return []
        fresh = [
            self._coming[index] for index in itertools.takewhile(self._coming.__contains__, itertools.count(have + 1))
        ]
        if not fresh:
            raise ValueError(f"the code log has a gap after {have}")
        if fresh[0].kind == COMMAND or self._one_by_one:
            return fresh[:1]
        return list(itertools.takewhile(lambda entry: entry.kind != COMMAND, fresh))

    async def _apply(self, fresh: list[CodeEntry]) -> list[Reached]:
        for entry in fresh:
            problem = _entry_problem(entry)
            if problem:
                raise EntryFailed(entry.index, ArchiveError(problem))
        life, index = self._life, fresh[-1].index
        log_then = self.folder.entries + fresh
        try:
            await self._ready(log_then, index)
        except Interrupted:
            raise
        except (DepalmaError, OSError, TimeoutError) as error:
            if len(fresh) == 1:
                raise EntryFailed(index, error) from error
            raise
        code, output = None, ""
        if fresh[0].kind == COMMAND:
            code, output = await self._run(fresh[0])
        async with self._lock:
            if self._life != life:
                return []
            await asyncio.get_running_loop().run_in_executor(None, self.folder.append, fresh)
        self._advanced.set()
        self._advanced = asyncio.Event()
        latest = fresh[-_ACKNOWLEDGED_AT_ONCE:]
        digests = await self._digests(latest[0].index, latest[-1].index)
        return [Reached(entry.index, digests[entry.index], code, output) for entry in latest]

    async def _digests(self, first: int, last: int) -> dict[int, str]:
        return await asyncio.get_running_loop().run_in_executor(None, self.folder.digests, first, last)

    async def _run(self, entry: CodeEntry) -> tuple[int, str]:
        if self._failed is not None and self._failed.index == entry.index:
            raise self._failed
        try:
            return await self.environments.run_command(entry, self.requirements(entry.index - 1))
        except CommandFailed as error:
            self._failed = error
            raise

    def requirements(self, index: int) -> tuple[str, ...]:
        """Returns the digests of the requirements that are in force at an index of this host's log."""
        return requirements_of(tree_at(self.folder.entries, index))

    def drop_coming(self) -> None:
        """Forgets entries that were taken and not applied."""
        self._coming.clear()
        self._again.clear()

    async def reset(self) -> None:
        """Throws the log of this host away; archives stay, they are named by their content."""
        self._life += 1
        self._failed = None
        async with self._lock:
            await asyncio.get_running_loop().run_in_executor(None, self.folder.reset)

    async def have(self, index: int, for_s: float) -> str:
        """Returns the digest of the tree at `index`, which is complete then, and so is its environment; waits until
        the log has come so far.

        Errors: TimeoutError, BlobUnavailable, ArchiveError, EnvironmentFailed.
        """
        async with asyncio.timeout(for_s):
            while self.folder.index < index:
                await self._advanced.wait()
        await self._ready(self.folder.entries, index)
        return self.folder.digest(index)

    async def _ready(self, entries: list[CodeEntry], index: int) -> None:
        """Completes the tree at an index, checks it against its archives, and installs what it needs."""
        tree = tree_at(entries, index)
        async with self._lock:
            await self._complete(tree)
            await asyncio.get_running_loop().run_in_executor(None, self.folder.build, index, tree)
        needs = requirements_of(tree)
        if needs:
            await self.environments.have(needs)

    async def repair(self, indices: frozenset[int]) -> frozenset[int]:
        """Puts right what somebody changed in the files of trees; returns the trees that were touched.

        Errors: BlobUnavailable, ArchiveError, OSError.
        """
        broken: set[int] = set()
        for index in sorted(indices):
            tree = tree_at(self.folder.entries, index)
            async with self._lock:
                if index > self.folder.index:
                    continue
                if await self._complete(tree) or not self.folder.is_built(index, tree):
                    broken.add(index)
                    await asyncio.get_running_loop().run_in_executor(None, self.folder.build, index, tree)
        return frozenset(broken)

    async def _complete(self, tree: dict[str, CodeEntry]) -> bool:
        """Brings the archives of a tree that are not here as they were packed; returns whether one was not."""
        loop = asyncio.get_running_loop()
        touched = False
        for digest in sorted({entry.digest for entry in tree.values()}):
            if await loop.run_in_executor(None, self.folder.is_sound, digest):
                continue
            touched = True
            archive = self.folder.root / f"archive-{digest}"
            try:
                await self._blobs.fetch(digest, archive, for_s=_FETCH_FOR_S)
                await loop.run_in_executor(None, self.folder.add, archive, digest)
            finally:
                archive.unlink(missing_ok=True)
        return touched


def _entry_problem(entry: CodeEntry) -> str:
    """Returns why the entry must not be applied here: what masters check, checked where it would do harm."""
    if entry.rollback_of and not 0 < entry.rollback_of < entry.index:
        return f"it rolls back to {entry.rollback_of}, which is not before it"
    if entry.kind == COMMAND:
        return "" if entry.argv and entry.argv[0] else "a command without a word"
    for digest in filter(None, (entry.digest, entry.requirements)):
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            return "its digest is not a SHA-256"
    if entry.kind not in ARCHIVE_KINDS:
        return f"unknown kind {entry.kind!r}: this agent is too old"
    if not entry.name or "/" in entry.name or "\0" in entry.name or entry.name.startswith("."):
        return f"its name {entry.name!r} is not a plain file name"
    if not entry.digest:
        return "it has no digest"
    return ""

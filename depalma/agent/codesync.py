"""The code log on this host: archives, the trees made of them, and the proof that a tree is complete.

```
code/boot             the boot in which this folder was filled
code/entries          the entries of the log, msgpack, in order
code/store/DIGEST/    an unpacked archive
code/trees/N/         the tree at index N: one link into the store a name
```
Nothing is fsynced: a folder that was filled before the machine last started is thrown away and filled again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from depalma.agent.blobs import Blobs
from depalma.archive import MODULE_MEMBER, ArchiveError, unpack
from depalma.codetree import CodeEntry, tree_at, tree_digest

log = logging.getLogger(__name__)


def sign(token: str, host: str, index: int, digest: str) -> str:
    """Returns the signature of an acknowledgement, hex."""
    return hmac.new(token.encode(), f"{host}\0{index}\0{digest}".encode(), hashlib.sha256).hexdigest()


class CodeFolder:
    """Entries, store and trees of this host. `index` is the newest complete tree."""

    def __init__(self, root: Path) -> None:
        self.root = root / "code"
        self._store = self.root / "store"
        self._trees = self.root / "trees"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        marker = self.root / "boot"
        if not marker.exists() or marker.read_text() != boot:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(mode=0o700, parents=True)
            marker.write_text(boot)
        for folder in (self._store, self._trees, self._trees / "0"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.entries: list[CodeEntry] = self._load()
        self.index = self.entries[-1].index if self.entries else 0

    def _load(self) -> list[CodeEntry]:
        try:
            return msgspec.msgpack.decode((self.root / "entries").read_bytes(), type=list[CodeEntry])
        except (FileNotFoundError, msgspec.DecodeError):
            return []

    def append(self, entries: list[CodeEntry]) -> None:
        """Takes entries into the log of this host, once their tree is complete."""
        self.entries += entries
        self.index = self.entries[-1].index
        building = self.root / "entries.new"
        building.write_bytes(msgspec.msgpack.encode(self.entries))
        building.rename(self.root / "entries")

    def reset(self) -> None:
        """Begins at index 0 (blocks)."""
        self.entries, self.index = [], 0
        (self.root / "entries").unlink(missing_ok=True)
        shutil.rmtree(self._trees, ignore_errors=True)
        (self._trees / "0").mkdir(mode=0o700, parents=True)

    def has(self, digest: str) -> bool:
        """Returns whether an archive is unpacked here."""
        return (self._store / digest).exists()

    def add(self, archive: Path, digest: str) -> None:
        """Unpacks an archive (blocks). Errors: ArchiveError."""
        with contextlib.suppress(FileExistsError):
            unpack(archive, self._store / digest)

    def digest(self, index: int, more: list[CodeEntry] | None = None) -> str:
        """Returns the digest of the tree at `index`."""
        return tree_digest(tree_at(self.entries + (more or []), index))

    def build(self, index: int, more: list[CodeEntry] | None = None) -> None:
        """Makes the tree at `index` out of the store, at once (blocks). Errors: OSError."""
        target = self._trees / str(index)
        if target.exists():
            return
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self._trees))
        for name, entry in tree_at(self.entries + (more or []), index).items():
            source = self._store / entry.digest
            if entry.kind == "module":
                source = source / MODULE_MEMBER
            os.symlink(os.path.relpath(source, target), building / name)
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            if not target.exists():
                raise


class CodeSync:
    """Brings this host to what the log says, one change after the other."""

    def __init__(self, folder: CodeFolder, blobs: Blobs) -> None:
        self.folder = folder
        self._blobs = blobs
        self._lock = asyncio.Lock()
        self._coming: dict[int, CodeEntry] = {}
        self._advanced = asyncio.Event()

    def take(self, entries: tuple[CodeEntry, ...]) -> None:
        """Notes entries that are to be applied."""
        self._coming.update({entry.index: entry for entry in entries})

    async def apply(self) -> bool:
        """Completes the tree of the newest entry that was taken. Returns whether there was anything new.

        Errors: BlobUnavailable, ArchiveError, ValueError for a gap in the numbers: what was there stays in force, and
        the entries are tried again by the next call, with those that have come since.
        """
        async with self._lock:
            fresh = [entry for index, entry in sorted(self._coming.items()) if index > self.folder.index]
            if not fresh:
                self._coming.clear()
                return False
            run = range(self.folder.index + 1, self.folder.index + 1 + len(fresh))
            fresh = [entry for entry, index in zip(fresh, run, strict=True) if entry.index == index]
            if not fresh:
                raise ValueError(f"the code log has a gap after {self.folder.index}")
            for entry in fresh:
                problem = _entry_problem(entry)
                if problem:
                    raise ArchiveError(f"code entry {entry.index}: {problem}")
            index = fresh[-1].index
            await self._complete(tree_at(self.folder.entries + fresh, index))
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self.folder.build, index, fresh)
            self.folder.append(fresh)
            self._advanced.set()
            self._advanced = asyncio.Event()
            return True

    def drop_coming(self) -> None:
        """Forgets entries that were taken and not applied."""
        self._coming.clear()

    async def reset(self) -> None:
        """Throws the log of this host away; archives stay, they are named by their content."""
        async with self._lock:
            await asyncio.get_running_loop().run_in_executor(None, self.folder.reset)

    async def have(self, index: int, for_s: float) -> str:
        """Returns the digest of the tree at `index`, which is complete then; waits until the log has come so far.

        Errors: TimeoutError, BlobUnavailable, ArchiveError.
        """
        async with asyncio.timeout(for_s):
            while self.folder.index < index:
                await self._advanced.wait()
        async with self._lock:
            await self._complete(tree_at(self.folder.entries, index))
            await asyncio.get_running_loop().run_in_executor(None, self.folder.build, index)
        return self.folder.digest(index)

    async def _complete(self, tree: dict[str, CodeEntry]) -> None:
        for digest in {entry.digest for entry in tree.values()}:
            if self.folder.has(digest):
                continue
            archive = self.folder.root / f"archive-{digest}"
            try:
                await self._blobs.fetch(digest, archive, for_s=60.0)
                await asyncio.get_running_loop().run_in_executor(None, self.folder.add, archive, digest)
            finally:
                archive.unlink(missing_ok=True)


def _entry_problem(entry: CodeEntry) -> str:
    """Returns why the entry must not become a file name here."""
    if len(entry.digest) != 64 or not set(entry.digest) <= set("0123456789abcdef"):
        return "its digest is not a SHA-256"
    if entry.kind not in ("module", "folder"):
        return f"unknown kind {entry.kind!r}"
    if not entry.name or "/" in entry.name or "\0" in entry.name or entry.name.startswith("."):
        return f"its name {entry.name!r} is not a plain file name"
    return ""

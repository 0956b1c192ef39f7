"""The files of the code log on this host: archives, and the trees made of them.

```
code/boot             the boot in which this folder was filled
code/entries          the entries of the log, msgpack, in order
code/store/DIGEST/    an unpacked archive
code/store/DIGEST.files   what its files were like when they were unpacked
code/trees/N/         the tree at index N: links into the store
code/runs/N.log       what command N printed
code/envs/LOCK/       an environment (environments.py)
```
Nothing is fsynced: a folder that was filled before the machine last started is thrown away and filled again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from depalma.agent.lives import boot_id
from depalma.agent.store import remove_tree
from depalma.archive import MODULE_MEMBER, unpack
from depalma.codetree import CodeEntry, tree_at, tree_digest, tree_digests

#: Path below the archive's folder, size, times of the last change of content and of anything, inode.
_File = tuple[str, int, int, int, int]
_files = msgspec.msgpack.Decoder(list[_File])


class CodeFolder:
    """Entries, store and trees of this host. `index` is the newest complete tree."""

    def __init__(self, root: Path) -> None:
        self.root = root / "code"
        self._store = self.root / "store"
        self._trees = self.root / "trees"
        self.runs = self.root / "runs"
        boot = boot_id()
        marker = self.root / "boot"
        if not marker.exists() or marker.read_text() != boot:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(mode=0o700, parents=True)
            marker.write_text(boot)
        for folder in (self._store, self._trees, self._trees / "0", self.runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (*self._store.glob(".*"), *self._trees.glob(".*")):
            shutil.rmtree(left, ignore_errors=True)  # of an agent that was killed
        self.entries: list[CodeEntry] = self._load()
        self.index = self.entries[-1].index if self.entries else 0

    def _load(self) -> list[CodeEntry]:
        try:
            entries = msgspec.msgpack.decode((self.root / "entries").read_bytes(), type=list[CodeEntry])
        except (FileNotFoundError, msgspec.DecodeError):
            return []
        return entries if [entry.index for entry in entries] == list(range(1, len(entries) + 1)) else []

    def append(self, entries: list[CodeEntry]) -> None:
        """Takes entries into the log of this host, once their tree is complete. Errors: OSError, nothing is taken."""
        longer = self.entries + entries
        building = self.root / "entries.new"
        building.write_bytes(msgspec.msgpack.encode(longer))
        building.rename(self.root / "entries")
        self.entries, self.index = longer, longer[-1].index

    def reset(self) -> None:
        """Begins at index 0 (blocks)."""
        self.entries, self.index = [], 0
        (self.root / "entries").unlink(missing_ok=True)
        shutil.rmtree(self._trees, ignore_errors=True)
        (self._trees / "0").mkdir(mode=0o700, parents=True)

    def digest(self, index: int) -> str:
        """Returns the digest of the tree at `index`."""
        return tree_digest(tree_at(self.entries, index))

    def digests(self, first: int, last: int) -> dict[int, str]:
        """Returns the digests of the trees at these indices (blocks for a long log)."""
        return tree_digests(self.entries, first, last)

    # ------------------------------------------------------------ archives

    def add(self, archive: Path, digest: str) -> None:
        """Unpacks an archive, in place of what may be there (blocks). Errors: ArchiveError."""
        fresh = Path(tempfile.mkdtemp(prefix=".fresh-", dir=self._store))
        try:
            unpack(archive, fresh / "new")
            target, listing = self._store / digest, self._store / f"{digest}.files"
            listing.unlink(missing_ok=True)
            # Before others can write to them: what somebody changes at once must not pass for what was packed.
            files = msgspec.msgpack.encode(_look(fresh / "new"))
            if target.exists():
                target.rename(fresh / "old")
            (fresh / "new").rename(target)
            (fresh / "files").write_bytes(files)
            (fresh / "files").rename(listing)
        finally:
            remove_tree(fresh)

    def is_sound(self, digest: str) -> bool:
        """Returns whether an archive is unpacked here and nobody has touched its files since (blocks).

        Files are not read: a write changes their times. What Python compiles on the way is no change.
        """
        try:
            was = _files.decode((self._store / f"{digest}.files").read_bytes())
            return _look(self._store / digest) == was
        except (FileNotFoundError, msgspec.DecodeError, RecursionError):  # the last: somebody made very deep folders
            return False

    # ------------------------------------------------------------ trees

    def build(self, index: int, tree: dict[str, CodeEntry]) -> None:
        """Makes the tree at `index` out of the store, at once (blocks). Errors: OSError."""
        target = self._trees / str(index)
        if self.is_built(index, tree):
            return
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self._trees))
        try:
            new = building / "new"
            new.mkdir(mode=0o755)
            for path, source in self._links(tree).items():
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                os.symlink(os.path.relpath(source, (target / path).parent), new / path)
            if target.exists():
                target.rename(building / "old")
            new.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def is_built(self, index: int, tree: dict[str, CodeEntry]) -> bool:
        """Returns whether the tree at `index` is there, with every link where it leads and no other file (blocks)."""
        target = self._trees / str(index)
        if not target.is_dir():
            return False
        wanted = {path: os.path.relpath(source, (target / path).parent) for path, source in self._links(tree).items()}
        found: dict[str, str] = {}
        for folder, folders, files in os.walk(target):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in (*folders, *files):
                path = Path(folder) / name
                if path.is_symlink() or not path.is_dir():
                    found[path.relative_to(target).as_posix()] = os.readlink(path) if path.is_symlink() else ""
        return found == wanted

    def _links(self, tree: dict[str, CodeEntry]) -> dict[str, Path]:
        """Returns where each link of a tree leads: one a name, and of a wheel one for each thing in it.

        Wheels may share a package (a namespace): their links are in a folder then. Of one file the latest entry has it.
        """
        links: dict[str, Path] = {}
        for name, entry in sorted(tree.items(), key=lambda item: item[1].index):
            source = self._store / entry.digest
            if entry.kind == "wheel":
                for child in sorted(source.iterdir()):
                    _place(links, child.name, child)
            else:
                _place(links, name, source / MODULE_MEMBER if entry.kind == "module" else source)
        return links


def _place(links: dict[str, Path], path: str, source: Path) -> None:
    """Puts a link in place; two folders of one name become a folder of links to what is in them."""
    other = links.get(path)
    below = [known for known in links if known.startswith(path + "/")]
    if source.is_dir() and (below or (other is not None and other.is_dir())):
        if other is not None:
            del links[path]
            for child in sorted(other.iterdir()):
                links[f"{path}/{child.name}"] = child
        for child in sorted(source.iterdir()):
            _place(links, f"{path}/{child.name}", child)
        return
    for known in below:
        del links[known]
    links[path] = source


def _look(folder: Path) -> list[_File]:
    """Returns what the files of a folder are like, without reading them; compiled ones are left out."""
    found: list[_File] = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(here, name)
            status = os.lstat(path)
            found.append(
                (os.path.relpath(path, folder), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            )
    return found

"""Input files of attempts before they start, and output files after they ended: beside the scratch folders.

```
staged/JOB.TASK.ATTEMPT         its inputs, unpacked; becomes its scratch folder
staged/JOB.TASK.ATTEMPT.done    its scratch folder, after it ended, if outputs were asked for
```
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from depalma import staging
from depalma.agent.store import remove_tree
from depalma.model import AttemptRef, Payload


class Stage:
    """The folder `staged`. Everything here blocks, and belongs into a thread."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root / "staged"
        self._trash = root / "trash"
        self._out = root / "blobs" / "out"
        self._limit_bytes = limit_bytes
        remove_tree(self._root)
        self._root.mkdir(mode=0o700, parents=True)

    def place(self, archive: Path, ref: AttemptRef) -> None:
        """Unpacks the inputs of an attempt. Errors: ArchiveError, OSError."""
        target = self._root / name_of(ref)
        remove_tree(target)
        staging.unpack(archive, target)
        target.chmod(0o700)

    def collect(self, ref: AttemptRef, globs: tuple[str, ...]) -> Payload | None:
        """Packs the outputs of an attempt, to be uploaded; None if nothing matches. Errors: ArchiveError, OSError."""
        folder = self._root / f"{name_of(ref)}.done"
        folder.mkdir(mode=0o700, exist_ok=True)  # it wrote nothing: a name that must be there is missed below
        part = self._out / f"{name_of(ref)}.part"
        try:
            members = staging.output_members(folder, globs)
            if not members:
                return None
            with open(part, "wb") as file:
                digest, size_bytes = staging.pack(members, file, self._limit_bytes)
            os.rename(part, self._out / digest)
            return Payload(digest=digest, size_bytes=size_bytes)
        finally:
            part.unlink(missing_ok=True)
            remove_tree(folder)

    def sweep(self, live: Container[AttemptRef]) -> None:
        """Throws away what belongs to no attempt that is here any more.

        Anything else is what another thread unpacks this moment: it gets its name when it is complete.
        """
        for folder in list(self._root.iterdir()):
            words = folder.name.removesuffix(".done").split(".")
            if len(words) != 3 or not all(word.isdecimal() for word in words):
                continue
            if (int(words[0]), int(words[1]), int(words[2])) not in live:
                remove_tree(folder)


def name_of(ref: AttemptRef) -> str:
    """Returns `42.7.1`."""
    return ".".join(map(str, ref))

"""Which code a host has at a code index, and its digest. [pure]

Entry n of the code log puts one named thing (a module file, a folder, a wheel) in place; the tree at index n is the
newest entry of each name up to n. A rollback makes the tree that of an earlier index again; a command changes no tree,
every host runs it once, in its place. Masters, agents and clients compute the same digest from the same log.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from msgspec import Struct

#: What an entry may put in place, and `command`, which is run instead.
ARCHIVE_KINDS = ("module", "folder", "wheel")
COMMAND = "command"


class CodeEntry(Struct, frozen=True, kw_only=True):
    """One numbered entry of the code log; the archive itself is the blob named by `digest`."""

    index: int
    name: str
    kind: str  #: `module` (one file), `folder`, `wheel`; or `command`
    digest: str  #: SHA-256 of the archive; of a command: of what it is
    size_bytes: int
    added_at: float
    added_by: str
    requirements: str = ""  #: digest of the requirements file that belongs to it; empty = none
    argv: tuple[str, ...] = ()  #: of a command
    timeout_s: float = 0.0  #: of a command: it is killed then, and has failed; 0 = none
    rollback_of: int = 0  #: the whole tree is that of this index again; the other fields repeat that entry


def tree_at(entries: Sequence[CodeEntry], index: int) -> dict[str, CodeEntry]:
    """Returns the entry of each name that is in force at `index`. `entries`: the log from 1 on."""
    spans: list[tuple[int, int]] = []
    end = min(index, len(entries))
    while end > 0:
        # Only what follows the last rollback counts, on top of the tree that it went back to.
        begin = next((n for n in range(end, 0, -1) if entries[n - 1].rollback_of), 0)
        spans.append((begin, end))
        end = entries[begin - 1].rollback_of if begin else 0
    tree: dict[str, CodeEntry] = {}
    for begin, end in reversed(spans):
        for entry in entries[begin:end]:
            if entry.kind != COMMAND:
                tree[entry.name] = entry
    return tree


def tree_digest(tree: dict[str, CodeEntry]) -> str:
    """Returns the SHA-256 over names, digests and requirements in name order; empty for the empty tree."""
    if not tree:
        return ""
    lines = "".join(_line(name, tree[name]) for name in sorted(tree))
    return hashlib.sha256(lines.encode()).hexdigest()


def tree_digests(entries: Sequence[CodeEntry], first: int, last: int) -> dict[int, str]:
    """Returns the digests of the trees at each index from `first` to `last`, without beginning anew for each."""
    tree = tree_at(entries, first - 1)
    digests: dict[int, str] = {}
    for entry in entries[first - 1 : last]:
        if entry.rollback_of:
            tree = tree_at(entries, entry.index)
        elif entry.kind != COMMAND:
            tree[entry.name] = entry
        digests[entry.index] = tree_digest(tree)
    return digests


def _line(name: str, entry: CodeEntry) -> str:
    # Entries without requirements have the line that they had before there were any.
    needs = f"\0{entry.requirements}" if entry.requirements else ""
    return f"{name}\0{entry.digest}{needs}\n"


def requirements_of(tree: dict[str, CodeEntry]) -> tuple[str, ...]:
    """Returns the digests of the requirements files of a tree, each once, in order."""
    return tuple(sorted({entry.requirements for entry in tree.values() if entry.requirements}))


def command_digest(argv: Sequence[str], timeout_s: float) -> str:
    """Returns what names a command: the SHA-256 over its words and its limit."""
    return hashlib.sha256("\0".join([*argv, f"{timeout_s:g}"]).encode(errors="surrogateescape")).hexdigest()


def sign(key: str, host: str, index: int, digest: str) -> str:
    """Returns the signature with which a host acknowledges the tree `digest` at `index`, hex; `key`: the agents'."""
    return hmac.new(key.encode(), f"{host}\0{index}\0{digest}".encode(), hashlib.sha256).hexdigest()

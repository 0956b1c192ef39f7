"""Which code a host has at a code index, and its digest. [pure]

Entry n of the code log puts one named thing (a module file or a folder) in place; the tree at index n is the newest
entry of each name up to n. Masters, agents and clients compute the same digest from the same log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import Struct


class CodeEntry(Struct, frozen=True, kw_only=True):
    """One numbered entry of the code log; the archive itself is the blob named by `digest`."""

    index: int
    name: str
    kind: str  #: `module` (one file) or `folder`
    digest: str  #: SHA-256 of the archive
    size_bytes: int
    added_at: float
    added_by: str


def tree_at(entries: Iterable[CodeEntry], index: int) -> dict[str, CodeEntry]:
    """Returns the entry of each name that is in force at `index`."""
    tree: dict[str, CodeEntry] = {}
    for entry in entries:
        if entry.index <= index:
            tree[entry.name] = entry
    return tree


def tree_digest(tree: dict[str, CodeEntry]) -> str:
    """Returns the SHA-256 over names and digests in name order; empty for the empty tree."""
    if not tree:
        return ""
    lines = "".join(f"{name}\0{tree[name].digest}\n" for name in sorted(tree))
    return hashlib.sha256(lines.encode()).hexdigest()

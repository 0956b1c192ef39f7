"""Counts what Python source files are made of: the module that the example puts into the code log.

It knows nothing of Depalma: `count` is a plain function of one path, `total` reduces what it returned.
"""

from __future__ import annotations

import hashlib
import keyword
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict


class Stats(TypedDict):
    """Of one file, or of many. `files` counts each file once; `fingerprint` tells which contents were counted."""

    files: int
    unreadable: int
    lines: int
    tokens: int
    names: int
    keywords: dict[str, int]
    fingerprint: int


def count(path: str) -> Stats:
    """Returns the statistics of one source file. One that Python itself cannot read counts as `unreadable`."""
    content = Path(path).read_bytes()
    stats = nothing()
    stats["files"] = 1
    stats["lines"] = content.count(b"\n")
    # A sum of hashes does not depend on the order, and a file counted twice or not at all changes it.
    stats["fingerprint"] = int.from_bytes(hashlib.sha256(path.encode() + b"\0" + content).digest()[:8], "big")
    try:
        with tokenize.open(path) as source:
            words = Counter((token[0], token[1]) for token in tokenize.generate_tokens(source.readline))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        stats["unreadable"] = 1
        return stats
    for (kind, word), times in words.items():
        if kind not in _NOT_COUNTED:
            stats["tokens"] += times
        if kind == tokenize.NAME and keyword.iskeyword(word):
            stats["keywords"][word] = times
        elif kind == tokenize.NAME:
            stats["names"] += times
    return stats


def nothing() -> Stats:
    """Returns the statistics of no file."""
    return Stats(files=0, unreadable=0, lines=0, tokens=0, names=0, keywords={}, fingerprint=0)


def total(parts: Iterable[Stats]) -> Stats:
    """Returns the sum, in whatever order the parts come."""
    whole = nothing()
    keywords: Counter[str] = Counter()
    for part in parts:
        for field in ("files", "unreadable", "lines", "tokens", "names", "fingerprint"):
            whole[field] += part[field]
        keywords.update(part["keywords"])
    whole["fingerprint"] %= 1 << 64
    whole["keywords"] = dict(sorted(keywords.items()))
    return whole


_NOT_COUNTED = frozenset(
    (
        tokenize.COMMENT,
        tokenize.ENCODING,
        tokenize.NEWLINE,
        tokenize.NL,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
)

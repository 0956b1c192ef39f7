"""Ranges of job ids, both ends included. [pure]"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def without(ranges: Iterable[Range], ids: Sequence[int]) -> list[Range]:
    """Returns what is left of rising ranges when rising ids are taken out; cheap where whole stretches go or stay."""
    left: list[Range] = []
    todo = list(ranges)[::-1]
    while todo:
        first, last = todo.pop()
        taken = bisect_right(ids, last) - bisect_left(ids, first)
        if taken == 0:
            if left and left[-1][1] == first - 1:
                left[-1] = (left[-1][0], last)
            else:
                left.append((first, last))
        elif taken <= last - first:
            middle = (first + last) // 2
            todo += [(middle + 1, last), (first, middle)]
    return left


def count(ranges: Iterable[Range]) -> int:
    """Returns how many ids there are."""
    return sum(last - first + 1 for first, last in ranges)


def shown(ranges: Sequence[Range], limit: int = 5) -> str:
    """Returns `3-7, 9, …`."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:limit]]
    return ", ".join([*texts, *(["…"] if len(ranges) > limit else [])])

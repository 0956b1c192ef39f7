"""A sorted set of ints whose cost does not grow with its size. [pure]

Keys stand in chunks of bounded length, so adding and removing move at most one chunk; a queue of a million jobs costs
as little a job as one of ten.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

_CHUNK = 512


class OrderedKeys:
    """A sorted set of distinct ints: add, discard, rank and iteration in order."""

    __slots__ = ("_chunks", "_lasts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[int]] = []
        self._lasts: list[int] = []  #: the largest key of each chunk
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for chunk in self._chunks:
            yield from chunk

    @property
    def first(self) -> int:
        """Returns the smallest key. Errors: IndexError when there is none."""
        return self._chunks[0][0]

    def add(self, key: int) -> None:
        """Adds a key that is not in the set."""
        self._size += 1
        if not self._chunks:
            self._chunks.append([key])
            self._lasts.append(key)
            return
        at = min(bisect_left(self._lasts, key), len(self._chunks) - 1)
        chunk = self._chunks[at]
        if key > chunk[-1]:
            chunk.append(key)
        else:
            insort(chunk, key)
        self._lasts[at] = chunk[-1]
        if len(chunk) > 2 * _CHUNK:
            self._split(at)

    def remove(self, key: int) -> None:
        """Removes a key. Errors: KeyError when it is not in the set."""
        at = bisect_left(self._lasts, key)
        if at == len(self._chunks):
            raise KeyError(key)
        chunk = self._chunks[at]
        place = bisect_left(chunk, key)
        if chunk[place] != key:
            raise KeyError(key)
        del chunk[place]
        self._size -= 1
        if chunk:
            self._lasts[at] = chunk[-1]
        else:
            del self._chunks[at], self._lasts[at]

    def rank(self, key: int) -> int:
        """Returns how many keys are smaller."""
        at = bisect_left(self._lasts, key)
        smaller = sum(len(chunk) for chunk in self._chunks[:at])
        return smaller + (bisect_left(self._chunks[at], key) if at < len(self._chunks) else 0)

    def _split(self, at: int) -> None:
        chunk = self._chunks[at]
        self._chunks[at : at + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]
        self._lasts[at : at + 1] = [chunk[_CHUNK - 1], chunk[-1]]

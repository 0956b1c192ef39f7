"""The log in memory: contiguous entries above a base, cheap at both ends."""

from __future__ import annotations

from depalma.consensus.envelope import MEMBERSHIP, NO_OP

#: command, index, term: the order is the engine's
Entry = tuple[bytes, int, int]

#: the base of a log that never held anything; every replica starts with it
FIRST_INDEX = 1
FIRST_TERM = 0
_MEMBERSHIP = bytes([MEMBERSHIP])


class Log:
    """Entries `base_index + 1 … last_index`; of the base itself only index and term are known.

    The base is the last entry that is no longer kept. Nothing here is linear in the length of the log, except
    that dropping a prefix costs (amortised) a constant per dropped entry.
    """

    __slots__ = (
        "_entries",
        "_head",
        "base_index",
        "base_term",
        "last_index",
        "last_term",
        "membership",
        "membership_changes",
        "size_bytes",
    )

    def __init__(self) -> None:
        #: counts how often `membership` changed
        self.membership_changes = 0
        self.reset(FIRST_INDEX, FIRST_TERM)

    def reset(self, index: int, term: int) -> None:
        """Hold nothing, and know that everything up to `index` is elsewhere."""
        self._entries: list[Entry] = []
        self._head = 0
        self.base_index = self.last_index = index
        self.base_term = self.last_term = term
        self.size_bytes = 0
        #: the entries that say who the members are, oldest first
        self.membership: list[int] = []
        self.membership_changes += 1

    def __len__(self) -> int:
        return len(self._entries) - self._head

    def append(self, entry: Entry) -> None:
        """Put the entry after the last one. Raises ValueError if its index leaves a gap."""
        if entry[1] != self.last_index + 1:
            raise ValueError(f"entry {entry[1]} does not follow {self.last_index}")
        self._entries.append(entry)
        self.last_index = entry[1]
        self.last_term = entry[2]
        self.size_bytes += len(entry[0])
        if entry[0][:1] == _MEMBERSHIP:
            self.membership.append(entry[1])
            self.membership_changes += 1

    def truncate_from(self, index: int) -> None:
        """Drop the entries from `index` on. Raises ValueError if that would reach into the base."""
        if index <= self.base_index:
            raise ValueError(f"cannot drop entry {index}: the log begins above {self.base_index}")
        position = self._position(index)
        self.size_bytes -= sum(len(entry[0]) for entry in self._entries[position:])
        del self._entries[position:]
        self.last_index = min(self.last_index, index - 1)
        self.last_term = self.term_at(self.last_index)
        while self.membership and self.membership[-1] >= index:
            self.membership.pop()
            self.membership_changes += 1

    def drop_to(self, index: int) -> None:
        """Forget the entries up to and including `index`, which becomes the base."""
        index = min(index, self.last_index)
        if index <= self.base_index:
            return
        position = self._position(index)
        self.base_term = self._entries[position][2]
        for i in range(self._head, position + 1):
            self.size_bytes -= len(self._entries[i][0])
            self._entries[i] = (b"", 0, 0)
        self._head = position + 1
        self.base_index = index
        self.membership = [position for position in self.membership if position > index]
        if self._head * 2 > len(self._entries):
            del self._entries[: self._head]
            self._head = 0

    def term_at(self, index: int) -> int:
        """The term of the entry, or of the base. Raises IndexError outside of these."""
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            raise IndexError(index)
        return self._entries[self._position(index)][2]

    def entry(self, index: int) -> Entry:
        """The entry, or for the base a no-op in its place. Raises IndexError outside of these."""
        if index == self.base_index:
            return (bytes([NO_OP]), self.base_index, self.base_term)
        if not self.base_index < index <= self.last_index:
            raise IndexError(index)
        return self._entries[self._position(index)]

    def entries(self, first: int, count: int, limit_bytes: int | None = None) -> list[Entry]:
        """At most `count` entries from `first` on; with a limit, stops before passing it but gives at least one."""
        start = self._position(max(first, self.base_index + 1))
        found = self._entries[start : start + count]
        if limit_bytes is None:
            return found
        total = 0
        for position, entry in enumerate(found):
            total += len(entry[0])
            if total > limit_bytes and position:
                return found[:position]
        return found

    def first_index_of_term(self, index: int) -> int:
        """The lowest index from which on, up to `index`, all entries have the term of `index`."""
        term = self.term_at(index)
        while index - 1 > self.base_index and self.term_at(index - 1) == term:
            index -= 1
        return index

    def keep_behind(self, index: int, count: int, size_bytes: int) -> int:
        """The index up to which to drop so that at most `count` entries and `size_bytes` below `index` stay."""
        lowest = max(index - count, self.base_index)
        while index > lowest and size_bytes > 0:
            size_bytes -= len(self.entry(index)[0])
            index -= 1
        return index

    def _position(self, index: int) -> int:
        return self._head + index - self.base_index - 1

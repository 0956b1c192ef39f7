"""Which of a leader's entries are new here: Raft's own rule, that only a conflict voids an entry.

PySyncObj's follower deletes everything after `prev_index` on each append, even entries that match, so that a crash
before they come back loses entries it has acknowledged. The engine hands it only what this filter leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depalma.consensus.errors import InvariantBroken
from depalma.consensus.log import Entry, Log


@dataclass(frozen=True, slots=True)
class Accepted:
    """Append `entries` after `prev_index`, voiding what stands there. If there are none, nothing is voided."""

    prev_index: int
    prev_term: int
    entries: list[Entry]
    #: the log equals the leader's up to here; what follows is unknown
    matched: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The entry at `prev_index` is missing or another; the leader should go on from `hint`."""

    prev_index: int
    hint: int


def filter_append(
    log: Log, commit_index: int, prev_index: int, prev_term: int, entries: Sequence[tuple[int, bytes]]
) -> Accepted | Refused:
    """Compare a leader's entries (term, command) after `prev_index` with the log.

    Raises InvariantBroken if the leader contradicts a committed entry.
    """
    if prev_index < log.base_index:
        # What is at or below the base is committed here, so every leader of this or a later term has it too.
        entries = entries[log.base_index - prev_index :]
        prev_index, prev_term = log.base_index, log.base_term
    if prev_index > log.last_index:
        return Refused(prev_index, log.last_index + 1)
    if log.term_at(prev_index) != prev_term:
        _check_uncommitted(prev_index, commit_index)
        return Refused(prev_index, max(commit_index + 1, log.first_index_of_term(prev_index)))
    matched = prev_index
    for term, _ in entries:
        if matched == log.last_index or log.term_at(matched + 1) != term:
            break
        matched += 1
    new = entries[matched - prev_index :]
    if not new:
        return Accepted(log.last_index, log.last_term, [], matched)
    if matched < log.last_index:
        _check_uncommitted(matched + 1, commit_index)
    appended = [(command, matched + i, term) for i, (term, command) in enumerate(new, 1)]
    return Accepted(matched, log.term_at(matched), appended, matched + len(new))


def _check_uncommitted(index: int, commit_index: int) -> None:
    if index <= commit_index:
        raise InvariantBroken(
            f"a leader contradicts entry {index}, but everything up to {commit_index} is committed: "
            "some replica has lost acknowledged entries"
        )

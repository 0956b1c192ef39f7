"""Known bugs to plant into a simulated cluster: a simulation that cannot find these proves nothing.

Each is one that PySyncObj 0.3.17 has on its own, or that a careless change of ours would bring.
"""

from __future__ import annotations

from collections.abc import Sequence

from depalma.consensus.append_filter import Accepted, Refused, filter_append
from depalma.consensus.core import Core
from depalma.consensus.disk import AppendFile
from depalma.consensus.engine import Engine
from depalma.consensus.journal import Journal, Record, VoteRecord
from depalma.consensus.log import Log
from depalma.consensus.owners import Callback
from depalma.consensus.reads import Reads
from depalma.consensus.snapshot import Snapshot


def _truncate_always(
    log: Log, commit_index: int, prev_index: int, prev_term: int, entries: Sequence[tuple[int, bytes]]
) -> Accepted | Refused:
    """The library's own rule: void everything after `prev_index`, even what matches."""
    found = filter_append(log, log.base_index, prev_index, prev_term, entries)
    if isinstance(found, Refused) or prev_index < log.base_index:
        return found
    everything = [(command, prev_index + i, term) for i, (term, command) in enumerate(entries, 1)]
    return Accepted(prev_index, prev_term, everything, prev_index + len(entries))


class _TruncatingEngine(Engine):
    filter_append = staticmethod(_truncate_always)


class TruncatesAlways(Core):
    """A follower voids entries that match, as stock PySyncObj does."""

    engine_class = _TruncatingEngine


class _ForgetfulJournal(Journal):
    def flush(self) -> None:
        self._pending = [record for record in self._pending if not isinstance(record, VoteRecord)]
        super().flush()


class ForgetsVote(Core):
    """The vote is not stored before it is given."""

    journal_class = _ForgetfulJournal


class ClearsJournal(Core):
    """A snapshot found at the start clears the journal, also what is newer."""

    def reconcile(self, snapshot: Snapshot) -> None:
        self.journal.reset(snapshot.index, snapshot.term)


class _Unsynced:
    def __init__(self, file: AppendFile) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


class _UnsyncedJournal(Journal):
    def _write_group(self, file: AppendFile, records: list[Record]) -> None:
        super()._write_group(_Unsynced(file), records)


class SkipsSync(Core):
    """The journal is written, but not synced, before others are told."""

    journal_class = _UnsyncedJournal


class _Lease(Reads):
    """Knows when its last round began: for so long as followers then stick to the leader, readers need none."""

    def __init__(self, core: Core) -> None:
        super().__init__(core.engine)
        self._core = core
        self._asked_at = self._lease_until = float("-inf")
        self._lease_term = 0

    def ask(self, callback: Callback) -> None:
        if self._core.leads_term == self._lease_term and self._core._clock.monotonic() < self._lease_until:
            self._confirmed.append((self._engine.commit_index, [callback]))
        else:
            super().ask(callback)

    def start_round(self) -> None:
        if self._round is None:
            self._asked_at = self._core._clock.monotonic()
        super().start_round()

    def finished(self) -> list[Callback]:
        if self._round is not None and self._engine.answered_round >= self._round[0]:
            self._lease_until = self._asked_at + self._core._settings.election_s[0]
            self._lease_term = self._engine.term
        return super().finished()


class LeaseReads(Core):
    """A leader answers reads without asking for as long as no follower would elect another, by its own clock."""

    def open(self) -> None:
        super().open()
        self._reads = _Lease(self)


class _TrustingJournal(Journal):
    joined = property(lambda self: True, lambda self, value: None)


class IgnoresJoined(Core):
    """A replica whose disk was replaced votes as if it had forgotten nothing."""

    journal_class = _TrustingJournal


BUGS: dict[str, type[Core]] = {
    "no-sync": SkipsSync,
    "truncate-always": TruncatesAlways,
    "vote-not-stored": ForgetsVote,
    "snapshot-clears-journal": ClearsJournal,
    "lease-read": LeaseReads,
    "joined-ignored": IgnoresJoined,
}

"""What one archive lacks, and where it gets it: job ids are consecutive, so what was missed can be told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from depalma.jobarchive.database import Database
from depalma.jobarchive.files import ArchiveFile
from depalma.jobarchive.peers import RANGES_AT_ONCE, Peers, records_of
from depalma.jobarchive.ranges import Range, count, shown, without
from depalma.jobarchive.record import Record
from depalma.state.cluster_state import ClusterState

log = logging.getLogger(__name__)

#: Peers are asked again for what is missing after this long, if one did not answer, and if none has it.
_ASK_AGAIN_S = 30.0
_LOOK_AGAIN_S = 3600.0


class Gaps:
    """Looks at the start, and whenever something may have been missed."""

    def __init__(self, file: ArchiveFile, peers: Peers, state: Callable[[], ClusterState]) -> None:
        self.missing: list[Range] = []  #: that no master has that could be asked
        self._file = file
        self._peers = peers
        self._state = state
        self._looked_at: ClusterState | None = None  #: the state that was whole; a restored one is another object
        self._not_before_s = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        return self._state() is not self._looked_at and time.monotonic() >= self._not_before_s

    def suspect(self) -> None:
        """Something may have been missed."""
        self._looked_at, self._not_before_s = None, 0.0

    def nothing_missing(self) -> None:
        """The state has all jobs that there ever were."""
        self._looked_at = self._state()

    async def fill(self) -> None:
        """Fetches what is missing from the other masters: this one was down when it was forgotten, its file is new, …

        Errors: ArchivePaused.
        """
        state = self._state()
        live, last = list(state.jobs), state.next_job - 1

        def look(database: Database) -> list[Range]:
            first = database.dropped().job + 1
            return without(database.gaps(first, last), live) if first <= last else []

        missing = await self._file.tidy(look)
        before, silent = count(missing), False
        for peer in list(self._peers.peers()):
            missing, answered = await self._fetch(peer, missing)
            silent = silent or not answered
        if count(missing) < before:
            log.info("%d finished jobs came from the archives of other masters", before - count(missing))
        if not missing:
            self._looked_at = state
        elif missing != self.missing and not silent:
            log.warning("%d finished jobs are in no archive: ids %s", count(missing), shown(missing))
        self.missing = missing
        self._not_before_s = time.monotonic() + (_ASK_AGAIN_S if silent else _LOOK_AGAIN_S)

    async def _fetch(self, peer: str, missing: list[Range]) -> tuple[list[Range], bool]:
        """Returns what one peer does not have, and whether it answered."""
        left: list[Range] = []
        for start in range(0, len(missing), RANGES_AT_ONCE):
            some = missing[start : start + RANGES_AT_ONCE]
            while some:
                found = await records_of(self._peers, peer, some)
                if found is None:
                    return [*left, *some, *missing[start + RANGES_AT_ONCE :]], False
                rest = without(some, sorted(each.id for each in found))
                if rest == some:
                    break  # it has none of these
                await self._file.write(partial(_write_into, found))
                some = rest
            left += some
        return left, True


def _write_into(found: list[Record], database: Database) -> None:
    database.write(found)

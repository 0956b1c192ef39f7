"""Flipped bits in the files of a replica that is down, and the operator who deals with what is noticed.

A flip must be noticed when the files are read, or change nothing of what is read. One exception is documented
(consensus/DESIGN.md, limits): in the last group of the journal it looks like a write that a crash interrupted, and the
group is cut. That is harmless only while the other replicas hold what was in it, so only then is such a flip made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any

from depalma.consensus.errors import JournalDamaged, SnapshotDamaged
from depalma.consensus.journal import EntryRecord, Journal, Record, read_group
from depalma.consensus.snapshot import SnapshotStore, open_log
from depalma.testing.cluster import SimCluster, Violation
from depalma.testing.disk import SimDisk


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a replica learns from its files."""

    snapshot: object
    state: str
    term: int
    voted_for: str | None
    joined: bool
    base: tuple[int, int]
    entries: tuple[tuple[bytes, int, int], ...]


def contents(disk: SimDisk) -> Contents | str:
    """What a replica would read from a copy of this disk; a sentence if it would refuse to start."""
    copy = disk.clone()
    store, journal = SnapshotStore(copy), Journal(copy, segment_bytes=1 << 30)
    digest = hashlib.blake2b(digest_size=8)
    try:
        for piece in open_log(copy, store, journal) or ():
            digest.update(piece)
    except (JournalDamaged, SnapshotDamaged) as error:
        return str(error)
    log = journal.log
    return Contents(
        store.newest,
        digest.hexdigest(),
        journal.term,
        journal.voted_for,
        journal.joined,
        (log.base_index, log.base_term),
        tuple(log.entries(log.base_index + 1, len(log))),
    )


def flip_bit(cluster: SimCluster[Any], name: str, random: Random) -> str | None:
    """Flip one bit on the disk of a replica that is down, and judge what it will find.

    Returns what kind of flip it was, or None if there is nothing to flip or it would go beyond the documented limit.
    Raises Violation if other contents would be taken for the true ones.
    """
    disk = cluster.nodes[name].disk
    files = [file for file in disk.names() if disk.size(file)]
    before = contents(disk)
    if not files or isinstance(before, str):
        return None
    file = random.choice(files)
    size = disk.size(file)
    offset = size - 1 - random.randrange(min(size, 80)) if random.random() < 0.3 else random.randrange(size)
    bit = random.randrange(8)
    flipped = disk.clone()
    flipped.flip_bit(file, offset, bit)
    after = contents(flipped)
    if isinstance(after, str):
        disk.damage = f"a bit flipped at byte {offset} of {file}"
        kind = "bit flipped, noticed"
    elif after == before:
        kind = "bit flipped, in a file that is not needed"
    else:
        shorter, lost = _without_last_group(disk)
        if after != contents(shorter):
            raise Violation(f"{name}: a bit flipped at byte {offset} of {file} changes what is read, unnoticed")
        if not _others_hold(cluster, name, lost):
            return None
        kind = "bit flipped, in the last group"
    disk.flip_bit(file, offset, bit)
    return kind


def _without_last_group(disk: SimDisk) -> tuple[SimDisk, list[Record]]:
    """A copy without the last group of the journal, and what was in that."""
    copy = disk.clone()
    segment = max(name for name in copy.names() if name.startswith("journal-"))
    data, offset, last, records = copy.read(segment), 0, 0, []
    while group := read_group(data, offset):
        records, last, offset = group[0], offset, group[3]
    copy.truncate(segment, last)
    return copy, records


def _others_hold(cluster: SimCluster[Any], name: str, records: list[Record]) -> bool:
    """Whether every other replica has all of this, and it is nothing but entries."""
    for other, node in cluster.nodes.items():
        if other == name:
            continue
        if node.core is None:
            return False
        log = node.core.journal.log
        for record in records:
            if not isinstance(record, EntryRecord) or record.index > log.last_index:
                return False
            if record.index > log.base_index and log.term_at(record.index) != record.term:
                return False
    return True


class Operator:
    """Does what docs/operations.md says about a damaged replica: once all others run and have applied the same, the
    replica's folder is moved away and it starts empty. One replica at a time.

    One who is `hasty` does not wait for that, as no machine that installs itself anew does. A replica that may have
    forgotten what it acknowledged is not counted and does not vote (`joined`).
    """

    PERIOD_S = 0.1

    def __init__(self, cluster: SimCluster[Any], *, hasty: bool = False) -> None:
        self._cluster = cluster
        self._hasty = hasty
        #: who is not whole, and how much it must have applied to be: all at first, then whoever got an empty folder
        self._rebuilding = dict.fromkeys(cluster.names, 1)
        self.wiped = 0

    def start(self) -> None:
        """Look after the cluster from now on."""
        self._look()
        self._cluster.timeline.after(self.PERIOD_S, self.start)

    @property
    def busy(self) -> bool:
        """Whether some replica is damaged or not yet whole: no other may lose what it holds meanwhile.

        One that has never held all that was committed does not elect those that have (`joined`), so a loss before
        that would leave a cluster without a leader until it is repaired: safe, and documented, but not to be judged.
        """
        return bool(self._rebuilding) or any(node.disk.damage for node in self._cluster.nodes.values())

    def _look(self) -> None:
        nodes = self._cluster.nodes
        for name, wanted in list(self._rebuilding.items()):
            core = nodes[name].core
            if core is not None and core.journal.joined and core.applied_index >= wanted:
                del self._rebuilding[name]
        for name, node in nodes.items():
            if node.found_damage:
                others = [other for other in nodes.values() if other is not node]
                applied = {other.core.applied_index if other.core and not other.frozen else -1 for other in others}
                equal = len(applied) == 1 and -1 not in applied and self._cluster.leader() is not None
                if equal or self._hasty:
                    self._rebuilding[name] = max(1, *applied)
                    self.wiped += 1
                    self._cluster.wipe(name)
                    self._cluster.restart(name)
                    return

"""The log on disk: segment files to which groups of records are appended and synced.

A group is what one tick wrote: one write, one fdatasync, one checksum. The next group is written only after the
sync of the previous one returned, so a bad group followed by a good one can only be damage, while a bad group at
the very end is a write that the crash interrupted: nobody was told of it, and it is cut off.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import zlib
from dataclasses import dataclass

import msgspec

from depalma.consensus.disk import AppendFile, Disk, disk_errors
from depalma.consensus.errors import DiskFailed, JournalDamaged
from depalma.consensus.log import FIRST_INDEX, FIRST_TERM, Log

logger = logging.getLogger(__name__)

MAGIC = b"DPJ1"
#: magic, payload length, group number, commit index, checksum of all the rest
_HEADER = struct.Struct("<4sIQQI")
_CHECKED = struct.Struct("<IQQ")
_SEGMENT_NAME = re.compile(r"journal-(\d{10})\.seg")
_TEMPORARY = "journal.tmp"


class _Record(msgspec.Struct, array_like=True, gc=False):
    pass


class EntryRecord(_Record, tag=1):
    """An entry was appended."""

    index: int
    term: int
    command: bytes


class VoteRecord(_Record, tag=2):
    """The term, and whom this replica voted for in it."""

    term: int
    voted_for: str | None


class TruncateRecord(_Record, tag=3):
    """Entries from `index` on are void."""

    index: int


class BaseRecord(_Record, tag=4):
    """First record of a segment: the entry before it. `reset` voids everything in earlier segments."""

    index: int
    term: int
    reset: bool
    joined: bool


class JoinedRecord(_Record, tag=5):
    """This replica has once held all that was committed; from now on it may vote."""


Record = EntryRecord | VoteRecord | TruncateRecord | BaseRecord | JoinedRecord

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


@dataclass(slots=True)
class _Segment:
    name: str
    number: int
    #: the entry before its first one
    base_index: int
    #: the lowest entry that it voids; it cannot be read without what stands before that
    lowest_void: float = math.inf


def encode_group(records: list[Record], number: int, commit_index: int) -> bytes:
    """One group as it stands in a segment."""
    payload = _encoder.encode(records)
    checksum = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(len(payload), number, commit_index)))
    return _HEADER.pack(MAGIC, len(payload), number, commit_index, checksum) + payload


def read_group(data: bytes, offset: int) -> tuple[list[Record], int, int, int] | None:
    """Records, group number, commit index and end offset of the group at `offset`; None if no good one is there."""
    if offset + _HEADER.size > len(data):
        return None
    magic, length, number, commit_index, checksum = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if magic != MAGIC or start + length > len(data):
        return None
    payload = memoryview(data)[start : start + length]
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, number, commit_index))) != checksum:
        return None
    try:
        return _decoder.decode(payload), number, commit_index, start + length
    except msgspec.MsgspecError:
        return None


class Journal:
    """The durable log, term and vote of one replica.

    Changes take effect in memory at once and on disk at the next `flush`, which must return before anything that
    follows from them is told to anybody. Raises DiskFailed from `flush`; the journal is unusable afterwards.
    """

    def __init__(self, disk: Disk, *, segment_bytes: int) -> None:
        self.log = Log()
        self.term = 0
        self.voted_for: str | None = None
        #: a lower bound of what was committed when the last group was written
        self.commit_index = FIRST_INDEX
        self.joined = False
        #: bytes written to segments since the start; grows only
        self.written_bytes = 0
        self.syncs = 0
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._file: AppendFile | None = None
        self._file_bytes = 0
        self._pending: list[Record] = []
        self._group = 0
        #: where the last group stands in the last segment that was read
        self._last_group = 0
        self._failed: DiskFailed | None = None

    def open(self) -> None:
        """Read what is there, cut a torn tail, and be ready to append. Raises JournalDamaged, DiskFailed."""
        with disk_errors("opening", self._disk.path("journal")):
            usable = self._usable_segments()
            for segment, data in usable:
                self._read_segment(segment, data, last=segment is usable[-1][0])
            if self._segments:
                # A process that was killed between write and sync has left what we just read in memory only. If its
                # sync failed, the system takes that for written, and only writing it again brings it to the disk.
                segment, data = usable[-1]
                self._disk.rewrite(segment.name, self._last_group, data[self._last_group : self._file_bytes])
                self._file = self._disk.append(segment.name)
                self._file.sync()
            else:
                self._start_segment(FIRST_INDEX, FIRST_TERM, reset=True)

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add an entry after the last one."""
        self.log.append((command, index, term))
        self._pending.append(EntryRecord(index, term, command))

    def truncate_from(self, index: int) -> None:
        """Void the entries from `index` on."""
        self.log.truncate_from(index)
        self._pending.append(TruncateRecord(index))
        self._segments[-1].lowest_void = min(self._segments[-1].lowest_void, index)

    def set_vote(self, term: int, voted_for: str | None) -> None:
        """Remember the term and the vote given in it."""
        self.term = term
        self.voted_for = voted_for
        self._pending.append(VoteRecord(term, voted_for))

    def set_joined(self) -> None:
        """Remember that this replica has once held all that was committed."""
        if not self.joined:
            self.joined = True
            self._pending.append(JoinedRecord())

    def flush(self) -> None:
        """Return when every change so far is on disk; one write and one sync, none if nothing changed."""
        if self._failed is not None:
            raise self._failed
        if not self._pending:
            return
        assert self._file is not None
        try:
            self._write_group(self._file, self._pending)
            self._pending = []
            if self._file_bytes >= self._segment_bytes:
                self._start_segment(self.log.last_index, self.log.last_term, reset=False)
        except OSError as error:
            self._failed = DiskFailed("writing", self._disk.path(self._segments[-1].name), error)
            raise self._failed from error

    def compact(self, keep_above: int) -> None:
        """Forget entries up to `keep_above`, which a durable snapshot covers; on disk: whole segments only."""
        self.log.drop_to(keep_above)
        first = 0
        for i, segment in enumerate(self._segments):
            lowest_void = min(later.lowest_void for later in self._segments[i:])
            if segment.base_index <= keep_above and lowest_void > segment.base_index:
                first = i
        self._remove_before(first)

    def reset(self, index: int, term: int) -> None:
        """Void every entry; the log goes on after `index`, up to which a durable snapshot holds everything."""
        self.flush()
        self.commit_index = max(self.commit_index, index)
        with disk_errors("resetting", self._disk.path("journal")):
            self._start_segment(index, term, reset=True)
        self._remove_before(len(self._segments) - 1)
        self.log.reset(index, term)

    def close(self) -> None:
        """Close the file; what was not flushed is gone."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_group(self, file: AppendFile, records: list[Record]) -> None:
        self._group += 1
        data = encode_group(records, self._group, self.commit_index)
        file.write(data)
        file.sync()
        self.syncs += 1
        self._file_bytes += len(data)
        self.written_bytes += len(data)

    def _remove_before(self, first: int) -> None:
        """Remove the segments before position `first`: the newest of them first, and that one durably.

        It leaves a gap, and `open` starts above the last gap: whichever of the others a crash leaves, they are not
        read. Oldest first could leave a segment that cannot be read without the one before it.
        """
        with disk_errors("removing", self._disk.path("journal")):
            for segment in reversed(self._segments[:first]):
                self._disk.remove(segment.name)
                if segment is self._segments[first - 1]:
                    self._disk.sync_dir()
        del self._segments[:first]

    def _start_segment(self, index: int, term: int, *, reset: bool) -> None:
        """Begin a file whose first group stands for itself; it gets its name only when it is durable."""
        number = self._segments[-1].number + 1 if self._segments else 1
        name = f"journal-{number:010d}.seg"
        file = self._disk.create(_TEMPORARY)
        self._file_bytes = 0
        self._write_group(file, [BaseRecord(index, term, reset, self.joined), VoteRecord(self.term, self.voted_for)])
        self._disk.rename(_TEMPORARY, name)
        self._disk.sync_dir()
        if self._file is not None:
            self._file.close()
        self._file = file
        self._segments.append(_Segment(name, number, index))

    def _usable_segments(self) -> list[tuple[_Segment, bytes]]:
        """The newest segments without a gap, from the last reset on; the rest was being removed at a crash."""
        found: list[_Segment] = []
        for name in self._disk.names():
            if name == _TEMPORARY:
                self._disk.remove(name)
            elif match := _SEGMENT_NAME.fullmatch(name):
                found.append(_Segment(name, int(match[1]), FIRST_INDEX))
        contents = [(segment, self._disk.read(segment.name)) for segment in found]
        first = 0
        for i, (segment, data) in enumerate(contents):
            if i and segment.number != found[i - 1].number + 1:
                first = i
            group = read_group(data, 0)
            if group and isinstance(group[0][0], BaseRecord) and group[0][0].reset:
                first = i
        for old in found[:first]:
            logger.warning("removing %s, which later segments do not need", self._disk.path(old.name))
            self._disk.remove(old.name)
            self._disk.sync_dir()
        return contents[first:]

    def _read_segment(self, segment: _Segment, data: bytes, *, last: bool) -> None:
        self._segments.append(segment)
        path = self._disk.path(segment.name)
        offset = 0
        while offset < len(data):
            group = read_group(data, offset)
            if group is None:
                self._cut_tail(path, data, offset, last=last)
                self._disk.truncate(segment.name, offset)
                break
            records, number, self.commit_index, end = group
            if self._group and number != self._group + 1:
                raise JournalDamaged(path, f"group {number} at byte {offset} follows group {self._group}")
            self._group = number
            for position, record in enumerate(records):
                self._replay(segment, record, first=offset == 0 and position == 0)
            self._last_group, offset = offset, end
        if offset == 0:
            raise JournalDamaged(path, "it is empty")
        self._file_bytes = offset
        self.written_bytes += offset

    def _cut_tail(self, path: str, data: bytes, offset: int, *, last: bool) -> None:
        """Accept an unfinished last write; anything else that is bad is damage."""
        if not last:
            raise JournalDamaged(path, f"bad group at byte {offset}, and later segments exist")
        if offset == 0:
            raise JournalDamaged(path, "its head cannot be read")
        later = data.find(MAGIC, offset + 1)
        while later != -1:
            found = read_group(data, later)
            # What was written afterwards has a number above that of the bad one. Others are content: a user's command
            # may hold a piece of a journal.
            if found is not None and found[1] > self._group + 1:
                raise JournalDamaged(path, f"bad group at byte {offset}, but a good one at byte {later}")
            later = data.find(MAGIC, later + 1)
        logger.warning(
            "%s: cut %d bytes of an unfinished write at byte %d; they were never acknowledged",
            path,
            len(data) - offset,
            offset,
        )

    def _replay(self, segment: _Segment, record: Record, *, first: bool) -> None:
        path = self._disk.path(segment.name)
        if first != isinstance(record, BaseRecord):
            raise JournalDamaged(path, "it does not begin as a segment must")
        try:
            match record:
                case BaseRecord():
                    self._replay_base(segment, record)
                case EntryRecord():
                    self.log.append((record.command, record.index, record.term))
                case TruncateRecord():
                    self.log.truncate_from(record.index)
                    segment.lowest_void = min(segment.lowest_void, record.index)
                case VoteRecord():
                    self.term, self.voted_for = record.term, record.voted_for
                case JoinedRecord():
                    self.joined = True
        except (ValueError, IndexError) as error:
            raise JournalDamaged(path, f"its records contradict each other: {error}") from error

    def _replay_base(self, segment: _Segment, record: BaseRecord) -> None:
        segment.base_index = record.index
        self.joined = record.joined
        if record.reset or len(self._segments) == 1:
            self.log.reset(record.index, record.term)
        elif (self.log.last_index, self.log.last_term) != (record.index, record.term):
            raise JournalDamaged(
                self._disk.path(segment.name),
                f"it goes on after entry {record.index}, but the one before ends with {self.log.last_index}",
            )

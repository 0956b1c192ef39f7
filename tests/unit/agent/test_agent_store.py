"""What the agent keeps on disk, and the channel to its monitor."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from depalma.agent.channel import Channel
from depalma.agent.store import FolderInUse, OutputFiles, ReportJournal, cut, lock_folder, read_slice
from depalma.model import Payload, Report
from depalma.tails import Tail, unpack


def report(task: int, **fields: Any) -> Report:
    return Report(1, task, 1, "succeeded", **fields)


def test_reports_come_back_after_a_crash(tmp_path: Path) -> None:
    journal = ReportJournal(tmp_path / "reports")
    journal.keep((report(0), report(1, result=Payload(inline=b"x", size_bytes=1))))
    journal.keep((report(2),))
    journal.close()

    again = ReportJournal(tmp_path / "reports")

    assert again.load() == [report(0), report(1, result=Payload(inline=b"x", size_bytes=1)), report(2)]
    again.close()


@pytest.mark.parametrize("cut_bytes", [1, 3, 10])
def test_a_torn_end_costs_the_last_batch(tmp_path: Path, cut_bytes: int) -> None:
    journal = ReportJournal(tmp_path / "reports")
    journal.keep((report(0),))
    journal.keep((report(1),))
    journal.close()
    os.truncate(tmp_path / "reports", (tmp_path / "reports").stat().st_size - cut_bytes)

    again = ReportJournal(tmp_path / "reports")

    assert again.load() == [report(0)]
    again.close()


def test_garbage_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "reports").write_bytes(os.urandom(1000))

    journal = ReportJournal(tmp_path / "reports")

    assert journal.load() == []
    journal.close()


def test_committed_reports_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "reports"
    journal = ReportJournal(path)
    journal.keep((report(0), report(1)))
    journal.committed([report(1)])
    assert path.stat().st_size > 0
    journal.committed([])
    assert path.stat().st_size == 0
    journal.committed([])

    for number in range(200):
        journal.keep((report(number, error="x" * 60_000),))
    journal.committed([report(7)])
    assert journal.load() == [report(7)]
    journal.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    first = lock_folder(tmp_path / "new" / "folder", 0.0)
    shared = os.dup(first)
    with pytest.raises(FolderInUse, match=f"agent process {os.getpid()}"):
        lock_folder(tmp_path / "new/folder", 0.1)
    os.close(first)
    with pytest.raises(FolderInUse):
        lock_folder(tmp_path / "new/folder", 0.0)  # the monitor still has it
    os.close(shared)

    os.close(lock_folder(tmp_path / "new/folder", 0.0))


async def test_waiting_for_a_folder_ends_with_its_owner(tmp_path: Path) -> None:
    first = lock_folder(tmp_path, 0.0)
    waiting = asyncio.create_task(asyncio.to_thread(lock_folder, tmp_path, 10.0))
    await asyncio.sleep(0)
    os.close(first)

    os.close(await waiting)


def test_output_is_read_in_pieces_and_cut(tmp_path: Path) -> None:
    output = OutputFiles(tmp_path)
    path = output.final(1, 2, 3, "stdout")
    assert read_slice(path, 0, 10) == (b"", 0)
    path.parent.mkdir()
    path.write_bytes(b"0123456789")

    assert read_slice(path, 4, 3) == (b"456", 10)
    assert read_slice(path, 40, 3) == (b"", 10)
    assert not cut(path, 10)
    assert cut(path, 4)
    assert path.read_bytes() == b"0123"
    assert not cut(tmp_path / "none", 4)


def test_nobody_waits_for_what_a_task_has_put_in_the_place_of_its_output(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.out")
    with pytest.raises(OSError):
        read_slice(tmp_path / "0.out", 0, 10)


def test_the_end_of_output_is_inline_when_it_is_short(tmp_path: Path) -> None:
    """Both streams together; of a long one the end is read, and how long it was is told."""
    output = OutputFiles(tmp_path)
    ref = (1, 2, 3)
    assert output.short_tail(ref).is_due  # nothing to be seen: whoever hands it over finds out
    output.final(*ref, "stdout").parent.mkdir()
    output.final(*ref, "stderr").write_bytes(b"e" * 50)
    output.final(*ref, "stdout").write_bytes(b"o" * 200)
    assert unpack(output.short_tail(ref).inline) == Tail(b"o" * 200, 200, b"e" * 50, 50)

    output.final(*ref, "stdout").write_bytes(b"o" * 100_000 + b"end")

    assert output.short_tail(ref).is_due
    tail = output.tail(ref)
    assert tail.of("stdout") == (b"o" * 65_533 + b"end", 34_467)
    assert tail.of("stderr") == (b"e" * 50, 0)


# ---------------------------------------------------------------- channel


@pytest.fixture
def ends() -> Any:
    left, right = socket.socketpair()
    pair = Channel(left), Channel(right)
    yield pair
    for end in pair:
        end.close()


def test_messages_of_any_size_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    sent = [("small", 1), ("large", b"x" * 3_000_000), ("nested", {"a": [1, None, (b"b", 2.5)]}), ("last",)]
    for message in sent:
        left.queue(message)

    heard: list[Any] = []
    while len(heard) < len(sent):
        left.flush()
        heard += right.receive()

    assert heard == sent
    assert left.flush()
    assert right.receive() == []


def test_descriptors_come_with_their_messages(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    pipes = [os.pipe() for _ in range(5)]
    for number, (_, writer) in enumerate(pipes):
        left.queue(("before", number))
        left.queue(("with", number), writer)
        left.queue(("after", number))
    assert left.flush()

    heard: list[Any] = []
    while len(heard) < 15:
        heard += right.receive()

    for message in heard:
        if message[0] == "with":
            fd = right.received_fds.popleft()
            os.write(fd, b"%d" % message[1])
            os.close(fd)
    for number, (reader, _) in enumerate(pipes):
        assert os.read(reader, 10) == b"%d" % number
        assert os.read(reader, 10) == b""  # the sender has closed its own
        os.close(reader)


def test_the_end_of_the_other_end_is_noticed(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.queue(("last", 1))
    left.flush()
    left.close()

    assert right.receive() == [("last", 1)]
    with pytest.raises(EOFError):
        right.receive()
    right.queue(("into the void",))
    with pytest.raises(OSError):
        right.flush()

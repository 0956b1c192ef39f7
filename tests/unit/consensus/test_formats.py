"""What earlier releases left on disk is read by this one, to the same state (tests/data, made by its script)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from depalma.consensus import snapshot_format
from depalma.consensus.core import Core
from depalma.consensus.disk import FileDisk
from depalma.consensus.settings import Member, ReplicaSettings
from depalma.consensus.snapshot_format import SnapshotReader
from depalma.consensus.snapshotter import InlineSnapshots
from depalma.state import image
from depalma.state.machine import Machine
from depalma.testing.clock import ManualClock

DATA = Path(__file__).parents[2] / "data"
KEPT = sorted(folder.name for folder in DATA.glob("consensus-*"))


def replica(directory: Path) -> tuple[Core, Machine]:
    """A lone replica on these files: what is in its journal is committed by itself."""
    settings = ReplicaSettings(id="m1", members=(Member(id="m1", host="-", raft_port=1),), directory=directory)
    machine = Machine()
    core = Core(
        settings,
        machine,
        disk=FileDisk(directory),
        clock=ManualClock(),
        random=Random(1),
        send=lambda peer, frame: None,
        snapshots=InlineSnapshots(),
    )
    core.open()
    while core.tick() or core.leads_term is None:
        pass
    return core, machine


def test_a_snapshot_of_each_format_is_kept() -> None:
    """Who raises a number keeps a snapshot of the one before, made by the release that wrote it."""
    files, states = set(), set()
    for path in DATA.glob("consensus-*/*/snapshot-*.snap"):
        data = path.read_bytes()
        reader = SnapshotReader(lambda offset, size, data=data: data[offset : offset + size], str(path))
        files.add(reader.format)
        states.add(msgspec.msgpack.decode(next(reader.pieces()))[0])
    assert files == set(range(1, snapshot_format.FORMAT + 1))
    assert states == set(range(1, image.FORMAT + 1))


@pytest.mark.parametrize("name", KEPT)
def test_journal_and_snapshot_of_an_earlier_release_give_the_same_state(tmp_path: Path, name: str) -> None:
    shutil.copytree(DATA / name / "m1", tmp_path / "m1")
    expected: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text())

    core, machine = replica(tmp_path / "m1")
    state = machine.state
    state.check_invariants()

    assert machine.state_hash == expected["state_hash"]
    assert core.applied_index == expected["applied_index"]
    assert core.term > expected["term"]
    assert state.events.next_index == expected["events"]
    assert {host.name: host.state for host in state.hosts.values()} == expected["hosts"]
    for number, tasks in expected["tasks"].items():
        job = state.jobs[int(number)]
        assert {str(index): job.state_of(index) for index in range(job.first, job.first + job.total)} == tasks
    core.close()


@pytest.mark.parametrize("name", KEPT)
def test_what_this_release_writes_of_it_gives_the_same_state_again(tmp_path: Path, name: str) -> None:
    shutil.copytree(DATA / name / "m1", tmp_path / "m1")
    core, machine = replica(tmp_path / "m1")
    again = Machine()
    again.restore(list(machine.snapshot()))
    core.close()

    assert again.state_hash == machine.state_hash
    assert list(again.snapshot()) == list(machine.snapshot())

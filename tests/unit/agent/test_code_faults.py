"""The code of a host on a full disk, and when its log turns out to be another one in the middle of something."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from depalma.agent.blobs import Blobs
from depalma.agent.codefolder import CodeFolder
from depalma.agent.codekeeper import pause_after
from depalma.agent.codesync import CodeSync, EntryFailed, Reached
from depalma.agent.environments import Environments
from depalma.archive import pack
from depalma.codetree import CodeEntry


class Masters:
    """The archives that there are; one that is not can be waited for."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def fetch(self, digest: str, target: Path, for_s: float) -> None:
        self.asked.set()
        if digest not in self.archives:
            await self.go_on.wait()
        target.write_bytes(self.archives[digest])


class Host:
    def __init__(self, root: Path) -> None:
        self.masters: Any = Masters()
        self.folder = CodeFolder(root / "agent")
        self.sync = CodeSync(self.folder, self.masters, Environments(self.folder, self.masters, None, 1))  # type: ignore[arg-type]
        self._source = root / "m.py"

    def entry(self, index: int, text: str, *, there: bool = True, **fields: Any) -> CodeEntry:
        self._source.write_text(text)
        name, kind, data = pack(self._source)
        digest = f"{index:064x}" if there else "f" * 64
        self.masters.archives |= {digest: data} if there else {}
        whole = {"name": name, "kind": kind, "digest": digest, "size_bytes": 1, "added_at": 0.0, "added_by": "x"}
        return CodeEntry(index=index, **{**whole, **fields})


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_entries_that_cannot_be_written_down_do_not_count_and_are_tried_again(host: Host) -> None:
    """They counted here and were never acknowledged; two of them at once ended the agent."""
    in_the_way = host.folder.root / "entries.new"
    in_the_way.mkdir()
    host.sync.take((host.entry(1, "a = 1"), host.entry(2, "a = 2")), again=False)
    for _ in range(2):
        with pytest.raises((OSError, EntryFailed)):
            await host.sync.apply()
    assert (host.folder.index, host.folder.entries) == (0, [])
    in_the_way.rmdir()

    reached: list[Reached] = []
    while more := await host.sync.apply():
        reached += more

    assert [each.index for each in reached] == [1, 2]
    assert CodeFolder(host.folder.root.parent).index == 2


async def test_entries_of_the_new_log_are_not_forgotten_behind_one_of_the_old(host: Host) -> None:
    """They came while the old one was being applied: nobody would ask for them again."""
    host.sync.take((host.entry(1, "old", there=False),), again=False)
    old = asyncio.create_task(host.sync.apply())
    await host.masters.asked.wait()
    host.sync.drop_coming()
    resetting = asyncio.create_task(host.sync.reset())
    await asyncio.sleep(0)
    host.sync.take((host.entry(1, "new"),), again=False)
    host.masters.archives["f" * 64] = host.masters.archives[f"{1:064x}"]
    host.masters.go_on.set()

    (reached,) = await old
    await resetting

    assert reached.index == 1
    assert (host.folder.root / "trees/1/m.py").read_text() == "new"


async def test_an_entry_that_goes_back_to_itself_is_refused(host: Host) -> None:
    host.sync.take((host.entry(1, "a = 1", rollback_of=1),), again=False)
    with pytest.raises(EntryFailed, match="rolls back to 1"):
        await asyncio.wait_for(host.sync.apply(), 30.0)


def test_blobs_of_before_the_machine_last_started_are_not_trusted(tmp_path: Path) -> None:
    """Nothing of them was synced: after a power cut there may be zeros in a file of the right name."""
    Blobs(tmp_path, None, list, 1000)  # type: ignore[arg-type]
    here = tmp_path / "blobs/cache" / ("a" * 64)
    here.write_bytes(b"data")
    Blobs(tmp_path, None, list, 1000)  # type: ignore[arg-type]
    assert here.exists()
    (tmp_path / "blobs/boot").write_text("another")

    Blobs(tmp_path, None, list, 1000)  # type: ignore[arg-type]

    assert not here.exists()


async def test_what_is_changed_as_soon_as_it_is_in_place_does_not_pass_for_what_was_packed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did: the files were looked at after the move, and a change that was quicker stayed for good."""
    added = host.entry(1, "a = 1")
    rename = Path.rename

    def move(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target == host.folder.root / "store" / added.digest:
            before = (target / "module").stat().st_ctime_ns
            while (target / "module").stat().st_ctime_ns == before:  # the clock of files has a coarse tick
                (target / "module").write_text("a = 9")
        return moved

    monkeypatch.setattr(Path, "rename", move)
    host.sync.take((added,), again=False)
    await host.sync.apply()
    monkeypatch.undo()

    assert not host.folder.is_sound(added.digest)


def test_one_look_that_took_long_does_not_put_off_the_next() -> None:
    assert pause_after(2.0, 0.01) == pause_after(0.01, 2.0) == pause_after(0.01, 0.01) == 2.0
    assert pause_after(0.5, 0.4) == pytest.approx(20.0)

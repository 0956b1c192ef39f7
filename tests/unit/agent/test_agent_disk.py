"""A disk that is full, folders that tasks have locked, and what one of them left for the next."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depalma.agent.gone import _records
from depalma.agent.store import OutputFiles, ReportJournal
from depalma.agent.worker import Worker
from depalma.model import Report

NOBODY = 65534


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """As on a full disk: what is written beyond it is cut, and what begins there fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def report(task: int, **fields: Any) -> Report:
    return Report(1, task, 1, "succeeded", **fields)


def test_reports_after_one_that_did_not_fit_are_not_lost(tmp_path: Path) -> None:
    """Half a record in the middle would hide all that follow it, from the monitor and from the next agent."""
    journal = ReportJournal(tmp_path / "reports")
    journal.keep((report(0),))
    with largest_file((tmp_path / "reports").stat().st_size + 20), pytest.raises(OSError):
        journal.keep((report(1, error="x" * 1000),))
    journal.keep((report(2),))
    journal.close()

    assert len(_records(str(tmp_path / "reports"))) == 2
    again = ReportJournal(tmp_path / "reports")
    assert again.load() == [report(0), report(2)]
    again.close()


def test_reports_after_a_torn_end_are_not_lost(tmp_path: Path) -> None:
    journal = ReportJournal(tmp_path / "reports")
    journal.keep((report(0),))
    journal.keep((report(1),))
    journal.close()
    os.truncate(tmp_path / "reports", (tmp_path / "reports").stat().st_size - 3)
    second = ReportJournal(tmp_path / "reports")
    assert second.load() == [report(0)]
    second.keep((report(2),))
    second.close()

    third = ReportJournal(tmp_path / "reports")

    assert third.load() == [report(0), report(2)]
    third.close()


def test_reports_that_are_still_needed_are_on_disk_all_the_time(tmp_path: Path) -> None:
    """Also while the file is made shorter, and when there is no room for that."""
    path = tmp_path / "reports"
    journal = ReportJournal(path)
    needed = report(0, error="x" * 1000)
    journal.keep((needed,))
    while path.stat().st_size <= 8 * 1024 * 1024:
        journal.keep((report(1, error="x" * 60_000),))
    with largest_file(100):
        journal.committed((needed,))
    with contextlib.closing(ReportJournal(path)) as other:
        assert other.load()[0] == needed

    journal.committed((needed,))
    journal.keep((report(2),))

    assert path.stat().st_size < 10_000
    journal.close()
    with contextlib.closing(ReportJournal(path)) as other:
        assert other.load() == [needed, report(2)]


def test_what_a_dead_worker_wrote_is_lost_on_a_full_disk_and_nothing_else(tmp_path: Path) -> None:
    for name in ("spool", "scratch/w1", "trash"):
        (tmp_path / name).mkdir(parents=True)
    output = OutputFiles(tmp_path)
    (tmp_path / "spool/w1.out").write_text("printed")
    (tmp_path / "output/7").write_text("in the way, as a full disk would be")

    assert output.salvage("w1", (7, 0, 1), tmp_path / "trash/w1.1") is None

    assert not (tmp_path / "spool/w1.out").exists()
    assert not (tmp_path / "scratch/w1").exists()


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_folders_that_a_task_has_locked_are_moved_and_removed(tmp_path: Path, mode: int) -> None:
    """Caches of modules are such folders. They must not stay for ever, let alone end the agent."""
    tmp_path.chmod(0o777)
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from depalma.agent.store import OutputFiles, empty_folder\n"
        f"if os.geteuid() == 0: os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "root = Path('agent')\n"
        "for name in ('spool', 'scratch/w1/below/further', 'trash', 'elsewhere'): (root / name).mkdir(parents=True)\n"
        "(root / 'scratch/w1/below/further/file').touch()\n"
        "(root / 'elsewhere/file').touch()\n"
        "(root / 'elsewhere').chmod(0o500)\n"
        "(root / 'scratch/w1/below/link').symlink_to('../../../elsewhere')\n"
        f"for name in ('w1/below/further', 'w1/below', 'w1'): (root / 'scratch' / name).chmod({mode})\n"
        "OutputFiles(root).salvage('w1', None, root / 'trash/w1.1')\n"
        "assert not (root / 'scratch/w1').exists()\n"
        "empty_folder(root / 'trash')\n"
        "assert list((root / 'trash').iterdir()) == []\n"
        "assert (root / 'elsewhere').stat().st_mode & 0o777 == 0o500 and (root / 'elsewhere/file').exists()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- what a worker does between two tasks


@contextlib.contextmanager
def worker(tmp_path: Path) -> Iterator[Worker]:
    """One that prints into its spool, as this process does meanwhile."""
    for name in ("spool", "scratch", "trash", "output", "blobs/out"):
        (tmp_path / name).mkdir(parents=True)
    near, far = socket.socketpair()
    made = Worker(far, str(tmp_path), "1", 10_000, 10_000)
    kept = [os.dup(1), os.dup(2)]
    try:
        for number, name in ((1, "out"), (2, "err")):
            fd = os.open(f"{made.spool}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, number)
            os.close(fd)
        yield made
    finally:
        for number, fd in ((1, kept[0]), (2, kept[1])):
            os.dup2(fd, number)
            os.close(fd)
        near.close()
        far.close()
        os.environ.pop("DEPALMA_SCRATCH", None)


def test_output_that_cannot_be_kept_is_not_the_next_tasks(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        (tmp_path / "output/7").write_text("in the way, as a full disk would be")
        os.write(1, b"of the first")
        assert one._keep_output(f"{tmp_path}/output/7/0.1", "") is False
        (tmp_path / "output/7").unlink()
        os.write(1, b"of the second")

        assert one._keep_output(f"{tmp_path}/output/7/1.1", "") is True

    assert (tmp_path / "output/7/1.1.out").read_bytes() == b"of the second"


def test_a_function_may_do_away_with_its_scratch_folder(tmp_path: Path) -> None:
    """It has returned: that is what counts, and the next one gets a folder again."""
    with worker(tmp_path) as one:
        shutil.rmtree(one.scratch)

        assert one._keep_output(f"{tmp_path}/output/7/0.1", "") is False

        assert os.listdir(one.scratch) == []
        os.rmdir(one.scratch)
        Path(one.scratch).write_text("a file")
        one._keep_output(f"{tmp_path}/output/7/1.1", "")
        assert os.listdir(one.scratch) == []


def test_a_result_for_which_there_is_no_room_takes_none(tmp_path: Path) -> None:
    """What had fitted stayed, one such file a task, so the disk stayed full."""
    with worker(tmp_path) as one, largest_file(5000), pytest.raises(OSError):
        one._pack(b"x" * 9000)

    assert list((tmp_path / "blobs/out").iterdir()) == []


def test_a_function_may_lock_its_scratch_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    program = (
        "import os, socket\n"
        "from pathlib import Path\n"
        "from depalma.agent.worker import Worker\n"
        f"if os.geteuid() == 0: os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "for name in ('spool', 'scratch', 'trash'): Path(name).mkdir()\n"
        "worker = Worker(socket.socketpair()[0], '.', '1', 1000, 1000)\n"
        "Path(worker.scratch, 'result').write_text('value')\n"
        "os.chmod(worker.scratch, 0o500)\n"
        "worker._keep_output('output/7/0.1', 'kept')\n"
        "assert Path('kept/result').read_text() == 'value'\n"
        "assert os.listdir(worker.scratch) == []\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

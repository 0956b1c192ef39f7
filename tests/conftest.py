"""Shared by all rings: a test that leaves a process or a thread behind fails the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

#: Inherited by every process that a test starts, so that those that left our process tree are found too.
MARK = "DEPALMA_TEST_RUN"
GRACE_S = 20.0
#: Files that take longest on their own, so they begin first: one that begins last would run alone in the end.
LONGEST = (
    "test_jobs_by_schedule", "test_code_log", "test_ctl_faults", "test_agent_code_entries", "test_hosts_run_time",
    "test_example_runs", "test_client_faults", "test_order", "test_masters_change", "test_jobs_in_order",
    "test_webhooks", "test_replica_processes", "test_joining", "test_deploy_keeper", "test_cluster_certificates",
    "test_agent_forks", "test_owners",
)  # fmt: skip

# Whoever starts the tests in the background may have these ignored, which every process started here would inherit.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL if _number is signal.SIGQUIT else signal.default_int_handler)

_mark = uuid4().hex
os.environ[MARK] = _mark


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the longest files to the front; all else stays as it is."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def _wait_until_empty(look: Callable[[], list[str]]) -> list[str]:
    """Returns what is still there after the grace time."""
    deadline = time.monotonic() + GRACE_S
    while True:
        left = look()
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _children() -> list[psutil.Process]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # as in most tests; to go through all processes of the machine takes as long as many of those
    return psutil.Process().children(recursive=True)


def _belongs_to(process: psutil.Process, known: set[psutil.Process]) -> bool:
    """Returns whether the process is, or was started by, one that was there before the test."""
    try:
        return process in known or any(parent in known for parent in process.parents())
    except psutil.NoSuchProcess:
        return True


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{process.pid} (ended)"


@pytest.fixture(autouse=True)
def _no_leaked_process() -> Iterator[None]:
    """Fails a test whose own processes outlive it; those of fixtures with a wider scope may stay."""
    if not os.environ.get(MARK):  # a test that changed the environment must not blind the check
        os.environ[MARK] = _mark
    before = set(_children())
    yield

    def left() -> list[str]:
        return [_describe(child) for child in _children() if not _belongs_to(child, before)]

    leaked = _wait_until_empty(left)
    assert not leaked, "processes left behind:\n  " + "\n  ".join(leaked)


@pytest.fixture(autouse=True, scope="module")
def _no_leaked_thread() -> Iterator[None]:
    """Fails a module whose threads outlive it."""
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.is_alive() and thread not in before]

    leaked = _wait_until_empty(left)
    assert not leaked, f"threads left behind: {leaked}"


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that answers nobody; who waits for it is let go when the test is over. The process ids
    of these are in the file `hanging.waiting` beside it, a line each."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("a file system that hangs needs root and /dev/fuse")
    folder = tmp_path / "hanging"
    folder.mkdir()
    folder.with_name("hanging.waiting").touch()
    program = [sys.executable, str(Path(__file__).with_name("hanging_mount.py")), str(folder)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stderr is not None
            if not server.stdout.readline():
                problem = server.stderr.read().decode()
                assert "Operation not permitted" in problem, problem
                pytest.skip(f"nothing may be mounted here: {problem}")
            yield folder
        finally:
            server.kill()  # its connection is aborted with it
            server.wait()
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _marked_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == _mark:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or it is another user's: not one of ours
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Finds what left our process tree (daemons), ends it, and fails the run."""
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        leaked = _wait_until_empty(lambda: [_describe(process) for process in _marked_processes()])
        if leaked:
            for process in _marked_processes():
                process.kill()
            print("\nprocesses left behind by the run:\n  " + "\n  ".join(leaked))  # noqa: T201
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

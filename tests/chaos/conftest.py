"""Tests that break real processes, networks and disks. They need root and tools, and say so where these are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from depalma.testing.chaos import network, requirements
from depalma.testing.chaos.marks import mark
from depalma.testing.chaos.mounts import mounted_below
from depalma.testing.chaos.shell import run

#: Set where nothing may be skipped (CI): a missing tool is then a failure.
REQUIRED = "DEPALMA_CHAOS_REQUIRED"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos_short: real faults on real processes, in their short form")


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """`needs("strace")` skips the test (in CI: fails it) unless this machine can do it."""

    def check(*tools: str) -> None:
        reason = requirements.missing(*tools)
        if reason and os.environ.get(REQUIRED):
            pytest.fail(f"nothing may be skipped here, but it {reason}")
        if reason:
            pytest.skip(reason)

    return check


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Namespaces, cables, mounts and loop devices are gone after each test (processes: see tests/conftest.py)."""
    links = _links()
    yield
    assert network.leftovers() == []
    assert _links() == links
    assert mounted_below(tmp_path) == []
    if shutil.which("losetup"):
        assert str(tmp_path) not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE", check=False)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{mark()}*"))


def _links() -> str:
    return run("ip", "-o", "link", "show") if shutil.which("ip") else ""

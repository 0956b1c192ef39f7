"""Tests that break real processes, networks and disks. They need root and tools, and say so where these are missing."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from depalma.testing.chaos import requirements

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

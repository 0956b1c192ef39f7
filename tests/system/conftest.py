"""The cluster of real processes that system tests share, and how they wait.

`cluster` is one cluster for a module: tests must not kill its daemons. `fresh_cluster` makes one of the test's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from depalma import Client, LocalCluster

T = TypeVar("T")


def _wait_until(look: Callable[[], T], until: Callable[[T], object] = bool, timeout_s: float = 20.0) -> T:
    """Returns what `look` sees once `until` accepts it; fails with what was last seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        if until(seen):
            return seen
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still: {seen!r}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """`wait_until(look, until=bool, timeout_s=20)`."""
    return _wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three masters, two agents with two slots each."""
    made = LocalCluster(masters=3, agents=2, slots=2)
    yield made
    assert made.stop() == []


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of the shared cluster."""
    with cluster.client() as made:
        yield made


@pytest.fixture
def fresh_cluster() -> Iterator[Callable[..., LocalCluster]]:
    """`fresh_cluster(masters=3, agents=2, …)`: a cluster whose processes the test may kill."""
    made: list[LocalCluster] = []

    def make(**options: Any) -> LocalCluster:
        made.append(LocalCluster(**{"slots": 2, **options}))
        return made[-1]

    yield make
    assert [left for cluster in made for left in cluster.stop()] == []

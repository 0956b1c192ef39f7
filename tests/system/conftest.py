"""The cluster of real processes that system tests share, and how they wait.

`cluster` is one cluster for a module: tests must not kill its daemons. `fresh_cluster` makes one of the test's own.
Both are calm (see calm.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from depalma import Client, LocalCluster
from tests.system.calm import CALM, START_S, STEADY

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]
Ctl = Callable[..., Done]


def _wait_until(look: Callable[[], T], until: Callable[[T], object] = bool, timeout_s: float = 60.0) -> T:
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
    """`wait_until(look, until=bool, timeout_s=60)`."""
    return _wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three masters, two agents with two slots each."""
    made = LocalCluster(masters=3, agents=2, slots=2, settings=STEADY, start_s=START_S)
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
        options["settings"] = {**CALM, **options.get("settings", {})}
        made.append(LocalCluster(**{"slots": 2, "start_s": START_S, **options}))
        return made[-1]

    yield make
    assert [left for cluster in made for left in cluster.stop()] == []


# ---------------------------------------------------------------- depalmactl


@pytest.fixture
def environment(cluster: LocalCluster, tmp_path: Path) -> dict[str, str]:
    """The cluster by environment, and nothing of the user's own configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEPALMA_") or "TEST" in name}
    return {
        **kept,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "DEPALMA_MASTERS": ",".join(cluster.masters),
        "DEPALMA_TOKEN_FILE": cluster.token_file,
    }


@pytest.fixture
def ctl(environment: dict[str, str], tmp_path: Path) -> Ctl:
    """`ctl("jobs", "-o", "json", stdin="", code=0, env={})`; fails when the exit code is another one."""

    def call(*arguments: str, stdin: str = "", code: int | None = 0, env: dict[str, str] | None = None) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "depalma.ctl", *arguments],
            env={**environment, **(env or {})},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert code is None or done.returncode == code, done
        assert "internal error" not in done.stderr, done
        assert not done.stderr.startswith("Traceback"), done
        return done

    return call


@pytest.fixture
def value(ctl: Ctl) -> Callable[..., Any]:
    """`value("jobs")`: the one JSON value that the command prints."""
    return lambda *arguments, **options: json.loads(ctl("-o", "json", *arguments, **options).stdout)

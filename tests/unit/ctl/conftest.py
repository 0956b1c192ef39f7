"""What tests of `depalmactl` need: an environment of their own, and masters that do not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("DEPALMA_MASTERS", "DEPALMA_CONTEXT", "DEPALMA_TOKEN", "DEPALMA_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def closed() -> Iterator[str]:
    """Base URL at which nobody listens (the port is taken, so that nobody begins to)."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"

"""What a call imports: start-up time is imports, and imports (unlike times) are the same on every machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

#: Never for a plain call, piped or for a program.
HEAVY = frozenset({"aiohttp", "asyncio", "psutil", "pysyncobj", "rich", "cloudpickle", "cryptography"})


def imported(*arguments: str, tmp_path: Path) -> set[str]:
    """Returns the modules that the call imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "depalma.ctl", *arguments],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = set(re.findall(r"^import time: .*\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "depalma.ctl.main" in found, done
    return found


@pytest.mark.parametrize("words", ["--version", "--help", "version", "jobs --help"])
def test_a_trivial_call_imports_no_connection_either(words: str, tmp_path: Path) -> None:
    found = imported(*words.split(), tmp_path=tmp_path)
    assert not found & (HEAVY | {"msgspec", "yaml", "http.client", "ssl", "threading.local", "email"})


@pytest.mark.parametrize(
    "words",
    ["jobs", "jobs -o json", "show 1", "submit -- true", "run -- true", "host ls", "cancel 1", "events", "wait 1"],
)
def test_a_call_to_the_cluster_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        masters = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = imported("--timeout", "0.05", "--masters", masters, *words.split(), tmp_path=tmp_path)
    assert "http.client" in found
    assert not found & HEAVY
    assert "yaml" not in found
    assert "depalma.client.client" not in found

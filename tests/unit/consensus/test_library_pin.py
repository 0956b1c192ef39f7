"""Private names of the library are used: they must be there, and the version must be the one that was read."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pysyncobj.pickle
import pysyncobj.syncobj as syncobj
import pytest

from depalma import consensus
from depalma.consensus import library
from depalma.testing.simulation import run

SOURCE = inspect.getsource(syncobj)
OURS = Path(inspect.getsourcefile(library) or "")
PRIVATE = sorted(set(re.findall(r"_SyncObj__(\w+)", OURS.read_text())))
PACKAGE = Path(inspect.getsourcefile(consensus) or "").parent


def test_the_library_has_the_version_that_was_read() -> None:
    assert version("pysyncobj") == library.LIBRARY_VERSION == "0.3.17"


def test_there_are_private_names_to_check() -> None:
    assert len(PRIVATE) > 15


@pytest.mark.parametrize("name", PRIVATE)
def test_every_private_name_exists(name: str) -> None:
    defined = hasattr(syncobj.SyncObj, f"_SyncObj__{name}") or f"self.__{name} = " in SOURCE

    assert defined, f"SyncObj has no __{name}"
    assert SOURCE.count(f"__{name}") > 1, f"SyncObj does not use __{name}"


@pytest.mark.parametrize("name", ["monotonicTime", "createJournal", "_RAFT_STATE", "_COMMAND_TYPE"])
def test_every_module_name_exists(name: str) -> None:
    assert hasattr(syncobj, name)
    assert f"{name}(" in SOURCE or f"{name}." in SOURCE


@pytest.mark.parametrize("name", ["_checkCommandsToApply", "_onTick", "_poller"])
def test_every_overridden_name_is_used_by_the_library(name: str) -> None:
    assert f"self.{name}" in SOURCE


def test_the_library_does_not_break_the_process_s_sockets() -> None:
    """Its import replaces socket.inet_ntop by a function that fails everywhere but on Windows."""
    program = "import socket, depalma.consensus; print(socket.inet_ntop(socket.AF_INET, bytes([127, 0, 0, 1])))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.stdout.strip() == "127.0.0.1", done.stderr


def test_one_file_knows_the_library() -> None:
    knowing = []
    for path in sorted(PACKAGE.glob("*.py")):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = [alias.name for node in imports for alias in node.names]
        names += [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
        if any(name.split(".")[0] == "pysyncobj" for name in names) or "_SyncObj__" in path.read_text():
            knowing.append(path.name)

    assert knowing == ["library.py"]


def test_nothing_is_pickled_or_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run with elections, crashes and snapshots, in which any use of pickle fails."""

    def refuse(*arguments: object) -> object:
        raise AssertionError("pickle is used")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pysyncobj.pickle, name, refuse)

    assert run(3).acknowledged > 0

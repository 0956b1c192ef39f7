"""The shell session of docs/api.md runs as it stands, and its answers look as they are shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from depalma import LocalCluster
from depalma.api.app import ROUTES
from tests.system.calm import STEADY

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
END = "--end of answer--"
#: An election in the middle of the session is not what is tested here: they are rare (STEADY), and the answer that one
#: gave is not shown before the next (curl shows each that it got, unless it writes them to a file).
RETRYING_CURL = """curl() {
  [[ $* != *--max-time* ]] || { command curl "$@"; return; } # a stream that it ends itself
  command curl --retry 8 "$@" -H "Idempotency-Key: $RANDOM$RANDOM$RANDOM" -o answer.tmp
  [ ! -f answer.tmp ] || cat answer.tmp; rm -f answer.tmp
}"""


def commands() -> Iterator[tuple[str, str]]:
    """Yields each command of the page with the answer that is shown."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            yield command, answer.strip()


class Shell:
    """One shell, so that variables and files of one command are there for the next."""

    def __init__(self, folder: Path, path: str) -> None:
        environment = {**os.environ, "PATH": path}
        self._process = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
        )

    def run(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho; echo '{END}'\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.strip() == END:
                return "\n".join(lines).strip()
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended in: {command}")

    def close(self) -> None:
        self._process.communicate(timeout=10)


def shape(value: Any) -> Any:
    """Returns the value with its facts left out: names of fields, and types of the rest."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key not in ("detail", "load")}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    # Numbers and texts may be missing in one run and there in another.
    return "value"


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_session_runs_and_looks_as_shown(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with LocalCluster(masters=3, agents=2, slots=2, settings=STEADY) as cluster:
        (tmp_path / "dev").symlink_to(cluster.directory)
        with closing(Shell(tmp_path, path)) as shell:
            shell.run(RETRYING_CURL)
            for command, shown in commands():
                given = shell.run(f"M={cluster.masters[0]}" if command.startswith("M=") else command)
                check(command, shown.splitlines(), given.splitlines())


def check(command: str, shown: list[str], given: list[str]) -> None:
    assert len(given) == len(shown), (command, given)
    for one, other in zip(given, shown, strict=True):
        if not other.startswith("{") or "head -c" in command:
            continue
        decoded = msgspec.json.decode(one)
        if "# 4" not in command:
            assert "title" not in decoded, (command, given)
        if not other.endswith("…"):
            assert shape(decoded) == shape(msgspec.json.decode(other)), command


def test_the_page_shows_each_route() -> None:
    text = PAGE.read_text()
    missing = []
    for route in ROUTES:
        if route.path.startswith("/internal") or route.method == "HEAD":
            continue
        words = re.escape(re.sub(r"\{\w+\}", "*", route.path)).replace(r"\*", r"[^\s/`?]+")
        if not re.search(words + r"(?![\w/])", text):
            missing.append(f"{route.method} {route.path}")
    # Shown with the beginning of the path left out.
    assert [route for route in missing if not route.endswith(("/explain", "/logs", "/result"))] == []

"""The example as a user runs it: real work through the death of the leader, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "example.py"


def run_example(*arguments: str, home: Path, example: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    """Runs an example with a home folder of its own, where anything that it leaves behind would show."""
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "COLUMNS": "120"}
    environment.pop("XDG_CONFIG_HOME", None)
    return subprocess.run(
        [sys.executable, str(example), *arguments] if example.suffix == ".py" else [str(example)],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_leader_dies_and_every_file_is_counted_once(tmp_path: Path) -> None:
    done = run_example("--files", "150", home=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL" in done.stdout
    before, after = re.search(r"led before / after\W+(m\d) / (m\d)", done.stdout).groups()  # type: ignore[union-attr]
    assert before != after
    assert "each file was counted once" in done.stdout
    assert not list(tmp_path.iterdir()), "files left behind"


def test_an_agent_dies_too(tmp_path: Path) -> None:
    done = run_example("--files", "150", "--kill-agent", "--dir", str(tmp_path / "cluster"), home=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SIGKILL") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cluster"]


def test_nothing_dies_when_nothing_shall(tmp_path: Path) -> None:
    done = run_example("--files", "60", "--no-kill", home=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL" not in done.stdout


@pytest.mark.parametrize("arguments", [["--files", "many"], ["--unknown"]])
def test_a_wrong_call_starts_nothing(arguments: list[str], tmp_path: Path) -> None:
    done = run_example(*arguments, home=tmp_path)

    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_smallest_program(tmp_path: Path) -> None:
    done = run_example(home=tmp_path, example=EXAMPLE.with_name("hello.py"))

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["49", "[0, 1, 4, 9, 16]", "328350"]
    assert not list(tmp_path.iterdir())


def test_failures_reach_the_program_as_what_they_are(tmp_path: Path) -> None:
    done = run_example(home=tmp_path, example=EXAMPLE.with_name("failures.py"))

    assert done.returncode == 0, done.stderr
    words = ["1.1 failed: ZeroDivisionError('division by zero')", "{'at last'}", "JobTimeout", "JobCancelled"]
    assert [word for word in words if word not in done.stdout] == [], done.stdout


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "depalmactl").exists(), reason="the tour needs the checkout's .venv")
def test_the_tour_of_the_command_line(tmp_path: Path) -> None:
    done = run_example(home=tmp_path, example=EXAMPLE.with_name("cli.sh"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "unreachable" in done.stdout
    assert "job 3 succeeded (6 succeeded of 6)" in done.stderr
    assert not list(tmp_path.iterdir())

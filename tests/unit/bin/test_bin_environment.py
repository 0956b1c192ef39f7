"""bin/environment.sh: finds a Python that runs and is new enough, and says in one line what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "bin" / "environment.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the script and a project file, and an empty folder for programs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "path").mkdir()
    shutil.copy(SCRIPT, tmp_path / "bin")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    for tool in ("bash", "dirname", "cksum", "cat", "rm", "grep", "tee", "mkdir", "chmod"):
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
    return tmp_path


def program(checkout: Path, name: str, body: str) -> None:
    path = checkout / "path" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    script = f"set -euo pipefail; . {checkout}/bin/environment.sh; {command}"
    return subprocess.run(
        [str(checkout / "path" / "bash"), "-c", script],
        env={"PATH": str(checkout / "path")},
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_first_python_that_is_new_enough_is_taken(checkout: Path) -> None:
    program(checkout, "python3", "exit 1")  # too old
    program(checkout, "python3.13", "echo 'a shim without its program' >&2; exit 127")
    program(checkout, "python3.12", "exit 0")
    program(checkout, "python3.11", "exit 0")

    done = run(checkout, "find_python")

    assert done.stdout.strip() == str(checkout / "path" / "python3.12")


def test_no_python_is_said_in_one_line(checkout: Path) -> None:
    program(checkout, "python3", '[ "$1" = -V ] && echo Python 3.9.2 && exit; exit 1')

    done = run(checkout, 'ensure_venv "$root/.venv" ""')

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "3.9.2" in done.stderr


def test_a_debian_without_python3_venv_is_told_the_package(checkout: Path) -> None:
    program(checkout, "python3", 'case "$*" in *venv*|*ensurepip*) echo "no module" >&2; exit 1;; esac; exit 0')

    done = run(checkout, 'ensure_venv "$root/.venv" ""')

    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def fake_pip(checkout: Path, code: int) -> None:
    """A Python whose `venv` makes an environment whose pip notes its calls."""
    inner = checkout / "inner"
    inner.write_text(f'#!/bin/sh\ncase "$*" in *install*) echo "$*" >>{checkout}/calls; exit {code};; esac\n')
    inner.chmod(0o755)
    body = f'case "$*" in *"-m venv"*) mkdir -p "$4/bin"; cat {inner} >"$4/bin/python"; chmod +x "$4/bin/python";; esac'
    program(checkout, "python3", body)


def test_the_second_time_nothing_is_installed(checkout: Path) -> None:
    fake_pip(checkout, 0)

    runs = [run(checkout, 'ensure_venv "$root/.venv" test,lint') for _ in range(2)]
    plain = run(checkout, 'ensure_venv "$root/.venv" ""')

    assert [done.returncode for done in (*runs, plain)] == [0, 0, 0], runs[0].stderr
    assert len((checkout / "calls").read_text().splitlines()) == 1
    assert runs[1].stderr == plain.stderr == ""


def test_a_changed_project_file_is_installed_again(checkout: Path) -> None:
    fake_pip(checkout, 0)
    run(checkout, 'ensure_venv "$root/.venv" ""')
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("dependencies = []\n")

    run(checkout, 'ensure_venv "$root/.venv" ""')

    assert len((checkout / "calls").read_text().splitlines()) == 2


def test_a_failed_install_is_not_remembered(checkout: Path) -> None:
    fake_pip(checkout, 1)

    runs = [run(checkout, 'ensure_venv "$root/.venv" ""') for _ in range(2)]

    assert [done.returncode for done in runs] == [1, 1]
    assert "package index" in runs[0].stderr
    assert len((checkout / "calls").read_text().splitlines()) == 2


def test_the_real_thing_has_a_python() -> None:
    done = subprocess.run(
        ["bash", "-c", f". {SCRIPT}; $(find_python) -c 'import sys; print(sys.version_info >= (3, 11))'"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stdout.strip() == "True"

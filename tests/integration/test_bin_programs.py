"""bin/kill_cluster.py and bin/run.py, run as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "bin"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
POLITE = "import time; print(flush=True); time.sleep(60)"

Start = Callable[[str, str, str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(role, id, program)` runs a Python program that is listed in cluster.json, once it has printed a line."""
    entries: list[dict[str, object]] = []
    started: list[subprocess.Popen[bytes]] = []

    def call(role: str, name: str, program: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", program]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        entries.append({"role": role, "id": name, "pid": process.pid, "argv": argv, "dir": str(tmp_path)})
        (tmp_path / "cluster.json").write_text(json.dumps({"processes": entries}))
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def kill_cluster(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(BIN / "kill_cluster.py"), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_the_whole_cluster_is_stopped_in_order(start: Start, tmp_path: Path) -> None:
    processes = [start("master", "m1", POLITE), start("agent", "h1", POLITE)]

    done = kill_cluster(tmp_path)

    assert done.returncode == 0, done.stderr
    assert [process.wait(60) for process in processes] == [-signal.SIGTERM] * 2


def test_one_process_dies_and_the_others_live(start: Start, tmp_path: Path) -> None:
    dies, lives, agent = start("master", "m1", POLITE), start("master", "m2", POLITE), start("agent", "h1", POLITE)

    done = kill_cluster(tmp_path, "--id", "m1", "--signal", "KILL")

    assert done.stdout == f"master m1 (pid {dies.pid}) got SIGKILL\n"
    assert dies.wait(60) == -signal.SIGKILL
    assert (lives.poll(), agent.poll()) == (None, None)


def test_a_role_is_frozen_and_woken(start: Start, tmp_path: Path) -> None:
    agent = start("agent", "h1", POLITE)
    master = start("master", "m1", POLITE)

    kill_cluster(tmp_path, "--role", "agent", "--signal", "STOP")

    assert os.WIFSTOPPED(os.waitpid(agent.pid, os.WUNTRACED)[1])
    kill_cluster(tmp_path, "--role", "agent", "--signal", "CONT")
    assert os.WIFCONTINUED(os.waitpid(agent.pid, os.WCONTINUED)[1])
    assert master.poll() is None


def test_what_does_not_stop_is_killed(start: Start, tmp_path: Path) -> None:
    stubborn = start("master", "m1", STUBBORN)
    script = (BIN / "kill_cluster.py").read_text().replace("PATIENCE_S = 10.0", "PATIENCE_S = 0.3")
    impatient = tmp_path / "kill_cluster.py"
    impatient.write_text(script)

    done = subprocess.run([sys.executable, str(impatient), str(tmp_path)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout
    assert "got SIGKILL" in done.stdout
    assert stubborn.wait(60) == -signal.SIGKILL


def test_a_reused_process_id_is_left_alone(start: Start, tmp_path: Path) -> None:
    other = start("master", "m1", POLITE)
    file = tmp_path / "cluster.json"
    file.write_text(file.read_text().replace("time.sleep(60)", "time.sleep(61)"))

    done = kill_cluster(tmp_path, "--signal", "KILL")

    assert "ended already" in done.stdout
    assert other.poll() is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(["--id", "m9"], 3, "there are: m1"), (["--signal", "HUP"], 2, "HUP"), (["--role", "boss"], 2, "boss")],
)
def test_a_wrong_call_does_nothing(start: Start, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    process = start("master", "m1", POLITE)

    done = kill_cluster(tmp_path, *arguments)

    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert process.poll() is None


def test_a_folder_without_a_cluster_is_named(tmp_path: Path) -> None:
    done = kill_cluster(tmp_path)

    assert done.returncode == 3
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize(("program", "words"), [("master", "--id"), ("agent", "--name"), ("ctl", "Run work")])
def test_run_starts_each_program_from_any_folder(program: str, words: str, tmp_path: Path) -> None:
    argv = [sys.executable, str(BIN / "run.py"), program, "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_run_names_its_programs() -> None:
    done = subprocess.run([sys.executable, str(BIN / "run.py"), "boss"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "{master|agent|ctl}" in done.stderr


@pytest.mark.parametrize("program", [["master", "--id", "m1"], ["agent", "--name", "h1"]], ids=["master", "agent"])
@pytest.mark.parametrize("secrets", ["~/secrets", "secrets"])
def test_missing_secrets_are_looked_for_where_the_file_says(program: list[str], secrets: str, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"masters: [{{id: m1, host: 127.0.0.1, dir: m1}}]\nhosts: [{{name: h1}}]\nsecrets: {secrets}\n")
    argv = [sys.executable, str(BIN / "run.py"), *program, "--config", str(file)]
    environment = {**os.environ, "HOME": str(tmp_path)}

    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, cwd="/")

    assert done.returncode == 2
    assert f"{tmp_path}/secrets/" in done.stderr
    assert "Traceback" not in done.stderr

"""Limits, input files and output files from the command line and from Python, on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from depalma import Client, LocalCluster
from depalma.errors import JobFailed, Rejected

Ctl = Callable[..., subprocess.CompletedProcess[str]]
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_files_go_to_the_task_and_come_back(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.txt").write_text("beta")

    ctl(
        "run", "-q", "--input", "a.txt", "--input", "data=given", "--output", "*.out", "--output", "made",
        "--", "sh", "-c", "cat a.txt given/b.txt >all.out; mkdir made; echo x >made/y",
    )  # fmt: skip
    ctl("result", "last", "--output", "got")

    assert (tmp_path / "got" / "all.out").read_text() == "alphabeta"
    assert (tmp_path / "got" / "made" / "y").read_text() == "x\n"
    again = ctl("result", "last", "--output", "got", code=1)
    assert "got: it is there, and not empty" in again.stderr
    assert "Outputs" in ctl("show", f"{_last(ctl)}.0").stdout


def test_outputs_of_several_tasks_have_a_folder_each(ctl: Ctl, tmp_path: Path) -> None:
    ctl("map", "-q", "--wait", "--output", "out", "--", "sh", "-c", 'echo "$1" >out', "sh", "{}", ":::", "x", "y")
    rows = json.loads(ctl("result", "last", "--output", "got", "-o", "json").stdout)

    assert [row["folder"] for row in rows] == ["got/0", "got/1"]
    assert [(tmp_path / "got" / str(index) / "out").read_text() for index in (0, 1)] == ["x\n", "y\n"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "no-such-file"], "no-such-file: no such file or folder"),
        (["--output", "json"], "here it names files; the format is -o json"),
        (["--output", "../x"], "paths below the scratch folder"),
        (["--max-files", "3"], "--max-files"),
        (["--memory", "much"], "--memory"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_submitted(arguments: list[str], words: str, ctl: Ctl) -> None:
    before = ctl("jobs", "--all", "-o", "name").stdout

    done = ctl("submit", *arguments, "--", "true", code=None)

    assert done.returncode in (2, 5)
    assert words in done.stderr
    assert ctl("jobs", "--all", "-o", "name").stdout == before


def test_what_a_limit_ended_says_so(ctl: Ctl, value: Callable[..., Any]) -> None:
    grow = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    done = ctl("run", "--memory", "50M", "--", sys.executable, "-S", "-c", grow, code=None)

    assert done.returncode != 0
    assert "memory limit of 50 MiB exceeded" in done.stderr
    task = value("show", f"{_last(ctl)}.0")
    assert (task["error_code"], task["error"]) == ("memory_limit", "memory limit of 50 MiB exceeded")
    assert "memory: " in ctl("host", "show", "h1").stdout


def test_python_has_limits_and_files_too(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")

    def doubles(times: int) -> int:
        import os

        text = Path("a.txt").read_text() * times
        Path(f"{times}.out").write_text(text)
        return os.getpid()

    job = client.map(doubles, [1, 2], inputs=[tmp_path / "a.txt"], outputs="*.out", isolate=True)
    tasks = sorted(job.as_completed(30), key=lambda task: task.index)

    assert len({task.result() for task in tasks}) == 2
    assert (tasks[1].outputs() / "2.out").read_text() == "alphaalpha"
    assert (tasks[0].outputs(tmp_path / "got") / "1.out").read_text() == "alpha"

    def spins() -> None:
        while True:
            pass

    limited = client.map(lambda _: spins(), [0], cpu_time_s=0.3)
    with pytest.raises(JobFailed, match=r"CPU time limit of 0\.3 s exceeded") as caught:
        list(limited.results(30))
    assert caught.value.code == "cpu_time_limit"
    with pytest.raises(Rejected) as none:
        next(iter(limited.as_completed(30))).outputs()
    assert none.value.code == "no_outputs"


def _last(ctl: Ctl) -> str:
    return ctl("jobs", "--all", "-o", "name").stdout.split()[0]

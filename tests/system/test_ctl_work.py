"""depalmactl: work that is submitted, followed, waited for and cancelled on a real cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster

WaitUntil = Callable[..., Any]
Done = subprocess.CompletedProcess[str]
Ctl = Callable[..., Done]
COMMAND = [sys.executable, "-m", "depalma.ctl"]


@pytest.fixture(scope="module")
def a_job(cluster: LocalCluster) -> str:
    """A finished job of three tasks."""
    with cluster.client() as client:
        job = client.command(["sh", "-c", "echo $DEPALMA_TASK_INDEX"], array="0-2", name="three")
        job.wait(60)
        return str(job.id)


# ---------------------------------------------------------------- run


def test_run_is_like_running_it_here(ctl: Ctl) -> None:
    done = ctl("run", "-q", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr.splitlines()[0]) == ("out\n", "err")
    done = ctl("run", "-q", "--env", "A=x y", "--", "sh", "-c", 'printf "%s|" "$A" "$@"', "sh", "a b", "{}", "*")
    assert done.stdout == "x y|a b|{}|*|"


@pytest.mark.parametrize(
    ("script", "code"),
    [("kill -KILL $$", 137), ("kill -TERM $$", 143), ("exit 0", 0), ("exit 255", 255), ("nosuch", 127)],
)
def test_run_exits_with_the_jobs_code(script: str, code: int, ctl: Ctl) -> None:
    ctl("run", "-q", "--", "sh", "-c", script, code=code)


def test_run_gives_all_bytes_unchanged(environment: dict[str, str]) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20000)"
    done = subprocess.run(
        [*COMMAND, "run", "-q", "--", sys.executable, "-c", script],
        env=environment, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == bytes(range(256)) * 20000


def test_run_follows_retries(ctl: Ctl) -> None:
    script = "echo attempt $DEPALMA_ATTEMPT; test $DEPALMA_ATTEMPT = 8"  # so quick that some end unseen
    done = ctl("run", "--retries", "7", "--", "sh", "-c", script)
    assert done.stdout == "".join(f"attempt {number}\n" for number in range(1, 9))
    assert "attempt 1 is over (failed on" in done.stderr


def test_run_for_programs_is_one_value(value: Callable[..., Any]) -> None:
    got = value("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)
    assert (got["stdout"], got["stderr"], got["exit_code"], got["state"]) == ("out\n", "err\n", 3, "failed")


def test_run_streams_before_the_end(environment: dict[str, str], tmp_path: Path, wait_until: WaitUntil) -> None:
    flag = tmp_path / "go-on"
    with subprocess.Popen(
        [*COMMAND, "run", "-q", "--", "sh", "-c", f"echo first; until test -e {flag}; do sleep 0.02; done; echo last"],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "first\n"
        flag.touch()
        assert running.stdout.read() == "last\n"
        assert running.wait(60) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_cancels_the_job(
    number: int, code: int, environment: dict[str, str], client: Client, wait_until: WaitUntil
) -> None:
    name = f"interrupted-{number}"
    with subprocess.Popen(
        [*COMMAND, "run", "--name", name, "--", "sh", "-c", "echo here; exec sleep 60"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "here\n"
        running.send_signal(number)
        assert running.wait(60) == code
    assert [job.state for job in client.jobs(name=name)] == ["cancelled"]


def test_a_reader_that_goes_away_ends_the_run(environment: dict[str, str], client: Client) -> None:
    line = f"{sys.executable} -m depalma.ctl run --name pipe -- yes 2>/dev/null | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "y\n141\n"
    assert [job.state for job in client.jobs(name="pipe")] == ["cancelled"]


def test_output_that_found_no_room_is_a_failure(environment: dict[str, str], client: Client) -> None:
    line = f"{sys.executable} -m depalma.ctl run -q --name full -- echo here >/dev/full"
    buffered = {**environment, "PYTHONUNBUFFERED": ""}  # what found no room stays in the buffer, and is tried again
    done = subprocess.run(["sh", "-c", line], env=buffered, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (125, "error: [Errno 28] No space left on device\n")
    assert [job.state for job in client.jobs(name="full")] == ["succeeded"]


def test_a_closed_pipe_is_no_error(environment: dict[str, str]) -> None:
    line = f"{sys.executable} -m depalma.ctl events --after 0 -o jsonl | head -1 | wc -l; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.split()[0], done.stderr) == ("1", "")


# ---------------------------------------------------------------- submit, map, wait


def test_submit_prints_the_id_alone(ctl: Ctl) -> None:
    done = ctl("submit", "--", "true")
    assert done.stdout.strip().isdigit()
    assert f"submitted job {done.stdout.strip()} (1 task)" in done.stderr
    quiet = ctl("submit", "-q", "--", "true")
    assert quiet.stderr == ""
    assert int(quiet.stdout) == int(done.stdout) + 1


def test_submit_options_reach_the_job(value: Callable[..., Any]) -> None:
    job = value(
        "submit", "--name", "opts", "--tag", "a", "--tag", "b", "--priority", "7", "--array", "5-8%2", "--user", "eve",
        "--on-host", "h1", "--cpus", "2", "--hold", "--", "true",
    )  # fmt: skip
    assert job == {"id": job["id"], "tasks": 4}
    view = value("show", str(job["id"]))
    assert (view["name"], view["tags"], view["priority"], view["user"]) == ("opts", ["a", "b"], 7, "eve")
    assert (view["state"], view["tasks"]["total"]) == ("held", 4)
    assert [task["index"] for task in value("show", str(job["id"]), "--tasks", "held")] == [5, 6, 7, 8]
    value("cancel", str(job["id"]))


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 9", 9), ("kill -9 $$", 137)])
def test_submit_wait_exits_with_the_jobs_code(script: str, code: int, ctl: Ctl, value: Callable[..., Any]) -> None:
    ctl("submit", "--wait", "--", "sh", "-c", script, code=code)
    assert value("submit", "--wait", "--", "sh", "-c", script, code=code)["exit_code"] == code


def test_a_slurm_script_runs(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --job-name=slurm --array=1-3\n#SBATCH -o out-%A-%a.txt\n#DEPALMA --tag mixed\n"
        'echo "$SLURM_ARRAY_TASK_ID of $SLURM_JOB_ID with $1"\n'
    )
    job = ctl("submit", "--wait", "--tag", "more", "job.sh", "an argument").stdout.strip()
    for index in (1, 2, 3):
        assert (tmp_path / f"out-{job}-{index}.txt").read_text() == f"{index} of {job} with an argument\n"
    shown = json.loads(ctl("show", job, "-o", "json").stdout)
    assert (shown["name"], sorted(shown["tags"])) == ("slurm", ["mixed", "more"])


def test_the_command_line_wins_over_the_script(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#DEPALMA --name inside --priority 3 --hold\ntrue\n")
    env = {"DEPALMA_SUBMIT_PRIORITY": "4"}
    job = ctl("submit", "-q", "--name", "outside", "job.sh", env=env).stdout.strip()
    shown = json.loads(ctl("show", job, "-o", "json").stdout)
    assert (shown["name"], shown["priority"], shown["state"]) == ("outside", 4, "held")
    ctl("cancel", job)


NASTY = ["a b", "$(echo no)", "'quoted\"", "{}", "*", "", "ünïcode", "; exit 3"]


def test_map_from_the_command_line_and_from_stdin(ctl: Ctl) -> None:
    job = ctl("map", "-q", "--wait", "printf '%s\\n' {}", ":::", *NASTY).stdout.strip()
    assert ctl("logs", job).stdout.splitlines() == NASTY
    job = ctl("map", "-q", "--wait", "--", "echo", "<{}>", stdin="".join(f"{line}\n" for line in NASTY)).stdout.strip()
    assert ctl("logs", job).stdout.splitlines() == [f"<{line}>" for line in NASTY]


def test_a_large_map_goes_as_a_blob(ctl: Ctl, value: Callable[..., Any]) -> None:
    lines = [f"line {number} {'x' * 40}" for number in range(300)]
    job = ctl("map", "-q", "--wait", "-j", "4", "test -n {}", stdin="\n".join(lines)).stdout.strip()
    assert value("show", job)["tasks"]["succeeded"] == 300


def test_wait_for_several_jobs(ctl: Ctl, value: Callable[..., Any]) -> None:
    ids = [ctl("submit", "-q", "--", "sh", "-c", f"exit {code}").stdout.strip() for code in (0, 5, 6)]
    assert ids == [str(int(ids[0]) + step) for step in range(3)]
    ctl("wait", f"{ids[0]}-{ids[2]}", code=5)
    ctl("wait", ids[0], code=0)
    assert [job["exit_code"] for job in value("wait", *ids, code=5)] == [0, 5, 6]


def test_wait_that_times_out(ctl: Ctl) -> None:
    job = ctl("submit", "-q", "--", "sleep", "60").stdout.strip()
    done = ctl("wait", job, "--timeout", "0.3", code=124)
    assert f"job {job} is not over after 0.3s" in done.stderr
    ctl("cancel", "-q", job)
    ctl("wait", job, code=None)


# ---------------------------------------------------------------- logs, result, cancel


def test_logs_of_streams_tasks_and_attempts(ctl: Ctl, value: Callable[..., Any]) -> None:
    script = "echo out $DEPALMA_TASK_INDEX.$DEPALMA_ATTEMPT; echo err >&2; test $DEPALMA_ATTEMPT = 2"
    job = ctl("submit", "-q", "--wait", "--array", "0-1", "--retries", "1", "--", "sh", "-c", script).stdout.strip()
    assert ctl("logs", job).stdout == "out 0.2\nout 1.2\n"
    assert ctl("logs", f"{job}.1").stdout == "out 1.2\n"
    assert ctl("logs", f"{job}.1", "--attempt", "1").stdout == "out 1.1\n"
    nothing = ctl("logs", job, "--attempt", "9", code=1)  # not of one task: that is a failure
    assert nothing.stderr.count("has no attempt 9") == 2, nothing.stderr
    assert ctl("logs", f"{job}.0", "--stderr").stdout == "err\n"
    assert value("logs", f"{job}.1") == {"task": f"{job}.1", "attempt": 2, "stream": "stdout", "text": "out 1.2\n"}
    assert [entry["text"] for entry in value("logs", job)] == ["out 0.2\n", "out 1.2\n"]


def test_logs_follow_to_the_end_and_through_tasks(ctl: Ctl) -> None:
    script = "for i in 1 2 3; do echo $DEPALMA_TASK_INDEX $i; sleep 0.1; done"
    job = ctl("submit", "-q", "--array", "0-1", "--", "sh", "-c", script).stdout.strip()
    assert ctl("logs", "-f", job).stdout == "0 1\n0 2\n0 3\n1 1\n1 2\n1 3\n"


def test_logs_of_what_has_not_started(ctl: Ctl) -> None:
    job = ctl("submit", "-q", "--hold", "--", "true").stdout.strip()
    assert f"{job}.0 has not started (held)" in ctl("logs", f"{job}.0", code=1).stderr
    ctl("cancel", "-q", job)


def square(x: int) -> int:
    if x == 3:
        raise ValueError("three is refused")
    return x * x


square.__module__ = "__main__"  # so that it is sent by value: tests are not in the synced code


def test_results_of_functions(ctl: Ctl, value: Callable[..., Any], client: Client) -> None:
    job = client.map(square, [1, 2, 4])
    job.wait(60)
    assert ctl("result", str(job.id)).stdout == "1\n4\n16\n"
    assert ctl("result", f"{job.id}.2").stdout == "16\n"
    assert value("result", f"{job.id}.2") == {"task": f"{job.id}.2", "state": "succeeded", "value": 16, "repr": "16"}
    assert ctl("result", str(job.id), "--raw", code=2).stdout == ""


def test_results_of_functions_that_fail(ctl: Ctl, client: Client) -> None:
    job = client.map(square, [2, 3])
    job.wait(60)
    done = ctl("result", str(job.id), code=1)
    assert done.stdout == "4\n"
    assert f"{job.id}.1 failed" in done.stderr
    assert "three is refused" in done.stderr


def test_a_command_job_has_no_result(ctl: Ctl, a_job: str) -> None:
    assert f"depalmactl logs {a_job}.0" in ctl("result", f"{a_job}.0", code=1).stderr


def test_cancel_is_all_or_nothing(ctl: Ctl, value: Callable[..., Any]) -> None:
    job = ctl("submit", "-q", "--", "sleep", "60").stdout.strip()
    ctl("cancel", job, "987654", code=3)
    assert value("show", job)["state"] in ("queued", "assigned", "running")
    assert value("cancel", job) == {"cancelled": [int(job)], "already_over": []}
    ctl("wait", job, code=None)
    assert value("cancel", job) == {"cancelled": [], "already_over": [int(job)]}

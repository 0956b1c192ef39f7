"""depalmactl against a cluster of real processes: data, exit codes, formats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from depalma import LocalCluster
from depalma.ctl.main import cli

WaitUntil = Callable[..., Any]
Done = subprocess.CompletedProcess[str]
Ctl = Callable[..., Done]
COMMAND = [sys.executable, "-m", "depalma.ctl"]
#: Every command that asks the cluster for something, with a good call of it.
READS = [
    "jobs", "jobs --all --limit 3", "jobs --since 1d", "accounting", "accounting --group-by user",
    "show JOB", "show JOB.0", "show JOB --tasks succeeded", "logs JOB.0", "logs JOB",
    "explain last", "explain JOB.0", "ps", "ps last", "events", "events --after 0", "load", "load h1", "host ls",
    "host show h1", "group ls", "master ls", "code ls", "code status", "doctor", "top", "version", "context ls",
]  # fmt: skip
WITH_A_JOB = ["show", "wait", "logs", "result", "explain", "cancel", "ps"]


@pytest.fixture(scope="module")
def a_job(cluster: LocalCluster) -> str:
    """A finished job of three tasks."""
    with cluster.client() as client:
        job = client.command(["sh", "-c", "echo $DEPALMA_TASK_INDEX"], array="0-2", name="three")
        job.wait(60)
        return str(job.id)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("words", READS)
def test_each_format_is_what_it_says(words: str, environment: dict[str, str], a_job: str) -> None:
    arguments = words.replace("JOB", a_job).split()

    def stdout(output: str) -> str:
        result = CliRunner().invoke(cli, [*arguments, "-o", output], env=environment)
        # A doctor finds that something is bad when it does not answer at once, as on a busy machine.
        assert result.exit_code in ((0, 1) if words == "doctor" else (0,)), result.stderr
        return result.stdout

    one = json.loads(stdout("json"))
    assert isinstance(one, list | dict)
    assert all(isinstance(json.loads(line), dict) for line in stdout("jsonl").splitlines())
    (document,) = yaml.safe_load_all(stdout("yaml"))
    assert type(document) is type(one)
    assert "\x1b" not in stdout("table") + stdout("wide")
    if isinstance(one, list) and arguments[0] in ("jobs", "host", "master", "code", "context"):
        assert len(stdout("name").split()) == len(one)


def test_job_and_host_fields_of_the_contract(value: Callable[..., Any], a_job: str) -> None:
    job = value("show", a_job)
    wanted = "id name user state priority tags group submitted_at started_at finished_at code_index tasks exit_code"
    assert set(wanted.split()) <= set(job)
    assert set(job["tasks"]) == {"total", "queued", "running", "succeeded", "failed", "cancelled", "lost"}
    task = value("show", f"{a_job}.1")
    wanted = "id job index state attempt host exit_code signal started_at finished_at code_index code_digest attempts"
    assert set(wanted.split()) <= set(task)
    host = value("host", "ls")[0]
    wanted = "name state groups labels priority slots running code_index cpus memory_bytes load last_seen_s"
    assert set(wanted.split()) <= set(host)
    master = value("master", "ls")[0]
    wanted = "id url role term commit_index applied_index state_hash last_contact_s version"
    assert set(wanted.split()) <= set(master)


def test_names_feed_other_commands(ctl: Ctl) -> None:
    ids = [ctl("submit", "-q", "--tag", "feed", "--", "sleep", "60").stdout.strip() for _ in range(3)]
    named = ctl("jobs", "--tag", "feed", "-o", "name").stdout.split()
    assert sorted(named) == sorted(ids)
    assert ctl("cancel", *named).stdout.split() == named
    assert ctl("wait", *named, code=None).returncode != 0
    assert "the job was cancelled by " in ctl("explain", named[0]).stdout


def test_piped_tables_are_whole(ctl: Ctl) -> None:
    name = "n" * 150
    job = ctl("submit", "-q", "--name", name, "--", "true").stdout.strip()
    table = ctl("jobs", env={"COLUMNS": "40", "TERM": "xterm-256color", "FORCE_COLOR": "1"}).stdout
    assert name in table
    assert "\x1b" not in table
    assert job in table


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize("name", WITH_A_JOB)
def test_unknown_job(name: str, ctl: Ctl) -> None:
    done = ctl(name, "987654", code=3)
    assert done.stdout == ""
    assert done.stderr == "error: there is no job 987654\n"
    error = json.loads(ctl(name, "987654", "-o", "json", code=3).stderr)["error"]
    assert (error["code"], error["exit_code"]) == ("unknown_job", 3)


def test_unknown_task_host_and_code(ctl: Ctl, a_job: str) -> None:
    assert "no task 7" in ctl("show", f"{a_job}.7", code=3).stderr
    assert "'nosuch'" in ctl("host", "show", "nosuch", code=3).stderr
    assert "'nosuch'" in ctl("load", "nosuch", code=3).stderr
    assert "99" in ctl("code", "show", "99", code=3).stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [("jobs", 5), ("submit -- true", 5), ("cancel 1", 5), ("master ls", 5), ("run -- true", 125), ("wait 1", 125)],
)
def test_refused_token(words: str, code: int, ctl: Ctl, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("w" * 43 + "\n")
    done = ctl("--token-file", str(wrong), *words.split(), code=code)
    assert done.stdout == ""
    assert "token" in done.stderr


def test_a_spec_that_the_cluster_rejects(ctl: Ctl) -> None:
    done = ctl("submit", "--code-index", "12345", "--", "true", code=5)
    assert "code_index: 12345 given" in done.stderr
    assert done.stdout == ""


def test_one_dead_address_among_the_masters_does_no_harm(ctl: Ctl, cluster: LocalCluster) -> None:
    ctl("jobs", env={"DEPALMA_MASTERS": ",".join(["http://127.0.0.1:9", *cluster.masters[:1]])})


# ---------------------------------------------------------------- cluster


def test_code_add_and_the_code_log(ctl: Ctl, value: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text("def double(x):\n    return 2 * x\n")
    index = int(ctl("code", "add", "tools.py").stdout)
    entry = value("code", "show", str(index))
    assert (entry["kind"], entry["acknowledged"], entry["missing"]) == ("module", ["h1", "h2"], [])
    assert value("code", "ls")[-1]["index"] == index
    assert value("code", "status")["index"] == index
    ctl("code", "status", "--check")
    (tmp_path / "notes.txt").write_text("no module\n")
    assert "ends in .py" in ctl("code", "add", "notes.txt", code=2).stderr
    done = ctl("run", "-q", "--", "sh", "-c", "cat $DEPALMA_CODE_DIR/tools.py")
    assert done.stdout == (tmp_path / "tools.py").read_text()


def test_ps_shows_the_processes_of_a_task(ctl: Ctl, value: Callable[..., Any], wait_until: WaitUntil) -> None:
    job = ctl("submit", "-q", "--", "sh", "-c", "sleep 61 & sleep 62; wait").stdout.strip()

    def look() -> dict[str, Any]:
        return {row["command"]: row for row in value("ps")}

    row = wait_until(look, lambda seen: {"sleep 61", "sleep 62"} <= seen.keys())["sleep 61"]
    wanted = "task host pid ppid user state cpu_percent rss_bytes threads elapsed_s command"
    assert set(wanted.split()) <= set(row)
    assert row["task"] == f"{job}.0"
    ctl("cancel", "-q", job)
    ctl("wait", job, code=None)


def test_events_resume_after_an_index(ctl: Ctl, a_job: str) -> None:
    events = [json.loads(line) for line in ctl("events", "--after", "0", "-o", "jsonl").stdout.splitlines()]
    indices = [event["index"] for event in events]
    assert indices == list(range(1, len(indices) + 1))
    rest = json.loads(ctl("events", "--after", str(indices[-3]), "-o", "json").stdout)
    assert [event["index"] for event in rest[:2]] == indices[-2:]
    kinds = [event["kind"] for event in events if event["job"] == int(a_job)]
    assert kinds[0] == "job.submitted"
    assert kinds[-1] == "job.finished"


def test_explain_names_the_reason(ctl: Ctl) -> None:
    job = ctl("submit", "-q", "--group", "nosuch", "--", "true").stdout.strip()
    assert "nosuch" in ctl("explain", job).stdout
    ctl("cancel", "-q", job)


def test_doctor_finds_all_well(value: Callable[..., Any], wait_until: WaitUntil) -> None:
    def found() -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = value("doctor", code=None)
        return lines

    # What does not answer at once is found to be bad.
    lines = wait_until(found, lambda seen: {line["status"] for line in seen} == {"ok"})
    assert {"context", "leader", "hosts", "code"} <= {line["check"] for line in lines}


def test_completion_offers_jobs(ctl: Ctl, environment: dict[str, str], wait_until: WaitUntil) -> None:
    job = ctl("submit", "-q", "--", "true").stdout.strip()
    asked = {"_DEPALMACTL_COMPLETE": "bash_complete", "COMP_WORDS": "depalmactl show ", "COMP_CWORD": "2"}

    def offered() -> list[str]:
        done = subprocess.run(COMMAND, env={**environment, **asked}, stdout=-1, text=True, timeout=60, check=False)
        return done.stdout.splitlines()

    wait_until(offered, lambda lines: f"plain,{job}" in lines)  # Tab waits only 0.4 s for the cluster

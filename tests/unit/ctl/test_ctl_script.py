"""Job scripts: directives, and command lines that really run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from depalma.ctl.script import ScriptError, directives, script_argv
from depalma.ctl.submit import _merged, submit
from depalma.model import INLINE_LIMIT_BYTES


def arguments_of(text: str) -> list[str]:
    """Returns the arguments of all directives in one list."""
    return [argument for directive in directives(text) for argument in directive.arguments]


def test_directives_are_read_from_the_leading_comments_only() -> None:
    text = "#!/bin/sh\n# a comment\n\n#DEPALMA --name 'my job' --tag a\n#SBATCH -J other\necho hi\n#SBATCH --bogus\n"
    assert arguments_of(text) == ["--name", "my job", "--tag", "a", "--name", "other"]
    assert [directive.line for directive in directives(text)] == [4, 5]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--job-name=train", ["--name", "train"]),
        ("-J train", ["--name", "train"]),
        ("-Jtrain", ["--name", "train"]),
        ("--time=30", ["--timeout", "1800"]),
        ("--time=01:30:00", ["--timeout", "5400"]),
        ("--time=10:30", ["--timeout", "630"]),
        ("--time=1-12", ["--timeout", "129600"]),
        ("--time=1-00:30", ["--timeout", "88200"]),
        ("-t 2-03:04:05", ["--timeout", "183845"]),
        ("--array=0-15%4", ["--array", "0-15%4"]),
        ("-a 1-3", ["--array", "1-3"]),
        ("--cpus-per-task=4", ["--cpus", "4"]),
        ("--mem=500", ["--memory", "500M"]),
        ("--mem=4G", ["--memory", "4G"]),
        ("--nice=100", ["--priority", "-100"]),
        ("--nodes=1 --ntasks=1", []),
        ("-N 1 -n1 --no-requeue -H", ["--not-restartable", "--hold"]),
        ("-i in.txt", ["--stdin", "in.txt"]),
        ("--chdir=/data   # a comment", ["--cwd", "/data"]),
    ],
)
def test_slurm_options(line: str, expected: list[str]) -> None:
    assert arguments_of(f"#!/bin/bash\n#SBATCH {line}\ntrue\n") == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--partition=debug", "#SBATCH --partition=debug: not supported"),
        ("--ntasks=4", "#SBATCH --ntasks: only 1 is possible"),
        ("--time=soon", "not a time of Slurm"),
        ("--job-name", "a value is missing"),
        ("--nice=a", "--nice"),
        ("debug", "not an option"),
        ("--job-name='x", "No closing quotation"),
    ],
)
def test_bad_directive_names_its_line(line: str, words: str) -> None:
    with pytest.raises(ScriptError, match=r"^line 2: ") as caught:
        directives(f"#!/bin/bash\n#SBATCH {line}\n")
    assert words in str(caught.value)


def run(argv: list[str], **env: str) -> str:
    """Runs what a host would run, and returns what it prints."""
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('echo "$0 $# $1"', "job.sh 2 a b\n"),
        ('#!/bin/bash -eu\necho "$0 $# $1"', "job.sh 2 a b\n"),
        ('#!/usr/bin/env -S bash -e\necho "$0 $# $1"', "job.sh 2 a b\n"),
        ("#!/usr/bin/env python3\nimport sys\nprint(len(sys.argv) - 1, sys.argv[1])", "2 a b\n"),
    ],
)
def test_a_script_runs_with_its_arguments(text: str, expected: str) -> None:
    assert run(script_argv(text, "job.sh", ["a b", "c"])) == expected


def test_a_slurm_script_finds_slurms_names_and_keeps_its_line_numbers() -> None:
    text = '#!/bin/bash\n#SBATCH --array=0-3\necho "$SLURM_JOB_ID $SLURM_ARRAY_TASK_ID $LINENO"\n'
    argv = script_argv(text, "job.sh", [])
    assert run(argv, DEPALMA_JOB_ID="42", DEPALMA_TASK_INDEX="3") == "42 3 3\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/usr/bin/tclsh\nputs hi", "scripts for tclsh cannot be sent"),
        ("#!\necho", "no interpreter"),
        ("#!/bin/sh\n" + "x" * INLINE_LIMIT_BYTES, f"a script may have {INLINE_LIMIT_BYTES:,}"),
    ],
)
def test_a_script_that_cannot_be_sent(text: str, words: str) -> None:
    with pytest.raises(ScriptError, match=words):
        script_argv(text, "job", [])


def test_what_adds_up_adds_up_and_of_the_rest_the_last_wins(tmp_path: Path) -> None:
    """A script that needs a licence still needs it when the command line asks for a tape drive, too."""
    text = (
        "#!/bin/sh\n"
        "#DEPALMA --resource lic=1 --resource tape=1 --limit a=5 --tag s --env A=1 --retries 1 --name first\n"
        "#DEPALMA --resource tape=2 --tag t --env A=2 --retries 2\n"
    )
    path = tmp_path / "job.sh"
    path.write_text(text)
    words = ["--resource", "tape=3", "--limit", "b=3", "--tag", "cli", "--retries", "3", str(path)]
    context = submit.make_context("submit", words)
    options = _merged(context, path, text, dict(context.params))
    assert options["resources"] == {"lic": 1, "tape": 3}
    assert options["limits"] == {"a": 5, "b": 3}
    assert options["tags"] == ("s", "t", "cli")
    assert options["env"] == ("A=1", "A=2")
    assert (options["retries"], options["name"]) == (3, "first")

    context = submit.make_context("submit", [str(path)])
    options = _merged(context, path, text, dict(context.params))
    assert options["resources"] == {"lic": 1, "tape": 2}
    assert (options["retries"], options["tags"]) == (2, ("s", "t"))

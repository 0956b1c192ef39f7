"""Every command: help with an example, usage errors, and what it does when nobody leads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from depalma.client import master_verbs
from depalma.ctl.main import COMMANDS, cli
from depalma.ctl.reference import leaves, markdown

ROOT = Path(__file__).parents[3]
LEAVES = leaves()
#: Arguments with which each command needs the cluster; the exit code when there is none.
NEEDS_CLUSTER = {
    "submit": (["--", "true"], 4),
    "map": (["true", ":::", "a"], 4),
    "run": (["--", "true"], 125),
    "jobs": ([], 4),
    "accounting": (["-o", "csv"], 4),
    "show": (["1"], 4),
    "wait": (["1"], 125),
    "logs": (["1.0"], 4),
    "result": (["1.0"], 4),
    "explain": (["1"], 4),
    "cancel": (["1"], 4),
    "hold": (["1"], 4),
    "add": (["1", ":::", "a"], 4),
    "close": (["1"], 4),
    "cron add": (["n", "@daily", "--", "true"], 4),
    "cron ls": ([], 4),
    "cron show": (["n"], 4),
    "cron rm": (["n"], 4),
    "release": (["1"], 4),
    "suspend": (["1"], 4),
    "resume": (["1"], 4),
    "retry": (["1"], 4),
    "set": (["1", "--priority", "3"], 4),
    "exec": (["1", "--", "true"], 125),
    "ps": ([], 4),
    "top": ([], 4),
    "events": ([], 4),
    "load": ([], 4),
    "host ls": ([], 4),
    "host show": (["h1"], 4),
    "host add": (["h9"], 4),
    "host set": (["h1", "--slots", "2"], 4),
    "host remove": (["h1"], 4),
    "host drain": (["h1"], 4),
    "host undrain": (["h1"], 4),
    "host invite": (["h9"], 4),
    "group ls": ([], 4),
    "group set": (["g", "h1"], 4),
    "group add": (["g", "h1"], 4),
    "group remove": (["g"], 4),
    "order show": ([], 4),
    "order users": ([], 4),
    "order limits": ([], 4),
    "order limit": (["tag", "db", "4"], 4),
    "order quotas": ([], 4),
    "order quota": (["user", "ann", "slots=4", "memory=2G"], 4),
    "order share": (["ann", "2"], 4),
    "order set": (["--age", "0"], 4),
    "master ls": ([], 4),
    "master add": (["m4", "--host", "10.0.0.4"], 4),
    "master set": (["m1", "--host", "10.0.0.4"], 4),
    "master remove": (["m1"], 4),
    "master transfer": (["m1"], 4),
    "code add": ([__file__], 4),
    "code ls": ([], 4),
    "code show": (["1"], 4),
    "code status": ([], 4),
    "code hosts": (["1"], 4),
    "code retry": ([], 4),
    "code rollback": (["1"], 4),
    "code run": (["--", "true"], 4),
    "webhook add": (["w", "http://127.0.0.1:9/"], 4),
    "webhook ls": ([], 4),
    "webhook show": (["w"], 4),
    "webhook set": (["w", "--new-secret"], 4),
    "webhook remove": (["w"], 4),
    "webhook replay": (["w", "--from", "1"], 4),
    "webhook test": (["w"], 4),
    "snapshot save": (["no-such-folder-yet.snap"], 4),
    "doctor": ([], 1),
}
WRITES = {
    "submit", "map", "run", "cancel", "code add", "master add", "master set", "master remove", "master transfer",
    "host add", "host set", "host remove", "host drain", "host undrain", "host invite", "group set", "group add",
    "group remove", "code retry", "code rollback", "code run", "webhook add", "webhook set", "webhook remove",
    "webhook replay", "webhook test",
    "order limit", "order quota", "order share", "order set",
    "exec", "hold", "release", "suspend", "resume", "retry", "set", "cron add", "cron rm", "add", "close",
}  # fmt: skip
ALONE = {
    "dev",
    "cluster init",
    "cluster up",
    "cluster down",
    "cluster status",
    "context add",
    "context use",
    "context rm",
    "context ls",
    "config check",
    "host pause",
    "host unpause",
    "master recover",
    "snapshot inspect",
    "snapshot restore",
    "completion",
    "version",
}


pytestmark = pytest.mark.usefixtures("own_environment")


def ctl(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin)


def test_the_tables_name_every_command() -> None:
    assert set(NEEDS_CLUSTER) | ALONE == set(LEAVES)


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", LEAVES)
def test_help_has_an_example_of_this_very_command(name: str) -> None:
    result = ctl(*name.split(), "--help")
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:\n")[2]
    assert f"depalmactl {name}" in examples.replace("depalmactl --context lab", "depalmactl")
    assert (LEAVES[name].help or "").strip()


@pytest.mark.parametrize("name", LEAVES)
def test_examples_are_understood(name: str) -> None:
    """Each example parses: no option in it that does not exist."""
    for example in getattr(LEAVES[name], "examples", ()):
        for words in commands_of(example):
            parse(words)


def commands_of(example: str) -> Iterator[list[str]]:
    """Yields the calls of depalmactl in a line of shell, each as its arguments."""
    text = example.replace("$(depalmactl jobs --state queued -o name)", "1").replace("$(seq 100)", "1 2")
    text = text.replace("id=$(", "").replace('eval "$(', "").replace(')"', "").rstrip(")")
    words: list[str] = []
    quoted = False
    for word in [*shlex.split(text, comments=True), ";"]:
        if word == "--":
            quoted = True
        if word in ("|", "&&", ">", ";") or word.endswith(";"):
            if words[:1] == ["depalmactl"]:
                yield words[1:] + ([word[:-1]] if word != ";" and word.endswith(";") else [])
            words, quoted = [], False
        elif not word.startswith("2>"):
            words.append(word)
    assert not quoted


def parse(words: list[str]) -> None:
    """Parses as click would, without running the command. Errors: click.UsageError."""
    command: click.Command = cli
    rest = words
    parent: click.Context | None = None
    while isinstance(command, click.Group):
        parent = click.Context(command, parent=parent)
        _, rest, _ = command.make_parser(parent).parse_args(list(rest))
        found = command.get_command(parent, rest[0])
        assert found is not None, words
        command, rest = found, rest[1:]
    files = [parameter for parameter in command.params if isinstance(parameter.type, click.Path)]
    if not files:
        with command.make_context(command.name, list(rest), parent=parent):
            return
    command.make_parser(click.Context(command, parent=parent)).parse_args(list(rest))


@pytest.mark.parametrize("words", ["", "code", "host", "group", "master", "webhook", "context", "config"])
def test_a_bare_group_shows_its_help(words: str) -> None:
    result = ctl(*words.split())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == ctl(*words.split(), "--help").stdout
    assert "Examples:" in result.stdout


def test_overview_lists_every_command_and_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depalma.ctl.command.import_module", None)
    result = ctl("--help")
    assert result.exit_code == 0
    for section in COMMANDS.values():
        for name, (_, line) in section.items():
            assert f"{name} " in result.stdout
            assert line in result.stdout


def test_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == markdown(), "run bin/make_cli_docs.py"


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize("name", LEAVES)
def test_unknown_option_is_a_usage_error_in_one_line(name: str) -> None:
    result = ctl(*name.split(), "--no-such-option")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert "--no-such-option" in result.stderr
    assert f"depalmactl {name} --help" in result.stderr


@pytest.mark.parametrize(
    ("words", "near"), [(["jbos"], "jobs"), (["submitt"], "submit"), (["code", "stats"], "status"), (["hosts"], "host")]
)
def test_mistyped_command_gets_a_suggestion(words: list[str], near: str) -> None:
    result = ctl(*words)
    assert result.exit_code == 2
    assert "did you mean" in result.stderr
    assert near in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "x"], "'x' is not a job or a task"),
        (["cancel", "42.7"], "42.7"),
        (["wait", "5-4"], "5-4"),
        (["submit", "--array", "5", "--", "true"], "'5' is not an array"),
        (["submit", "--memory", "lots", "--", "true"], "'lots' is not a size"),
        (["submit", "--env", "1=2", "--", "true"], "'1=2' is not NAME=VALUE"),
        (["submit", "--cpus", "0", "--", "true"], "--cpus"),
        (["submit", "nosuch.sh"], "no such script: nosuch.sh"),
        (["submit", "make", "all"], "depalmactl submit -- make all"),
        (["submit"], "CMD"),
        (["run"], "CMD"),
        (["map", "echo {}", ":::"], "nothing to map over"),
        (["map", ":::", "a"], "no command before"),
        (["code", "add", "/no/such/path"], "/no/such/path"),
        (["config", "check", "/no/such/file"], "/no/such/file"),
        (["logs", "-f", "--attempt", "1", "1.0"], "--attempt"),
        (["dev", "--stop", "--detach"], "--stop"),
        (["jobs", "-o", "xml"], "xml"),
        (["completion", "tcsh"], "tcsh"),
        (["host", "add", "h9", "--label", "os"], "'os' is not KEY=VALUE"),
        (["host", "add", "h9", "--slots", "-1"], "--slots"),
        (["host", "set", "h1"], "nothing to change"),
        (["host", "set", "h1", "--group", "g", "--no-groups"], "--no-groups"),
        (["host", "drain", "h1", "--deadline", "soon"], "'soon' is not a duration"),
        (["group", "add", "render"], "HOST"),
        (["webhook", "set", "w"], "nothing to change"),
        (["webhook", "set", "w", "--tag", "a", "--no-tags"], "--tag and --no-tags exclude each other"),
        (["webhook", "replay", "w"], "--from"),
        (["--timeout", "never", "jobs"], "never"),
        (["submit", "--stdin", "/nowhere/x", "--", "cat"], "'--stdin': /nowhere/x: No such file or directory"),
        (["run", "--stdin", "/", "--", "cat"], "'--stdin': /: Is a directory"),
        (["map", "--stdin", "-", "cat {}"], "stdin has the arguments here"),
    ],
)  # fmt: skip
def test_bad_input_is_named(words: list[str], said: str) -> None:
    result = ctl(*words, stdin="")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["jobs", "-o", "json", "--bad"], ["-ojson", "jbos"], ["--output=json", "show", "x"]])
def test_errors_for_programs_are_json_too(words: list[str]) -> None:
    result = ctl(*words)
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["exit_code"], error["code"]) == (2, 2, "usage")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--cpus", "nan", "--", "x"], "'--cpus': 'nan' is not a number"),
        (["submit", "--cpus", "inf", "--", "x"], "'--cpus': 'inf' is not a number"),
        (["--timeout", "nan", "jobs"], "'--timeout': 'nan' is not a number"),
        (["submit", "--timeout", "9" * 30, "--", "x"], "'--timeout': '999999999999999999999999999999' is longer than"),
        (["host", "pause", "--for", "99999999999"], "'--for': '99999999999' is longer than 1000000000 s"),
        (["submit", "--at", "+99999999999", "--", "x"], "'--at': '99999999999' is longer than"),
        (["order", "share", "ann", "nan"], "'nan' is not a number"),
        (["submit", "--name", "a\udcff", "--", "x"], '"name": "a\\xff\': not UTF-8; allowed: text in UTF-8'),
        (["submit", "--", "echo", "\udcff"], "\\xff': not UTF-8"),
        (["jobs", "--tag", "\udcff"], "\\xff': not UTF-8"),
        (["group", "set", "\udcff", "h1"], "\\xff': not UTF-8"),
        (["submit", "-f", "no-such-file.yaml"], "no-such-file.yaml: No such file or directory"),
        (["submit", "-f", "/"], "/: cannot be read: Is a directory"),
    ],
)
def test_values_that_are_none_are_refused_before_anything_is_sent(words: list[str], said: str, closed: str) -> None:
    result = ctl("--masters", closed, *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_arguments_of_a_map_are_bytes_as_names_of_files_are(closed: str) -> None:
    result = ctl("--timeout", "0.2", "--masters", closed, "map", "cat {}", ":::", "a\udcff")
    assert "no master that leads answered" in result.stderr


def test_script_directive_error_names_its_line(tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\n#DEPALMA --name x\n#DEPALMA --bogus 1\n")
    result = ctl("submit", str(script))
    assert result.exit_code == 2
    assert f"{script}: line 3: " in result.stderr
    assert "--bogus" in result.stderr
    script.write_text("#!/bin/sh\n#SBATCH --partition=x\n")
    assert "line 2: #SBATCH --partition=x: not supported" in ctl("submit", str(script)).stderr


# ---------------------------------------------------------------- no cluster


@pytest.mark.parametrize("name", NEEDS_CLUSTER)
def test_without_any_master_it_ends_soon_and_says_why(name: str, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_verbs, "WAIT_S", 0.2)  # how long a change of the masters itself may take
    arguments, code = NEEDS_CLUSTER[name]
    result = ctl("--timeout", "0.2", "--masters", closed, *name.split(), *arguments)
    assert result.exit_code == code
    if name != "doctor":
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "depalmactl doctor" in result.stderr
        assert ("nothing was changed" in result.stderr) == (name in WRITES)
    assert closed in result.output
    assert "refused" in result.output


def test_submit_and_wait_without_any_master_is_not_taken_for_the_jobs_code(closed: str) -> None:
    base = ("--timeout", "0.2", "--masters", closed)
    assert ctl(*base, "submit", "--wait", "--", "true").exit_code == 125
    assert ctl(*base, "map", "--wait", "true", ":::", "a").exit_code == 125
    assert ctl(*base, "jobs").exit_code == 4  # the next call of the same process is not tainted


@pytest.mark.parametrize("name", sorted(set(NEEDS_CLUSTER) - {"doctor"}))
def test_without_a_context_it_says_what_to_give(name: str) -> None:
    result = ctl(*name.split(), *NEEDS_CLUSTER[name][0])
    assert result.exit_code == 2
    assert "depalmactl context use" in result.stderr


def test_doctor_without_a_context_fails_with_advice() -> None:
    result = ctl("doctor")
    assert result.exit_code == 1
    assert "dev --detach" in result.stdout


def test_a_token_file_that_is_none_is_refused_before_anything_is_sent(tmp_path: Path, closed: str) -> None:
    file = tmp_path / "no-token"
    file.write_text("two\nlines\n")
    result = ctl("--masters", closed, "--token-file", str(file), "jobs")
    assert result.exit_code == 2
    assert "wrong file" in result.stderr

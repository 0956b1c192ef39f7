"""What is refused before anything is sent, with what is allowed; and options from the environment."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner, Result

from depalma.ctl.main import cli
from depalma.ctl.reference import leaves

LEAVES = leaves()
pytestmark = pytest.mark.usefixtures("own_environment")


def ctl(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--context", "nosuch"], "no context 'nosuch'"),
        (["--masters", "foo"], "masters: 'foo' given; allowed: https://HOST:PORT"),
        (["--masters", "http://127.0.0.1:9", "--token-file", "/no/such/file"], "/no/such/file: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", [["jobs"], ["run", "--", "true"], ["submit", "--wait", "--", "true"]])
def test_a_cluster_that_is_named_wrongly_is_wrong_usage(words: list[str], said: str, command: list[str]) -> None:
    """As the table of exit codes says: a bad value, a missing file."""
    result = ctl(*words, *command)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["submit", "--gpus", "x", "--", "true"],
            "'--gpus': 'x' given; allowed: a whole number up to 100000, or a part of one GPU in hundredths",
        ),
        (["submit", "--max-files", "x", "--", "true"], "'--max-files': 'x' is not a whole number, 16 or more"),
        (["submit", "--max-files", "1", "--", "true"], "'--max-files': '1' is not a whole number, 16 or more"),
        (["submit", "--retry-exit-code", "300", "--", "true"], "'300' is not a whole number, 1 to 255"),
        (["submit", "--priority", "high", "--", "true"], "'--priority': 'high' is not a valid integer"),
        (["submit", "--cpus", "x", "--", "true"], "'--cpus': 'x' is not a number above 0"),
        (["submit", "--cpus", "0", "--", "true"], "'--cpus': '0' is not a number above 0"),
        (["submit", "--cpus", "nan", "--", "true"], "'--cpus': 'nan' is not a number above 0"),
        (["order", "share", "ann", "x"], "'WEIGHT': 'x' is not a number above 0"),
        (["--timeout", "x", "jobs"], "'--timeout': 'x' is not a number"),
        (["host", "set", "h1", "--slots", "x"], "'--slots': 'x' is not a whole number, 0 or more"),
        (["jobs", "--limit", "0"], "'--limit': '0' is not a whole number, 1 or more"),
        (["submit", "--array", "0-99999999999", "--", "true"], "'0-99999999999' has 100,000,000,000 tasks; allowed: "),
        (["order", "quota", "user", "ann", "slots=nan"], "'slots=nan' is not WHAT=NUMBER, such as"),
        (["order", "quota", "user", "ann", f"memory={'9' * 400}"], "' is not WHAT=NUMBER, such as"),
        (["submit", "--memory", "9" * 400, "--", "true"], "' is not a size (such as 500M or 1.5G)"),
        (["order", "quota", "user", "ann", "slots=1", "slots=2"], "'slots=2': slots is given twice"),
    ],
)
def test_a_number_that_is_none_is_refused_with_what_is_allowed(words: list[str], said: str) -> None:
    result = ctl(*words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_jobs_of_several_states_are_asked_for_with_commas(closed: str) -> None:
    base = ("--timeout", "0.1", "--masters", closed)
    assert ctl(*base, "jobs", "--state", "running,failed").exit_code == 4
    result = ctl(*base, "jobs", "--state", "running,faild")
    assert result.exit_code == 2
    assert "'faild' given; allowed: held, blocked, " in result.stderr


def test_options_may_stand_behind_the_job_that_gets_tasks(closed: str) -> None:
    """As everywhere, up to the `:::`; behind it, words are words."""
    base = ("--timeout", "0.1", "--masters", closed)
    for words in (["7", "--close", "-o", "json", ":::", "-a", "--b"], ["7", "-o", "json"], ["--close", "7"]):
        assert ctl(*base, "add", *words, stdin="line\n").exit_code == 4, words
    assert "put ::: before the arguments" in ctl(*base, "add", "7", "x").stderr
    assert "no such option" in ctl(*base, "add", "7", "--nosuch", ":::", "x").stderr


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_option_has_its_twin_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the option, as people know it: DEPALMA_SUBMIT_TIMEOUT for `submit --timeout`."""
    context = click.Context(cli, info_name="depalmactl", auto_envvar_prefix="DEPALMA")
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command, context = found, click.Context(found, info_name=word, parent=context)
    for option in command.get_params(context):
        if isinstance(option, click.Option) and option.expose_value and option.allow_from_autoenv:  # not -o and -q
            long = next(text for text in option.opts if text.startswith("--"))
            twin = "_".join(["DEPALMA", *name.split(), long[2:]]).replace("-", "_").upper()
            monkeypatch.setenv(twin, "17")
            assert option.resolve_envvar_value(context) == "17", twin


def test_a_bad_value_in_the_environment_is_refused_as_the_option() -> None:
    result = CliRunner().invoke(cli, ["submit", "--", "true"], env={"DEPALMA_SUBMIT_TIMEOUT": "x"})
    assert result.exit_code == 2
    assert "'x' is not a duration" in result.stderr

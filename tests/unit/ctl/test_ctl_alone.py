"""Commands that need no cluster: contexts, the cluster file, completion, version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from depalma import __version__
from depalma.ctl.main import cli

GOOD = """\
cluster: lab
masters: [{id: m1, host: 10.0.0.1, dir: /var/m1}]
hosts: [{name: h1}, {name: h2}]
"""


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("DEPALMA_MASTERS", "DEPALMA_CONTEXT", "DEPALMA_TOKEN", "DEPALMA_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


def ctl(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def names() -> list[tuple[str, bool]]:
    return [(row["name"], row["current"]) for row in json.loads(ctl("context", "ls", "-o", "json").stdout)]


# ---------------------------------------------------------------- context


def test_contexts_are_added_used_listed_and_removed(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 43)
    assert (
        ctl("context", "add", "lab", "http://10.0.0.1:7070,http://10.0.0.2:7070", "--token-file", str(token)).exit_code
        == 0
    )
    assert ctl("context", "add", "home", "http://127.0.0.1:7070").exit_code == 0
    assert names() == [("home", False), ("lab", True)]
    assert ctl("context", "use", "home").exit_code == 0
    assert names() == [("home", True), ("lab", False)]
    shown = json.loads(ctl("context", "ls", "-o", "json").stdout)[1]
    assert shown["masters"] == ["http://10.0.0.1:7070", "http://10.0.0.2:7070"]
    assert shown["token_file"] == str(token)
    assert ctl("context", "rm", "home").exit_code == 0
    assert names() == [("lab", False)]


def test_context_add_can_make_it_current_and_replaces() -> None:
    ctl("context", "add", "a", "http://h:1")
    ctl("context", "add", "b", "http://h:2", "--use")
    ctl("context", "add", "a", "http://h:3")
    assert names() == [("a", False), ("b", True)]
    assert json.loads(ctl("context", "ls", "-o", "json").stdout)[0]["masters"] == ["http://h:3"]


def test_contexts_are_readable_by_their_user_alone(tmp_path: Path) -> None:
    ctl("context", "add", "a", "http://h:1")
    assert (tmp_path / "config" / "depalma" / "config.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["use", "nosuch"], "no context 'nosuch'"),
        (["rm", "nosuch"], "no context 'nosuch'"),
        (["add", "x", "ftp://h"], "http://HOST:PORT"),
    ],
)
def test_bad_context(words: list[str], said: str) -> None:
    result = ctl("context", *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert names() == []


# ---------------------------------------------------------------- config


def test_config_check_of_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(GOOD)
    assert ctl("config", "check", str(file)).stdout == f"{file}: good (cluster lab: 1 master, 2 hosts)\n"
    assert json.loads(ctl("config", "check", str(file), "-o", "json").stdout)["hosts"] == ["h1", "h2"]
    assert ctl("config", "check", str(file), "-q").stdout == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "colour: red\n", "colour"),
        (GOOD + "settings: {lease_s: soon}\n", "lease_s"),
        (GOOD.replace("id: m1", "id: '-m1'"), "masters.id"),
        ("[", "not YAML"),
    ],
)
def test_config_check_of_a_bad_file_names_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    result = ctl("config", "check", str(file))
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(file) in result.stderr
    assert said in result.stderr


# ---------------------------------------------------------------- version, completion


def test_version() -> None:
    assert ctl("--version").stdout == f"depalmactl {__version__}\n"
    assert json.loads(ctl("version", "-o", "json").stdout)["version"] == __version__
    assert ctl("version", "-o", "name").stdout == f"{__version__}\n"


def test_default_output_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPALMA_OUTPUT", "yaml")
    assert yaml.safe_load(ctl("version").stdout)["version"] == __version__
    assert json.loads(ctl("-o", "json", "version").stdout)["version"] == __version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    result = ctl("completion", shell)
    assert result.exit_code == 0
    assert "_DEPALMACTL_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("depalmactl jo", "jobs"), ("depalmactl code st", "status"), ("depalmactl jobs --wa", "--watch")],
)
def test_completion_completes(typed: str, offered: str, tmp_path: Path) -> None:
    words = typed.split()
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl"],
        env={
            **os.environ, "_DEPALMACTL_COMPLETE": "bash_complete", "_DEPALMA.CTL_COMPLETE": "",
            "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert f"plain,{offered}" in done.stdout.splitlines(), done


def test_bash_accepts_the_script() -> None:
    script = ctl("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=30)


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in which $CTL stands for depalmactl."""
    environment = {**os.environ, "CTL": f"{sys.executable} -m depalma.ctl", **env}
    return subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_output_that_nobody_wants_goes_nowhere(tmp_path: Path) -> None:
    assert ctl("context", "add", "lab", "http://10.0.0.1:7070").exit_code == 0
    done = shell("$CTL context ls >&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_an_error(unbuffered: str) -> None:
    assert ctl("context", "add", "lab", "http://10.0.0.1:7070").exit_code == 0
    done = shell("$CTL context ls >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_input_that_is_closed_is_empty(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 43)
    done = shell(f"$CTL --masters http://127.0.0.1:9 --token-file {token} map 'echo {{}}' <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "internal" not in done.stderr


def test_what_the_locale_has_no_character_for_is_escaped(tmp_path: Path) -> None:
    token = tmp_path / "tok→grün"
    token.write_text("t" * 43)
    assert ctl("context", "add", "lab", "http://10.0.0.1:7070", "--token-file", str(token)).exit_code == 0
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl", "context", "ls"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"tok\\u2192gr\xfcn" in done.stdout

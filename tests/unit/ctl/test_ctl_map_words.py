"""`map`: the argument is one word of the command, whatever is in it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest

from depalma.ctl.submit import arguments_of, map_argv, map_command

#: What would break out of a shell command if it were pasted into it.
NASTY = """a b'"$(echo no)`echo no`;&|<>*?\\ {} \n~"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("printf %s {}", "@"),
        ("printf %s", "@"),
        ('printf %s "{}"', "@"),
        ("printf %s '{}'", "@"),
        ("printf '%s|' {} 'x {} y' \"<{}>\"", "@|x @ y|<@>|"),
        ("printf %s {}.gz", "@.gz"),
        ("printf %s it\\'s-{}", "it's-@"),
        ('printf %s a\\"{}\\"', 'a"@"'),
        ("printf %s {} | tr -d x", "@"),
        ('for i in 1 2; do printf "%s$i" {}; done', "@1@2"),
    ],
)
def test_shell_command(text: str, expected: str) -> None:
    argv = [word.replace("{}", NASTY) for word in map_argv([text])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == expected.replace("@", NASTY)


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["wc"], ["wc", "{}"]),
        (["wc", "-l"], ["wc", "-l", "{}"]),
        (["convert", "{}", "{}.jpg"], ["convert", "{}", "{}.jpg"]),
        (["echo", "a b"], ["echo", "a b", "{}"]),
    ],
)
def test_several_words_need_no_shell(words: list[str], argv: list[str]) -> None:
    assert map_argv(words) == argv


LINES = b"a\x0cb\nc\xe2\x80\xa8d\x85\n\n\xff\r\ne\rf\nlast"
WORDS = ["a\x0cb", "c\u2028d\udc85", "", "\udcff", "e\rf", "last"]


def test_only_a_newline_ends_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of files have form feeds and worse in them: what was one line is one task, byte for byte."""
    context = click.Context(map_command)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    assert arguments_of(context, ()) == WORDS
    file, more = tmp_path / "names", tmp_path / "more"
    file.write_bytes(LINES)
    more.write_bytes(b"x\n")
    assert arguments_of(context, ("::::", str(file), str(more))) == [*WORDS, "x"]
    assert arguments_of(context, (":::", str(file))) == [str(file)]


def test_files_of_arguments_that_are_not_there_are_named(tmp_path: Path) -> None:
    context = click.Context(map_command)
    with pytest.raises(click.UsageError, match="gone: No such file"):
        arguments_of(context, ("::::", str(tmp_path / "gone")))
    (tmp_path / "empty").touch()
    with pytest.raises(click.UsageError, match="nothing to map over"):
        arguments_of(context, ("::::", str(tmp_path / "empty")))

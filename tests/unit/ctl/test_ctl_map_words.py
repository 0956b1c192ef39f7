"""`map`: the argument is one word of the command, whatever is in it."""

from __future__ import annotations

import subprocess

import pytest

from depalma.ctl.submit import map_argv

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

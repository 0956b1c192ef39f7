"""`exec` without a cluster: the way out of a terminal that hangs, and whether there is one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from depalma.ctl.exec import Escape
from depalma.ctl.main import cli


@pytest.mark.parametrize(
    ("typed", "passed", "leaves"),
    [
        (["~."], b"", True),
        (["ls\r", "~", "."], b"ls\r", True),
        (["ls\n~.more"], b"ls\n", True),
        (["~~."], b"~.", False),
        (["~", "~"], b"~", False),
        (["a~."], b"a~.", False),
        (["~x~."], b"~x~.", False),
        (["~\r~."], b"~\r", True),
        (["\x03\r\r~q"], b"\x03\r\r~q", False),
        (["cd ~\r"], b"cd ~\r", False),
    ],
)
def test_a_tilde_and_a_dot_at_the_beginning_of_a_line_leave(typed: list[str], passed: bytes, leaves: bool) -> None:
    escape = Escape()
    out, left = b"", False
    for text in typed:
        piece, left = escape.pass_on(text.encode())
        out += piece
    assert (out, left) == (passed, leaves)


@pytest.mark.parametrize("target", ["x", "4.x", "4/2", "0"])
def test_what_is_no_task_is_a_usage_error(target: str) -> None:
    done = CliRunner().invoke(cli, ["exec", target, "ls"])
    assert done.exit_code == 2
    assert "is not a job or a task (such as 42, 42.7, or last)" in done.stderr

"""What is said between the two halves."""

from __future__ import annotations

from pathlib import Path

import pytest

from depalma.deploy import installing
from depalma.deploy.installing import Facts
from depalma.deploy.orders import ANSWER, Answer, DaemonReport, decode_answer, encode
from depalma.deploy.ssh import Ssh


def test_an_answer_is_found_among_what_login_scripts_print() -> None:
    answer = Answer(version="1", python="3.11", reports=(DaemonReport(role="agent", id="h1", running=True, pid=7),))
    output = b"Welcome!\nno newline at the end\n" + ANSWER.encode() + encode(answer) + b"\nbye\n"

    assert decode_answer(output) == answer
    assert decode_answer(b"Welcome!\n") is None


def test_the_python_of_a_machine_may_have_spaces_in_its_path() -> None:
    output = b"hello\ndepalma-python cpython-312 linux-x86_64 /opt/a b/bin/python3\n"

    assert Facts.read(output) == Facts("cpython-312", "linux-x86_64", "/opt/a b/bin/python3")
    assert Facts.read(b"depalma-python oops\n") is None


def test_scripts_pass_every_login_shell_unchanged(tmp_path: Path) -> None:
    for script in (installing.KEEPER, installing._INSTALL):
        assert not set(script) & set("'\\!\n")
    with pytest.raises(ValueError, match="login shell"):
        Ssh("host", tmp_path).run("echo 'x'")

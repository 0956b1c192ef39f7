"""How jobs and tasks are named."""

from __future__ import annotations

from typing import Any

import click
import pytest

from depalma.ctl import ids


@pytest.mark.parametrize(
    ("text", "expected"), [("42", ("42", None)), ("42.7", ("42", 7)), ("last", ("last", None)), ("last.0", ("last", 0))]
)
def test_target(text: str, expected: ids.Target) -> None:
    assert ids.TARGET.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("42", ["42"]), ("last", ["last"]), ("40-43", ["40", "41", "42", "43"]), ("7-7", ["7"])]
)
def test_jobs(text: str, expected: list[str]) -> None:
    assert ids.JOBS.convert(text, None, None) == expected


@pytest.mark.parametrize("kind", [ids.JOB, ids.JOBS, ids.TARGET])
@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.", ".1", "1.2.3", "9-", "5-4", "1-999999", "latest", "4２"])
def test_refused(kind: click.ParamType[Any], text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert repr(text) in caught.value.format_message()


def test_a_task_where_whole_jobs_are_meant() -> None:
    with pytest.raises(click.BadParameter, match="is a task; this takes whole jobs"):
        ids.JOBS.convert("42.7", None, None)

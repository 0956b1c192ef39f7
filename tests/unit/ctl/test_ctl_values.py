"""Option values: what is understood, and how the rest is refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click
import pytest

from depalma.ctl.alternatives import parse_alternatives
from depalma.ctl.moments import parse_moment, parse_past
from depalma.ctl.spec import build_spec
from depalma.ctl.submit import submit
from depalma.ctl.values import Array, parse_array, parse_duration, parse_env, parse_gpus, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1K", 1024),
        ("500M", 500 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("3TB", 3 << 40),
    ],
)
def test_size(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "2X", "1,5G", "two"])
def test_bad_size_names_the_value(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("0.5", 0.5), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800), ("1h0m5s", 3605),
        ("01:30:00", 5400), ("10:00", 600), ("1-02:03:04", 93784),
    ],
)  # fmt: skip
def test_duration(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "m", "1m1h", "soon", "-5", "1:2:3:4"])
def test_bad_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-99", Array(0, 99, 0)), ("5-5", Array(5, 5, 0)), ("1-100%10", Array(1, 100, 10))]
)
def test_array(text: str, expected: Array) -> None:
    assert parse_array(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("2", 2), ("1.0", 1), ("0.5", 0.5), (".25", 0.25), ("0.990", 0.99)]
)
def test_gpus(text: str, expected: float) -> None:
    assert repr(parse_gpus(text)) == repr(expected)


@pytest.mark.parametrize("text", ["", "half", "1.5", "0.005", "-1", "-0.5", "nan", "inf", "1e9", "1/2"])
def test_bad_gpus_name_the_value_and_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{re.escape(text)}' given; allowed: a whole number up to 100000, or a part"):
        parse_gpus(text)


def test_alternatives() -> None:
    given = parse_alternatives(None, None, ["cpus=16", "gpus=0.5,memory=2G,cpus=0.5", "tape=2"])  # type: ignore[arg-type]
    assert given == [
        {"cpus": 16.0}, {"gpus": 0.5, "memory_bytes": 2 << 30, "cpus": 0.5}, {"resources": {"tape": 2}},
    ]  # fmt: skip
    assert parse_alternatives(None, None, []) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' given; allowed: NAME=VALUE with commas between: cpus, memory, gpus, or a resource"),
        ("cpus", "'cpus' given; allowed: NAME=VALUE"),
        ("cpus=1,", "'cpus=1,' given; allowed: NAME=VALUE"),
        ("cpus=0", "cpus: '0' is not a number above 0"),
        ("cpus=nan", "cpus: 'nan' is not a number above 0"),
        ("gpus=1.5", "gpus: '1.5' given; allowed: a whole number up to"),
        ("memory=x", "memory: 'x' is not a size"),
        ("tape=1.5", "tape: '1.5' is not a number"),
        ("cpus=1,cpus=2", "'cpus=1,cpus=2' says cpus twice"),
        ("memory=1,memory=2", "'memory=1,memory=2' says memory twice"),
    ],
)
def test_bad_alternatives(text: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(words)):
        parse_alternatives(None, None, [text])  # type: ignore[arg-type]


def test_array_counts_both_ends() -> None:
    assert parse_array("5-9").tasks == 5


@pytest.mark.parametrize("text", ["5", "9-5", "0-99%0", "1,2,3", "0-99:2", "a-b", "0-99999999"])
def test_bad_array_names_the_value(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_array(text)
    assert repr(text) in str(caught.value)


def test_env_takes_values_and_copies_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPIED", "here=there")
    assert parse_env(["A=1", "EMPTY=", "B=x=y", "COPIED"]) == {
        "A": "1",
        "EMPTY": "",
        "B": "x=y",
        "COPIED": "here=there",
    }


@pytest.mark.parametrize("entry", ["=1", "a b=1", "1A=2", "NOT_SET_ANYWHERE_AT_ALL"])
def test_bad_env(entry: str) -> None:
    with pytest.raises(ValueError):
        parse_env([entry])


def test_moments() -> None:
    now = datetime(2026, 11, 26, 12, 0, 30).timestamp()
    for text, at in (
        ("+90", datetime(2026, 11, 26, 12, 2)),
        ("+2h", datetime(2026, 11, 26, 14, 0, 30)),
        ("12:01", datetime(2026, 11, 26, 12, 1)),
        ("12:00:30", datetime(2026, 11, 27, 12, 0, 30)),
        ("3:05", datetime(2026, 11, 27, 3, 5)),
        ("2026-12-24T18:00", datetime(2026, 12, 24, 18)),
        ("2026-12-24T18:00+00:00", datetime(2026, 12, 24, 18, tzinfo=UTC)),
    ):
        assert parse_moment(text, now) == at.timestamp(), text
    for text in ("", "tomorrow", "24:00", "+", "+x", "2026-13-01", "12"):
        with pytest.raises(ValueError):
            parse_moment(text, now)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2d", -2 * 86_400),
        ("1h30m", -5_400),
        ("90", -90),
        ("11:00", -3_600),
        ("12:00:01", -86_399),
        ("2026-11-26T11:59", -60),
        ("2026-11-25", -36 * 3_600),
    ],
)
def test_times_that_were(text: str, expected: float) -> None:
    now = datetime(2026, 11, 26, 12).timestamp()
    assert parse_past(text, now) - now == expected


def test_what_is_no_time_that_was() -> None:
    with pytest.raises(ValueError, match="'tomorrow' is not a time that was"):
        parse_past("tomorrow", 0.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--gang"], -1),
        (["--gang", "all"], -1),
        (["--gang", "4"], 4),
        (["--gang", "--array", "0-3"], -1),
    ],
)
def test_gang(arguments: list[str], expected: int | None) -> None:
    """A number of tasks, or all of the job."""
    context = submit.make_context("submit", [*arguments, "--", "true"])
    assert context.params["gang"] == expected
    assert build_spec(["true"], context.params, default_name="x").get("gang") == expected


def test_the_grace_time() -> None:
    context = submit.make_context("submit", ["--grace", "1m", "--", "true"])
    assert build_spec(["true"], context.params, default_name="x")["grace_s"] == 60


@pytest.mark.parametrize("text", ["0", "some", "2.5"])
def test_bad_gang(text: str) -> None:
    """Named, with what is allowed."""
    with pytest.raises(click.BadParameter, match=f"'{text}' is not a number of tasks, or all"):
        submit.make_context("submit", [f"--gang={text}", "--", "true"])

"""Formats of stdout: aligned columns for people, values for programs."""

from __future__ import annotations

import json

import pytest
import yaml

from depalma.ctl.output import Column, fitted, plain_table, show_rows, show_value
from depalma.ctl.session import Session

ROWS = [{"id": 1, "state": "running", "name": "ä" * 100}, {"id": 1000, "state": "failed", "name": "x\x1b[1m"}]
COLUMNS = (
    Column("ID", lambda row: row["id"], right=True),
    Column("STATE", lambda row: row["state"]),
    Column("NAME", lambda row: row["name"]),
    Column("MORE", lambda row: None, wide=True),
)


def shown(output: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what is printed in the format."""
    show_rows(Session(output=output), ROWS, COLUMNS, key="id")
    return capsys.readouterr().out


def test_piped_table_is_aligned_whole_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown("table", capsys).splitlines()
    assert lines[0] == "  ID  STATE    NAME"
    assert lines[1] == f"   1  running  {'ä' * 100}"
    assert lines[2] == "1000  failed   x\\x1b[1m"


def test_wide_has_further_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("wide", capsys).splitlines()[0].split() == ["ID", "STATE", "NAME", "MORE"]


def test_formats_for_programs_carry_the_rows_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(shown("json", capsys)) == ROWS
    assert [json.loads(line) for line in shown("jsonl", capsys).splitlines()] == ROWS
    assert yaml.safe_load(shown("yaml", capsys)) == ROWS
    assert shown("name", capsys) == "1\n1000\n"


def test_no_rows_are_still_one_json_value(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(Session(output="json"), [], COLUMNS, key="id")
    assert json.loads(capsys.readouterr().out) == []


def test_one_value(capsys: pytest.CaptureFixture[str]) -> None:
    show_value(Session(), ROWS[0], [("Job", 1), ("Long name", None)], key="id")
    assert capsys.readouterr().out == "Job        1\nLong name  -\n"
    show_value(Session(output="json"), ROWS[0], [], key="id")
    assert json.loads(capsys.readouterr().out) == ROWS[0]


def test_plain_table_without_rows_is_its_heading() -> None:
    assert plain_table(["A", "B"], [], [False, True]) == ["A  B"]


# ---------------------------------------------------------------- on a terminal

CUTTABLE = (*COLUMNS[:2], Column("NAME", lambda row: row["name"], cut=True), Column("WHY", lambda row: "", cut=True))


@pytest.mark.parametrize(
    ("room", "expected"),
    [(200, [4, 9, 60, 30]), (80, [4, 9, 31, 30]), (60, [4, 9, 20, 21]), (20, [4, 9, 8, 8])],
)
def test_what_may_be_cut_gives_way_and_the_widest_first(room: int, expected: list[int]) -> None:
    assert fitted([4, 9, 60, 30], CUTTABLE, room) == expected


def test_wide_characters_count_double() -> None:
    lines = plain_table(["A", "B"], [["東京", "x"], ["abcd", "y"]], [False, False])
    assert lines == ["A     B", "東京  x", "abcd  y"]


def test_states_are_coloured_and_the_heading_is_bold() -> None:
    lines = plain_table(["ID", "STATE"], [["1", "failed"], ["2", "odd"]], [True, False], {1: {"failed": "red"}})
    assert lines == ["\x1b[1mID  STATE\x1b[0m", " 1  \x1b[31mfailed\x1b[0m", " 2  odd"]

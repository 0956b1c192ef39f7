"""Prints data on stdout in the format asked for: aligned columns for people, one value for programs.

Tables that are piped are plain columns without truncation; on a terminal they fit its width.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from depalma.ctl.session import Session
from depalma.ctl.wording import clean

Row = Mapping[str, Any]
#: A column that may be shortened keeps so many characters.
_NARROWEST = 8

#: Colours of states on a terminal; everything else is the terminal's own colour.
STATE_STYLES = {
    "ok": "green", "warn": "yellow", "fail": "red",
    "succeeded": "green", "up": "green", "leader": "green", "running": "cyan", "assigned": "cyan",
    "failed": "red", "timed_out": "red", "lost": "red", "kicked": "red", "unreachable": "red", "down": "red",
    "suspect": "yellow", "lagging": "yellow", "draining": "yellow", "drained": "yellow", "owner": "yellow",
    "cancelled": "yellow", "candidate": "yellow",
    "queued": "blue", "held": "magenta", "blocked": "magenta", "suspended": "magenta",
}  # fmt: skip


class Column(NamedTuple):
    """One column of a table: its heading and how a row's cell is made."""

    heading: str
    cell: Callable[[Row], object]
    right: bool = False
    wide: bool = False  #: only with `-o wide`
    cut: bool = False  #: may be shortened to fit a terminal


def show_rows(session: Session, rows: Sequence[Row], columns: Sequence[Column], *, key: str) -> None:
    """Prints a list; `key` is the field that `-o name` prints."""
    if session.output == "json":
        print_json(list(rows))
    elif session.output == "jsonl":
        for row in rows:
            print_json(row)
    elif session.output == "yaml":
        print_yaml(list(rows))
    elif session.output == "name":
        _print_lines(clean(str(row[key])) for row in rows)
    else:
        shown = [column for column in columns if session.output == "wide" or not column.wide]
        _print_table(session, shown, [[_text(column.cell(row)) for column in shown] for row in rows])


def show_value(session: Session, value: Row, lines: Sequence[tuple[str, object]], *, key: str) -> None:
    """Prints one thing: `lines` are heading and text for people, `value` is for programs."""
    if session.output in ("json", "jsonl"):
        print_json(value)
    elif session.output == "yaml":
        print_yaml(value)
    elif session.output == "name":
        click.echo(clean(str(value[key])))
    else:
        width = max((len(heading) for heading, _ in lines), default=0)
        _print_lines(f"{heading:<{width}}  {_text(text)}".rstrip() for heading, text in lines)


def print_json(value: object) -> None:
    """Prints one JSON value on one line, and lets it out at once."""
    click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def print_yaml(value: object) -> None:
    """Prints one YAML document."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    click.echo(yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True), nl=False)


def _print_lines(lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    if text:
        click.echo(text, nl=False)


def plain_table(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    right: Sequence[bool],
    styles: Mapping[int, Mapping[str, str]] | None = None,
) -> list[str]:
    """Returns the lines of a table with columns aligned by spaces, nothing cut.

    `styles`: the colour of each text of a column, by its place; with it the heading is bold.
    """
    lines = [list(headings), *[list(row) for row in cells]]
    widths = [max(cell_width(line[position]) for line in lines) for position in range(len(headings))]
    made = []
    for line in lines:
        filled = list(map(_filled, line, widths, right))
        for place, colors in (styles or {}).items():
            if line[place] in colors:
                filled[place] = click.style(filled[place], fg=colors[line[place]])
        made.append("  ".join(filled).rstrip())
    return made if styles is None else [click.style(made[0], bold=True), *made[1:]]


def cell_width(text: str) -> int:
    """Returns how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _filled(text: str, width: int, to_right: bool) -> str:
    fill = " " * (width - cell_width(text))
    return fill + text if to_right else text + fill


def _print_table(session: Session, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    headings, right = [column.heading for column in columns], [column.right for column in columns]
    if not sys.stdout.isatty():
        _print_lines(plain_table(headings, cells, right))
        return
    widths = fitted([max(map(cell_width, column)) for column in zip(headings, *cells, strict=True)], columns, _room())
    short = [[_cut(text, width) for text, width in zip(row, widths, strict=True)] for row in cells]
    styles = {place: STATE_STYLES for place, heading in enumerate(headings) if heading in ("STATE", "ROLE")}
    _print_lines(plain_table(headings, short, right, styles if session.color else None))


def _room() -> int:
    """Returns the width of the terminal."""
    wanted = os.environ.get("COLUMNS", "")
    try:
        return int(wanted) if wanted.isdigit() else os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 80


def fitted(widths: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """Returns widths that fit the room: of the columns that may be cut, the widest gives way first.

    Ids, states and numbers stay whole whatever the room: they are what one reads and types next.
    """
    found = list(widths)
    excess = sum(found) + 2 * (len(found) - 1) - room
    while excess > 0:
        cuttable = [place for place, column in enumerate(columns) if column.cut and found[place] > _NARROWEST]
        if not cuttable:
            break
        found[max(cuttable, key=found.__getitem__)] -= 1
        excess -= 1
    return found


def _cut(text: str, width: int) -> str:
    if cell_width(text) <= width:
        return text
    while cell_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))

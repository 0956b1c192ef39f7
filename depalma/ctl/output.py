"""Prints data on stdout in the format asked for: aligned columns for people, one value for programs.

Tables that are piped are plain columns without truncation; on a terminal `rich` fits them to its width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from depalma.ctl.session import Session
from depalma.ctl.wording import clean

Row = Mapping[str, Any]

#: Colours of states on a terminal; everything else is the terminal's own colour.
STATE_STYLES = {
    "succeeded": "green", "up": "green", "leader": "green", "running": "cyan", "assigned": "cyan",
    "failed": "red", "timed_out": "red", "lost": "red", "kicked": "red", "unreachable": "red", "down": "red",
    "suspect": "yellow", "lagging": "yellow", "draining": "yellow", "cancelled": "yellow", "candidate": "yellow",
    "queued": "blue", "held": "magenta", "blocked": "magenta", "suspended": "magenta",
}  # fmt: skip


class Column(NamedTuple):
    """One column of a table: its heading and how a row's cell is made."""

    heading: str
    cell: Callable[[Row], object]
    right: bool = False
    wide: bool = False  #: only with `-o wide`


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


def plain_table(headings: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Returns the lines of a table with columns aligned by spaces, nothing cut."""
    lines = [list(headings), *[list(row) for row in cells]]
    widths = [max(cell_width(line[position]) for line in lines) for position in range(len(headings))]
    return ["  ".join(map(_filled, line, widths, right)).rstrip() for line in lines]


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
    if sys.stdout.isatty():
        _print_rich(session, columns, cells)
        return
    _print_lines(plain_table([c.heading for c in columns], cells, [c.right for c in columns]))


def _print_rich(session: Session, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for position, column in enumerate(columns):
        # Ids stay whole whatever the width: they are what one types next.
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=max((len(row[0]) for row in cells), default=0) if position == 0 else None,
        )
    for row in cells:
        table.add_row(
            *[
                Text(text, style=STATE_STYLES.get(text, "") if column.heading in ("STATE", "ROLE") else "")
                for text, column in zip(row, columns, strict=True)
            ]
        )
    Console(no_color=not session.color, highlight=False).print(table)


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(str(value))

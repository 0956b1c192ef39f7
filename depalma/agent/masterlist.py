"""The masters that a leader has named, kept in the agent's folder: its cluster file may be older than the cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

NAME = "masters"


def read(folder: Path) -> list[str]:
    """Returns base URLs; none if nothing was kept."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / NAME).read_text().split()
    return []


def write(folder: Path, urls: Iterable[str]) -> None:
    """Replaces what was kept. Errors: OSError."""
    temporary = folder / f".{NAME}.new"
    temporary.write_text("".join(f"{url}\n" for url in urls))
    os.replace(temporary, folder / NAME)

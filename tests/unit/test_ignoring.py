"""Patterns of an ignore file mean what they mean to Git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from depalma.ignoring import JUNK, Ignore

PATHS = (
    "a.py", "b.txt", "data/x.bin", "data/deep/x.bin", "data/keep.bin", "build/out.o", "src/build/out.o", "src/a.txt",
    "#odd", "!odd", "x[1].py", "x1.py", "sub/file", "sub/other/file", "a.b.c", ".hidden", "src/.hidden", "m.pyc",
)  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        "*.bin",
        "/data/*.bin",
        "data/**/x.bin",
        "data/\n",
        "build/",
        "/build",
        "*.bin\n!data/keep.bin",
        "**/deep",
        "data/**",
        "src/*.txt\n# a comment\n\n",
        "\\#odd\n\\!odd",
        "x[0-9].py",
        "x[!2].py",
        "x?.py",
        "sub/*",
        "sub/*/file",
        "*\n!*.py",
        "!.hidden",
        "a.?.c",
        "**/file",
    ],
)
def test_git_leaves_out_the_same(tmp_path: Path, lines: str) -> None:
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / ".gitignore").write_text("\n".join([*JUNK, *lines.splitlines()]))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    command = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "core.quotePath=off",
        "ls-files",
        "-oz",
        "--exclude-per-directory=.gitignore",
    ]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    by_git = set(filter(None, listed.split("\0")))

    ignore = Ignore(lines.splitlines())
    by_us = {path for path in PATHS if not any(ignored(ignore, path))}
    assert by_us == by_git - {".gitignore"}


def ignored(ignore: Ignore, path: str) -> Iterator[bool]:
    """Yields whether each folder above it, and then itself, is left out."""
    for parent in list(Path(path).parents)[:-1]:
        yield ignore.leaves_out(str(parent), is_folder=True)
    yield ignore.leaves_out(path, is_folder=False)

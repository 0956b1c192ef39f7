"""Which files of a folder are left out of its archive: `.depalmaignore`, read as Git reads `.gitignore`. [pure]

One pattern a line; `#` begins a comment; `!` takes back what earlier lines left out; a slash before the end anchors the
pattern at the folder, without one it is for a name at any depth; a slash at the end means folders only; `*`, `?` and
`[…]` stop at slashes, `**` does not. The last pattern that fits decides. What lies in a folder that is left out is
never looked at, so it cannot be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Left out always, unless the file takes it back.
JUNK = ("__pycache__/", "*.pyc", "*.pyo", "*.egg-info", ".*")


class Ignore:
    """The patterns of one folder."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in (*JUNK, *lines) if (rule := _rule(line)) is not None]

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """Returns whether the path, relative to the folder, is left out."""
        left_out = False
        for pattern, only_folders, leaves_out in self._rules:
            if (is_folder or not only_folders) and pattern.fullmatch(path):
                left_out = leaves_out
        return left_out


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    leaves_out = not line.startswith("!")
    if not leaves_out or line.startswith(("\\#", "\\!")):
        line = line[1:]
    only_folders = line.endswith("/")
    line = line.rstrip("/")
    if not line:
        return None
    anchored = "/" in line
    regex = ("" if anchored else "(?:.*/)?") + _translated(line.lstrip("/"))
    return re.compile(regex, re.DOTALL), only_folders, leaves_out


def _translated(pattern: str) -> str:
    """Returns the regular expression of a pattern with slashes."""
    found = []
    place = 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            found.append("(?:.*/)?")
            place += 3
        elif pattern.startswith("**", place):
            found.append(".*")
            place += 2
        elif pattern[place] == "[" and (end := pattern.find("]", place + 2)) > 0:
            inside = pattern[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found.append(f"(?!/)[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            place = end + 1
        else:
            sign = pattern[place]
            found.append({"*": "[^/]*", "?": "[^/]"}.get(sign) or re.escape(sign))
            place += 1
    return "".join(found)

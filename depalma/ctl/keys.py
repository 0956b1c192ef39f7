"""Single key presses from a terminal, without Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Any

#: Longer names of what terminals send for the arrow keys.
_NAMES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "\x03": "ctrl-c", "\x1b": "escape"}


class Keys:
    """Within `with`, the terminal hands over each key at once and echoes none; afterwards it is as it was.

    Where stdin is no terminal there are no keys, and waiting for one is just waiting.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] = []

    def __enter__(self) -> Keys:
        if self._terminal >= 0:
            self._before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal >= 0:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)

    def wait(self, timeout_s: float) -> str:
        """Returns the next key, or nothing after the time."""
        watched = [self._terminal] if self._terminal >= 0 else []
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if not ready:
            return ""
        text = os.read(self._terminal, 16).decode("utf-8", "replace")
        return _NAMES.get(text, text[:1])

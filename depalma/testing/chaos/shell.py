"""Running the system's tools."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class ToolFailed(Exception):
    """A tool ended with an error; the message holds its words."""


def run(*argv: str, text: str = "", check: bool = True, timeout_s: float = 30.0) -> str:
    """Returns what the tool printed. Errors: ToolFailed."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and done.returncode:
        raise ToolFailed(f"{' '.join(argv)}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def run_all(commands: Sequence[str]) -> None:
    """Runs `ip` commands, one after the other."""
    for command in commands:
        run("ip", *command.split())

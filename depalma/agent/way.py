"""The way of a process to its program: folder, files, search. The monitor goes it, unless that may take for ever; then
a process of its own does (`entering.py`). Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from depalma.agent.entering import Program, SpawnError, Words, append_to, enter
from depalma.agent.mounts import Mounts

_RESOLVED_FOR_S = 2.0


class Wanted(NamedTuple):
    """What a process is to be."""

    argv: list[bytes]
    environment: dict[bytes, bytes]
    cwd: str
    checked: bool  #: a user named the folder
    streams: tuple[int | str, ...]  #: descriptors for 0, 1, 2, …; a text is a file to append to
    terminal: str  #: takes the place of the first three
    bound: Callable[[list[bytes], list[int]], list[bytes]] | None  #: puts a command line (and streams) under limits


class Way:
    """What is known of ways that were gone before, and of those that may not be."""

    def __init__(self) -> None:
        self.mounts = Mounts()
        self._resolved: dict[tuple[bytes, bytes], tuple[bytes, float]] = {}

    def forget(self) -> None:
        """Has every program be looked for again."""
        self._resolved.clear()

    def go(self, wanted: Wanted, opened: list[int], words: Words | None) -> Program:
        """Enters the folder, opens the files, finds the program. Errors: OSError, SpawnError; MayHang, before it
        touches what may wait for ever."""
        if wanted.checked:
            self.mounts.check(wanted.cwd)
        if words is not None:
            words.say(f"entering the working folder {wanted.cwd}")
        enter(wanted.cwd)
        streams: list[int] = []
        for stream in wanted.streams:
            if isinstance(stream, str):
                self.mounts.check(os.path.join(wanted.cwd or "/", stream))
                if words is not None:
                    words.say(f"opening {stream}")
                stream = append_to(stream, opened)
            streams.append(stream)
        if wanted.terminal and words is not None:
            # Opened by the leader of a new session: so it is its controlling terminal.
            streams = [os.open(wanted.terminal, os.O_RDWR)] * 3
        argv = wanted.argv
        path = self._resolve(argv[0], wanted.environment.get(b"PATH", os.defpath.encode()), wanted.cwd, words)
        if wanted.bound is not None:
            argv = wanted.bound([path, *argv[1:]], streams[1:3])
            path = argv[0]
        return Program(path, argv, wanted.environment, streams)

    def _resolve(self, name: bytes, path: bytes, cwd: str, words: Words | None) -> bytes:
        """Returns the file that a shell would run; remembered for a moment. Errors: SpawnError, MayHang."""
        if b"/" in name:
            shown = os.fsdecode(name)
            self.mounts.check_program(shown if shown[0] == "/" else os.path.join(cwd or "/", shown))
            return name
        known = self._resolved.get((name, path))
        now = time.monotonic()
        if known is not None and now < known[1]:
            self.mounts.check_program(os.fsdecode(known[0]))
            return known[0]
        denied = False
        for folder in path.split(b":"):
            candidate = (folder or b".") + b"/" + name
            self.mounts.check(os.path.join(cwd or "/", os.fsdecode(candidate)))
            if words is not None:
                words.say(f"looking for {os.fsdecode(candidate)}")
            if os.path.isfile(candidate):
                if os.access(candidate, os.X_OK):
                    self.mounts.check_program(os.path.join(cwd or "/", os.fsdecode(candidate)))
                    if not folder.startswith(b"/"):
                        return candidate
                    self._resolved[(name, path)] = (candidate, now + _RESOLVED_FOR_S)
                    return candidate
                denied = True
        shown = os.fsdecode(name)
        if denied:
            raise SpawnError(f"{shown}: permission denied", 126)
        raise SpawnError(f"{shown}: command not found", 127)

"""The other end of a monitor, for its tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import depalma.monitor
from depalma.agent.channel import Channel
from depalma.monitor import boottime

LIMIT = 1000
PATIENCE_S = 30.0


class Supervised:
    """The other end of a monitor: what an agent says and hears."""

    limit_bytes = LIMIT

    def __init__(self, root: Path) -> None:
        self.root = root
        near, far = socket.socketpair()
        self.lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        argv = [sys.executable, "-I", "-S", depalma.monitor.__file__, str(far.fileno()), str(self.lock), str(root)]
        self.process = subprocess.Popen(
            [*argv, str(LIMIT)], pass_fds=(far.fileno(), self.lock), stderr=subprocess.PIPE, start_new_session=True
        )
        far.close()
        os.close(self.lock)
        self.channel = Channel(near)
        self.heard: list[tuple[Any, ...]] = []
        self.exits: dict[int, tuple[Any, ...]] = {}
        environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
        self.say(("environment", 1, environment))

    def say(self, *messages: tuple[Any, ...], fd: int = -1) -> None:
        for message in messages:
            self.channel.queue(message, fd)
        assert self.channel.flush()

    def lease(self, seconds: float = 60.0) -> None:
        self.say(("lease", boottime() + seconds))

    def spawn(self, key: int, *argv: str, slot: int = 0, cwd: str = "", stdin: bytes | str = b"", **extra: str) -> None:
        files = (f"{self.root}/output/{key}.out", f"{self.root}/output/{key}.err")
        variables = {os.fsencode(name): os.fsencode(value) for name, value in extra.items()}
        words, rest = [os.fsencode(word) for word in argv], (slot, False, (), ("", ""), stdin)
        self.say(("spawn", key, words, 1, variables, cwd, files, *rest))

    def listen(self, look: Callable[[], Any], what: str) -> Any:
        """Returns the first true value of `look` after each message. Errors: AssertionError."""
        end = time.monotonic() + PATIENCE_S
        while not (seen := look()):
            left_s = end - time.monotonic()
            assert left_s > 0, f"after {PATIENCE_S} s no {what}; heard {self.heard[-5:]}, exits {self.exits}"
            if select.select([self.channel.sock], [], [], min(0.02, left_s))[0]:
                for message in self.channel.receive():
                    self.heard.append(message)
                    if message[0] == "exits":
                        self.exits.update({ended[0]: ended for ended in message[1]})
        return seen

    def exit(self, key: int) -> tuple[int, str]:
        """Returns exit code (negative: signal) and error of a process, once it has ended."""
        ended = self.listen(lambda: self.exits.get(key), f"end of {key}")
        return os.waitstatus_to_exitcode(ended[1]), ended[4]

    def below(self) -> list[psutil.Process]:
        living = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    living.append(child)
        return living

    def sleeping(self) -> int:
        """Returns how many processes below it are `sleep`."""
        names = []
        for child in self.below():
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(child.name())
        return names.count("sleep")

    def close(self) -> None:
        self.channel.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stderr is not None:
                self.process.stderr.close()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    try:
        supervised.listen(lambda: supervised.heard, "its first word")
        yield supervised
    finally:
        supervised.close()


@pytest.fixture
def supervise() -> type[Supervised]:
    """The class, for tests that need several."""
    return Supervised

"""One machine as `ssh` reaches it: the system's own ssh with the user's configuration, one connection for all calls."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct

from depalma.errors import DepalmaError

CONNECT_S = 10
#: The connection outlives a depalmactl that was killed by so much.
PERSIST_S = 60
#: The path of a socket has room for 107 bytes, of which ssh needs 75 for its own part.
_LONGEST_FOLDER = 30
#: What ssh itself returns when there was no conversation.
_NO_CONVERSATION = 255


class HostFailed(DepalmaError):
    """Nothing can be done on a machine; the message says why."""


class Done(Struct, frozen=True):
    """How a program on the machine ended."""

    code: int
    output: bytes
    errors: str

    def last_error(self) -> str:
        """Returns the last line it wrote on stderr."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {self.code}"


class Sockets:
    """The folder of control sockets, short as their paths must be. Use it as a context."""

    def __enter__(self) -> Path:
        usual = tempfile.gettempdir()
        place = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
        self._folder = tempfile.TemporaryDirectory(prefix="dpc-", dir=place)
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


class Ssh:
    """The way to one machine."""

    def __init__(self, target: str, sockets: Path, options: Sequence[str] = ()) -> None:
        self.target = target
        settings = {
            "BatchMode": "yes",  # a question would wait for ever
            "ConnectTimeout": CONNECT_S,
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 3,
            "ControlMaster": "auto",
            "ControlPath": sockets / "%C",
            "ControlPersist": PERSIST_S,
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",  # a forwarded port may be in use by the user's own session
            "RemoteCommand": "none",
            "LogLevel": "ERROR",
        }
        pairs = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self._words = ["ssh", "-T", *options, *pairs]

    def run(self, script: str, *arguments: str, stdin: bytes | IO[bytes] = b"", timeout_s: float = 60.0) -> Done:
        """Returns how `sh -c SCRIPT` ended there. Errors: HostFailed if ssh could not reach the machine, or in time.

        The script holds no quote, backslash, exclamation mark or line end: so it passes every login shell unchanged.
        """
        if any(character in script for character in "'\\!\n"):
            raise ValueError(f"a script that a login shell might change: {script}")
        command = shlex.join(["sh", "-c", script, "depalma", *arguments])
        given: dict[str, object] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        try:
            done = subprocess.run(  # type: ignore[call-overload]
                [*self._words, "--", self.target, command], capture_output=True, timeout=timeout_s, check=False, **given
            )
        except subprocess.TimeoutExpired:
            raise HostFailed(f"no answer within {timeout_s:g} s") from None
        except FileNotFoundError:
            raise HostFailed("there is no ssh here: install the OpenSSH client") from None
        result = Done(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
        if result.code == _NO_CONVERSATION:
            raise HostFailed(f"ssh: {result.last_error().removeprefix('ssh: ')}")
        return result

    def close(self) -> None:
        """Ends the connection."""
        subprocess.run([*self._words, "-O", "exit", "--", self.target], capture_output=True, check=False)

"""The owner's switch: a file in the agent's folder, which the agent looks at all the time.

It needs no master, holds over restarts of the agent and of the machine, and is there for an agent that does not run
yet. A file that cannot be read means a pause: the owner comes first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from depalma.ownership import Pause

FILE = "pause"
_NAME_FILE = "host"
_MAX_BYTES = 10_000


def begin(folder: Path, pause: Pause) -> None:
    """Writes it down, in one step. Errors: OSError."""
    new = folder / f"{FILE}.{os.getpid()}"
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, msgspec.json.encode(pause))
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rename(new, folder / FILE)


def end(folder: Path) -> bool:
    """Takes it back. Returns whether there was one. Errors: OSError."""
    try:
        os.unlink(folder / FILE)
    except FileNotFoundError:
        return False
    return True


class Place(NamedTuple):
    """The folder of an agent on this machine."""

    host: str
    folder: Path
    runs: bool


def name_folder(folder: Path, host: str) -> None:
    """Notes whose folder it is, for `places`. Errors: OSError."""
    (folder / _NAME_FILE).write_text(host)


def places() -> list[Place]:
    """Returns the agents of this machine: those that run, wherever their folders are, and those of this user."""
    running = {folder for folder in map(_folder_of, Path("/proc").glob("[0-9]*")) if folder is not None}
    usual = set(Path("~/.local/state/depalma").expanduser().glob("agent-*"))
    return sorted(Place(_host_of(folder), folder, folder in running) for folder in running | usual if folder.is_dir())


def place(folder: Path) -> Place:
    """Returns the agent of a folder."""
    return Place(
        _host_of(folder), folder, any(_folder_of(process) == folder for process in Path("/proc").glob("[0-9]*"))
    )


def _folder_of(process: Path) -> Path | None:
    """Returns the folder that a process guards, if it is the monitor of an agent."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if len(words) < 8 or not words[3].endswith(b"depalma/monitor.py"):
        return None
    return Path(os.fsdecode(words[6]))


def _host_of(folder: Path) -> str:
    try:
        return (folder / _NAME_FILE).read_text().strip()
    except OSError:
        return folder.name.removeprefix("agent-")


class Switch:
    """Reads the file, and only when it is another one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._known: tuple[int, int, int] | None = None
        self._pause: Pause | None = None

    def read(self) -> Pause | None:
        """Returns the pause that is written down, also one whose time is over; None if there is none."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._known = self._pause = None
            return None
        except OSError as error:
            return Pause(0.0, None, f"a file that cannot be read ({error.strerror})")
        known = found.st_ino, found.st_mtime_ns, found.st_size
        if known != self._known:
            self._pause = self._decode(found.st_mtime)
            self._known = known
        return self._pause

    def _decode(self, at: float) -> Pause:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=Pause)
        except FileNotFoundError:
            return Pause(at)  # just taken back: the next look knows
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            return Pause(at, None, f"a file that is none ({error})")

"""Which paths may make a call wait for ever: those that lead over a file system with a server behind it.

The monitor asks here before it touches what a user names. Found out without touching it: the kernel's table of mounts
says where such file systems begin, and a path is followed one name at a time and not over that border. What passes
cannot wait for a server. What does not pass is left to a process of its own (`entering.py`). Standard library only.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import time
from _thread import allocate_lock

#: File systems that answer from this machine; anything else may wait, also what is mounted when somebody looks (autofs)
#: and what leads elsewhere (the links in /proc).
_LOCAL = frozenset(
    [
        "bcachefs", "btrfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4",
        "f2fs", "hugetlbfs", "iso9660", "jfs", "mqueue", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs",
        "securityfs", "squashfs", "sysfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
    ]
)  # fmt: skip
#: For so long it is believed that no link on a path has changed.
_KNOWN_FOR_S = 2.0
_KNOWN = 1000
_LINKS = 40  #: the kernel follows no more either
_INTERPRETERS = 5
_HEAD_BYTES = 4096
_PT_INTERP = 3


class MayHang(Exception):
    """Whoever touches the path may wait for ever."""


class Mounts:
    """What this process sees."""

    def __init__(self) -> None:
        self._foreign: frozenset[str] = frozenset(["/"])
        self._known: dict[tuple[str, bool], tuple[bool, float]] = {}
        self._careful = True
        self._poller: select.poll | None = None
        try:
            self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # nothing is known of any path
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLPRI)
        self._read()

    def trust(self) -> None:
        """From now on nothing is checked: this process may wait."""
        self._careful = False

    def check(self, path: str) -> None:
        """Errors: MayHang, if the path (a relative one: always) leads to where somebody may wait for ever."""
        if self._careful and self._hangs(path, program=False):
            raise MayHang(path)

    def check_program(self, path: str) -> None:
        """Errors: MayHang, if the program, or what the kernel loads to run it, is in such a place."""
        if self._careful and self._hangs(path, program=True):
            raise MayHang(path)

    def begins_at(self, path: str) -> bool:
        """Returns whether such a file system is mounted just there; links are not followed."""
        self._renew()
        return path in self._foreign

    def _hangs(self, path: str, *, program: bool) -> bool:
        self._renew()
        now = time.monotonic()
        known = self._known.get((path, program))
        if known is not None and now < known[1]:
            return known[0]
        if len(self._known) >= _KNOWN:
            self._known.clear()
        found = self._loads_from_afar(path, 0) if program else self._leads_away(path)
        self._known[path, program] = found, now + _KNOWN_FOR_S
        return found

    def _renew(self) -> None:
        """Reads the table again if it has changed; the kernel says so."""
        if self._poller is not None and self._poller.poll(0):
            self._read()

    def _read(self) -> None:
        self._known.clear()
        data, at = b"", 0
        while part := os.pread(self._fd, 1 << 20, at):
            data, at = data + part, at + len(part)
        foreign = set()
        for line in data.splitlines():
            words = line.split(b" ")
            kind = os.fsdecode(words[words.index(b"-") + 1])
            if kind not in _LOCAL:
                # One that others are mounted over counts as well: it costs a process, and not the host.
                foreign.add(os.fsdecode(_unescaped(words[4])))
        self._foreign = frozenset(foreign)

    def _leads_away(self, path: str) -> bool:
        here, links = "/", 0
        if not path.startswith("/") or here in self._foreign:
            return True
        pending = path.split("/")[::-1]
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = os.path.dirname(here)
                continue
            below = f"{here.rstrip('/')}/{name}"
            if below in self._foreign:
                return True
            try:
                target = os.readlink(below)
            except OSError as error:
                if error.errno == errno.EINVAL:  # no link
                    here = below
                    continue
                return False  # it is not there, or not to be seen: whoever touches it is told at once
            except ValueError:  # a zero byte
                return False
            links += 1
            if links > _LINKS:
                return False
            if target.startswith("/"):
                here = "/"
            pending += target.split("/")[::-1]
        return False

    def _loads_from_afar(self, path: str, depth: int) -> bool:
        """Also true where it is not known: what cannot be read, what is no program, what others hold (a lease)."""
        if self._leads_away(path) or depth > _INTERPRETERS:
            return True
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return False  # refused at once
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        try:
            interpreter = _interpreter(fd)
        except (OSError, ValueError, IndexError, struct.error):
            return True
        finally:
            os.close(fd)
        return interpreter != "" and self._loads_from_afar(interpreter, depth + 1)


_shared: Mounts | None = None
_turn = allocate_lock()


def begins_at(path: str) -> bool:
    """Returns whether a file system that may hang is mounted just there; links are not followed. Any thread may ask."""
    global _shared
    with _turn:
        if _shared is None:
            _shared = Mounts()
        return _shared.begins_at(path)


def _interpreter(fd: int) -> str:
    """Returns what the kernel loads to run a program; empty if nothing. Errors: as for damaged files."""
    head = os.pread(fd, _HEAD_BYTES, 0)
    if head[:2] == b"#!":
        return os.fsdecode(head[2:].split(b"\n", 1)[0].split()[0]) if head[2:].split(b"\n", 1)[0].split() else ""
    if head[:4] != b"\x7fELF":
        raise ValueError("neither a script nor a program of this system")
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    if wide:
        (begin,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
    else:
        (begin,) = struct.unpack_from(f"{order}I", head, 28)
        size, count = struct.unpack_from(f"{order}HH", head, 42)
    table = os.pread(fd, size * count, begin)
    for at in range(0, size * count, size):
        if struct.unpack_from(f"{order}I", table, at)[0] == _PT_INTERP:
            where = struct.unpack_from(f"{order}Q16xQ" if wide else f"{order}I8xI", table, at + (8 if wide else 4))
            return os.fsdecode(os.pread(fd, min(where[1], _HEAD_BYTES), where[0]).rstrip(b"\0"))
    return ""


def _unescaped(path: bytes) -> bytes:
    r"""Returns a path as it is: the table says `\040` for a space."""
    first, *rest = path.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)

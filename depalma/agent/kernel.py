"""What the kernel's files say about the whole host, each read in one piece. Everything counts up from boot.

What a file does not say, or a kernel does not have, counts as zero.
"""

from __future__ import annotations

import os
from functools import cache

from depalma.agent.proctree import descendants, read

_SECTOR_BYTES = 512  # of /proc/diskstats, whatever the disk's own are


def cpu_ticks() -> tuple[int, int]:
    """Returns ticks of all CPUs together: busy ones, and all."""
    line = read("/proc/stat").split(b"\n", 1)[0].split()
    ticks = [int(word) for word in line[1:9]]  # guests count as user time already
    if len(ticks) < 5:
        return 0, 0
    total = sum(ticks)
    return total - ticks[3] - ticks[4], total  # idle, and idle with a disk to wait for


def cpu_ticks_below(pid: int) -> int:
    """Returns the ticks of everything below a process, the dead ones that were waited for included."""
    own = _stat_ticks(pid)
    return own[1] + sum(sum(_stat_ticks(child)) for child, _ in descendants(pid))


def _stat_ticks(pid: int) -> tuple[int, int]:
    data = read(f"/proc/{pid}/stat")
    words = data[data.rfind(b")") + 2 :].split()[11:15]
    if len(words) < 4:
        return 0, 0
    return int(words[0]) + int(words[1]), int(words[2]) + int(words[3])


def memory_bytes() -> dict[bytes, int]:
    """Returns the amounts of /proc/meminfo."""
    found = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, amount = line.partition(b":")
        words = amount.split()
        if len(words) == 2:
            found[name] = int(words[0]) * 1024
    return found


def disk_bytes() -> tuple[int, int]:
    """Returns the bytes read from and written to disks: of hardware only, or a write to a volume would count twice."""
    got = put = 0
    for line in read("/proc/diskstats").splitlines():
        words = line.split()
        if len(words) > 9 and _is_hardware("/sys/block", words[2].decode()):
            got += int(words[5]) * _SECTOR_BYTES
            put += int(words[9]) * _SECTOR_BYTES
    return got, put


def network_bytes() -> tuple[int, int]:
    """Returns the bytes received and sent: by hardware if there is any, else by everything but the loopback."""
    lines = {}
    for line in read("/proc/net/dev").splitlines()[2:]:
        name, _, counts = line.decode().partition(":")
        words = counts.split()
        if len(words) > 8 and name.strip() != "lo":
            lines[name.strip()] = int(words[0]), int(words[8])
    hardware = [both for name, both in lines.items() if _is_hardware("/sys/class/net", name)]
    counted = hardware or list(lines.values())
    return sum(got for got, _ in counted), sum(put for _, put in counted)


def room_bytes(path: str) -> tuple[int, int]:
    """Returns the size of a file system, and what of it is free for us."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


@cache
def _is_hardware(folder: str, name: str) -> bool:
    """Partitions, volumes, loop devices and bridges have no device below them."""
    return os.path.exists(f"{folder}/{name.replace('/', '!')}/device")

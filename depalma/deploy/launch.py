"""Becomes a daemon that is on record: `launch.py RECORD FINGERPRINT ARGV…`, standard library only.

The process writes down itself who it is before it becomes the daemon (the pid and start time stay): there is no moment
at which a daemon runs and no record tells of it, whenever whoever started it is killed.
"""

from __future__ import annotations

import json
import os
import sys


def boot_id() -> str:
    """Returns which start of which machine this is: a folder may be shared by several machines, and outlive both."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def started(pid: int) -> int:
    """Returns when a process started, in the kernel's ticks."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def main() -> None:
    """Writes the record, whole or not at all, and becomes the daemon."""
    record, fingerprint, *argv = sys.argv[1:]
    own = os.getpid()
    text = json.dumps(
        {"pid": own, "started": started(own), "boot": boot_id(), "fingerprint": fingerprint, "argv": argv}
    )
    temporary = f"{record}.new"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, record)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()

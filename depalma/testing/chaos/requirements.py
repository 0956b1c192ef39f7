"""What a machine must have before its disks and networks can be broken."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import depalma

_ROOT = Path(depalma.__file__).parents[1]
#: name used by scenarios → the Debian package that holds the tool
TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "flock": "util-linux",
    "strace": "strace",
    "mount": "mount",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "prlimit": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
#: every scenario needs these
ALWAYS = ("ip", "nft", "nsenter")
#: what only a checkout has
CHECKOUT = ("bin/simulate", "tests/data")


def missing(*needs: str, cluster: bool = True) -> str:
    """Returns why the scenarios that need these cannot run here, or nothing. Only a cluster needs root."""
    absent = [name for name in needs if name in CHECKOUT and not (_ROOT / name).exists()]
    if absent:
        return f"needs a checkout with {', '.join(absent)}"
    return _missing_for_clusters(*needs) if cluster else ""


def _missing_for_clusters(*needs: str) -> str:
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    tools = [name for name in (*ALWAYS, *needs) if name in TOOLS and shutil.which(name) is None]
    if tools:
        return f"needs {', '.join(tools)} (Debian: {' '.join(sorted({TOOLS[name] for name in tools}))})"
    if not _namespaces_work():
        return "this machine refuses network namespaces"
    if "losetup" in needs and not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    if "faketime" in needs and faketime_library() is None:
        return "needs libfaketime (Debian: faketime)"
    return ""


@cache
def _namespaces_work() -> bool:
    done = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return done.returncode == 0


@cache
def faketime_library() -> Path | None:
    """Returns the library that fakes the clock of one process."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    name = ctypes.util.find_library("faketime")
    return found[0] if found else Path(name) if name else None

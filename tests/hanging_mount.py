"""A file system that hangs for real: `python hanging_mount.py FOLDER`, as root. Ends when its standard input does.

It speaks the kernel's FUSE protocol just far enough: the root folder, its attributes, and nothing more. Whoever looks
for a name in it waits in the kernel, where no signal wakes him, until this process is gone: its connection is aborted
then, and all who wait get an error. So nothing can stay behind, however the tests end. `FOLDER.waiting` tells who
waits, a line each.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import sys

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _STATFS, _INIT, _OPENDIR, _INTERRUPT = 1, 2, 3, 17, 26, 27, 36
_SILENT = (_LOOKUP, _FORGET, _INTERRUPT)
_ATTRIBUTES = struct.pack("<QIIQQQQQQIIIIIIIIII", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40777, 2, 0, 0, 0, 4096, 0)
_PARALLEL_DIROPS = 1 << 18  #: or the second one waits for the first before it asks
_READ_BYTES = 1 << 18
_MNT_DETACH = 2


def answer(opcode: int, body: bytes) -> tuple[int, bytes]:
    """Returns an error (negative) and the answer to a request."""
    if opcode == _INIT:
        major, minor, readahead = struct.unpack_from("<III", body)
        return 0, struct.pack("<IIIIHHII32x", major, min(minor, 31), readahead, _PARALLEL_DIROPS, 12, 9, 1 << 16, 1)
    if opcode == _GETATTR:
        return 0, _ATTRIBUTES
    if opcode == _OPENDIR:
        return 0, bytes(16)
    return -errno.ENOSYS, b""


def main() -> None:
    folder = sys.argv[1].encode()
    libc = ctypes.CDLL(None, use_errno=True)
    waiting = os.open(f"{sys.argv[1]}.waiting", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"hanging", folder, b"fuse", 0, options) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    try:
        print("mounted", flush=True)  # noqa: T201
        poller = select.poll()
        poller.register(device, select.POLLIN)
        poller.register(0, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if 0 in ready:
                return
            with contextlib.suppress(InterruptedError, FileNotFoundError):  # taken back before it was read
                request = os.read(device, _READ_BYTES)
                _, opcode, unique, _, _, _, pid, *_ = _IN.unpack_from(request)
                if opcode == _LOOKUP:
                    os.write(waiting, b"%d\n" % pid)
                if opcode not in _SILENT:
                    error, body = answer(opcode, request[_IN.size :])
                    os.write(device, _OUT.pack(_OUT.size + len(body), error, unique) + body)
    finally:
        libc.umount2(folder, _MNT_DETACH)


if __name__ == "__main__":
    main()

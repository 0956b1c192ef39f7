"""Frames between the agent and its monitor: marshal values on a socket pair, file descriptors beside them.

Both ends are started from the same interpreter and trust each other, which is what `marshal` asks for; it is several
times cheaper than anything else in the standard library. Neither end ever blocks the other.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
import struct
from collections import deque
from typing import Any

Message = tuple[Any, ...]

_HEAD = struct.Struct("<I")
_READ_BYTES = 262_144
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * 64)


class Channel:
    """One end. `queue` collects, `flush` writes what the socket takes, `receive` returns whole messages."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.received_fds: deque[int] = deque()  #: in the order in which their messages come
        self._out: deque[tuple[bytearray, tuple[int, ...]]] = deque()
        self._in = bytearray()

    def queue(self, message: Message, *fds: int) -> None:
        """Adds a message; descriptors given with it (negative: none) are closed here once it is sent."""
        body = marshal.dumps(message)
        fds = tuple(fd for fd in fds if fd >= 0)
        if not fds and self._out and not self._out[-1][1]:
            tail = self._out[-1][0]
            tail += _HEAD.pack(len(body))
            tail += body
            return
        self._out.append((bytearray(_HEAD.pack(len(body)) + body), fds))

    def flush(self) -> bool:
        """Writes what can be written. Returns whether nothing is left. Errors: OSError when the other end is gone."""
        while self._out:
            data, fds = self._out[0]
            try:
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = self.sock.sendmsg([data], rights)
                    self._out[0] = (data, ())
                    for fd in fds:
                        os.close(fd)
                else:
                    sent = self.sock.send(data)
            except BlockingIOError:
                return False
            if sent == len(data):
                self._out.popleft()
            else:
                del data[:sent]
        return True

    def receive(self) -> list[Message]:
        """Returns the messages that are complete, maybe none. Errors: EOFError when the other end is gone."""
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except ConnectionError as error:
                raise EOFError from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self.received_fds.extend(fds)
            if not data:
                raise EOFError
            self._in += data
            if len(data) < _READ_BYTES // 2:
                break
        return self._split()

    def _split(self) -> list[Message]:
        buffer, at, messages = self._in, 0, []
        while len(buffer) - at >= _HEAD.size:
            (size,) = _HEAD.unpack_from(buffer, at)
            end = at + _HEAD.size + size
            if len(buffer) < end:
                break
            messages.append(marshal.loads(memoryview(buffer)[at + _HEAD.size : end].tobytes()))
            at = end
        del buffer[:at]
        return messages

    def close(self) -> None:
        """Closes the socket and every descriptor that was not taken."""
        self.sock.close()
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        while self.received_fds:
            os.close(self.received_fds.popleft())

"""The process that workers are forked from, one for a code index: it has imported what their tasks will import.

Started by file name as `forkserver.py FOLDER CODE_DIR OUTPUT_LIMIT_BYTES RESULT_LIMIT_BYTES`, with its socket to the
agent as descriptor 3. A worker is forked twice, so that it becomes a child of the monitor, which is told by the agent.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import marshal
import os
import socket
import sys
import threading
import time
from typing import Any

if __name__ == "__main__":  # started by file name: the package is found beside this file
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from depalma.agent import proctree
from depalma.agent.worker import Worker, after_fork, prepare

_MESSAGE_BYTES = 262_144


class ForkServer:
    """Imports and forks, as the agent says. `limits`: see Worker."""

    def __init__(self, sock: socket.socket, root: str, limits: tuple[int, int]) -> None:
        self.sock = sock
        self.root = root
        self.limits = limits
        self.failed: dict[str, str] = {}  #: modules that cannot be imported here

    def serve(self) -> None:
        """Goes on until the agent closes the socket, or until forking is not safe any more."""
        self._say("ready")
        while True:
            data, ancillary, _, _ = self.sock.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            message = marshal.loads(data)
            if message[0] == "import":
                began_s = time.process_time()
                self._import(message[1])
                if threading.active_count() > 1:
                    return  # a thread of Python's does not survive a fork, and what it holds stays held
                self._say("imported", time.process_time() - began_s)
            else:
                fds = array.array("i", ancillary[0][2])
                self._fork(message[1], message[2], fds[0])

    def _say(self, *message: Any) -> None:
        self.sock.send(marshal.dumps(message))

    def _import(self, names: list[str]) -> None:
        for name in names:
            if name in sys.modules or name in self.failed:
                continue
            try:
                importlib.import_module(name)
            except BaseException as error:  # user code; whoever needs it imports it, and sees why it fails
                self.failed[name] = repr(error)

    def _fork(self, number: int, key: int, fd: int) -> None:
        reading, writing = os.pipe()
        said, say = os.pipe()  # it begins when the agent can hear of it: if we die before, another one takes its place
        middle = os.fork()
        if middle == 0:
            try:
                os.close(reading)
                os.close(say)
                if os.fork() == 0:
                    self._become_worker(number, key, fd, writing, said)
            finally:
                os._exit(0)
        os.close(writing)
        os.close(said)
        os.close(fd)
        pid, start = map(int, (os.read(reading, 64) or b"0 0").split())
        os.close(reading)
        os.waitpid(middle, 0)
        self._say("forked", number, pid, start)
        with contextlib.suppress(BrokenPipeError):
            os.write(say, b".")
        os.close(say)

    def _become_worker(self, number: int, key: int, fd: int, writing: int, said: int) -> None:
        try:
            os.setsid()
            # Whoever hears of it finds its session; and its start is known, however soon it is dead.
            own = proctree.stat(os.getpid())
            os.write(writing, b"%d %d" % (os.getpid(), own.start if own is not None else 0))
            os.close(writing)
            self.sock.close()
            if not os.read(said, 1):
                return
            os.close(said)
            for target, name in ((1, "out"), (2, "err")):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                spool = os.open(f"{self.root}/spool/w{number}.{name}", flags, 0o644)
                os.dup2(spool, target)
                os.close(spool)
            monitor = os.environ[proctree.MARKER].partition(":")[0]
            os.environ[proctree.MARKER] = f"{monitor}:{key}"
            after_fork()
            sock = socket.socket(fileno=fd)
            sock.setblocking(True)
            Worker(sock, self.root, str(number), *self.limits).serve()
        finally:
            os._exit(0)


def main() -> None:
    """Entry, see the module."""
    root, code_dir, output_bytes, result_bytes = sys.argv[1:5]
    prepare(code_dir)
    sock = socket.socket(fileno=3)
    sock.setblocking(True)
    os.set_inheritable(3, False)
    ForkServer(sock, root, (int(output_bytes), int(result_bytes))).serve()
    os._exit(0)


if __name__ == "__main__":
    main()

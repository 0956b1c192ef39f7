"""The process that runs Python functions, task after task, for one code index.

Started by file name as `worker.py FOLDER NUMBER CODE_DIR OUTPUT_LIMIT_BYTES RESULT_LIMIT_BYTES`, with its socket to
the agent as descriptor 3. One message is one task; it is read when the task before it has been answered. So what the
agent can take back from the socket has not started, and of what was read everything but the last has been answered: a
crash costs exactly one task.

It imports little, because each worker pays for it; cloudpickle only when a value asks for it.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import importlib
import itertools
import marshal
import os
import pickle
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depalma.agent.apart import Apart

_MESSAGE_BYTES = 262_144
_INLINE_BYTES = 4096  # = model.INLINE_LIMIT_BYTES, which would cost an import of msgspec
_ERROR_BYTES = 65_536
_TOLD = 2000
_JOBS = 256  # many more than the agent believes us to know, see workers.py
_ITEM = struct.Struct("<2Q")


class Job:
    """What the tasks of a job share in this worker."""

    def __init__(self, message: tuple[Any, ...]) -> None:
        _, self.number, self.reference, self.pickled, self.path, self.environment, self.cwd, self.apart = message
        self._function: Callable[..., Any] | None = None

    def function(self) -> Callable[..., Any]:
        """Returns the job's function, loaded once. Errors: whatever its module raises."""
        if self._function is None:
            if self.reference:
                self._function = resolve(self.reference)
            elif self.pickled or self.path:
                self._function = pickle.loads(self.pickled or _read(self.path))
            else:
                raise RuntimeError("neither the job nor the task's argument names a function")
        return self._function


def resolve(reference: str) -> Callable[..., Any]:
    """Returns what `pkg.mod:qualname` names. Errors: ImportError, AttributeError."""
    module, _, name = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


class Worker:
    """One worker process."""

    def __init__(
        self, sock: socket.socket, root: str, number: str, output_limit_bytes: int, result_limit_bytes: int
    ) -> None:
        self.sock = sock
        self.result_limit_bytes = result_limit_bytes
        self.root = root
        self.output_limit_bytes = output_limit_bytes
        self.spool = f"{root}/spool/w{number}"
        self.scratch = f"{root}/scratch/w{number}"
        self.jobs: dict[int, Job] = {}
        self.pid = os.getpid()
        self._entered: Job | None = None
        self._restore: dict[str, str | None] = {}
        self._own: dict[str, str] = {}  #: of the last task: what it was told beside what all are
        self._trashed = 0
        self._newest = newest_module()
        self._apart: Apart | None = None
        self._groups = os.environ.pop("DEPALMA_CGROUPS", "")
        os.makedirs(self.scratch, mode=0o700, exist_ok=True)
        os.environ["DEPALMA_SCRATCH"] = self.scratch

    def serve(self) -> None:
        """Runs tasks until the agent closes the socket."""
        self.sock.send(marshal.dumps(()))
        while True:
            data = self.sock.recv(_MESSAGE_BYTES)
            if not data:
                return
            message = marshal.loads(data)
            if message[0] == "job":
                if len(message) == 3:
                    message = marshal.loads(_read(message[2]))
                self.jobs.pop(message[1], None)
                self.jobs[message[1]] = Job(message)
                if len(self.jobs) > _JOBS:
                    del self.jobs[next(iter(self.jobs))]
            else:
                self._run(message)
                if os.path.exists(f"{self.spool}.visited"):
                    self._see_off()

    def _run(self, task: tuple[Any, ...]) -> None:
        number, index, attempt = task[:3]
        started = time.time()
        job = self.jobs.get(task[11])
        limits = job.apart if job is not None else ()
        inputs, keep = task[7:9]
        if inputs:
            os.rename(inputs, self.scratch)  # over the empty one
        if limits:
            ending = self._run_apart(task, limits)
        else:
            ending = (*self._work(task), None, None, "")
            if os.getpid() != self.pid:
                os._exit(0)  # the function forked, and its child came back here
        wrote = self._keep_output(f"{self.root}/output/{number}/{index}.{attempt}", keep)
        if newest_module() != self._newest:
            self._tell_modules()
        *result, exit_code, signal, code = ending
        record = (number, index, attempt, *result, started, time.time(), exit_code, signal, code, wrote)
        self.sock.send(marshal.dumps(record))

    def _see_off(self) -> None:
        """Waits until whoever visited the task that is over is gone: the next one begins alone, in an empty folder."""
        while os.path.exists(f"{self.spool}.visited"):
            time.sleep(0.002)  # the agent has been told of the end, and has them killed
        self._renew_scratch("")

    def _tell_modules(self) -> None:
        """Says what had to be imported: workers that are started later have it from the beginning."""
        self._tell(new_modules(self._newest))
        self._newest = newest_module()

    def _tell(self, found: list[tuple[str, str]]) -> None:
        tree = sys.path[0] + "/"
        libraries = [name for name, file in found[:_TOLD] if not file.startswith(tree)]
        own = [name for name, file in found[:_TOLD] if file.startswith(tree)]
        self.sock.send(marshal.dumps(("learnt", libraries, own)))

    def _work(self, task: tuple[Any, ...]) -> tuple[bytes | None, str, int, str]:
        """Returns the task's value, where it is, its size, and what went wrong."""
        try:
            return (*self._pack(self._call(task)), "")
        except BaseException as problem:  # SystemExit too: it ends the task, not the worker
            if os.getpid() != self.pid:
                os._exit(1)
            error = describe(problem)
            return (*self._pack_exception(problem, error), error)

    def _run_apart(self, task: tuple[Any, ...], limits: tuple[Any, ...]) -> tuple[Any, ...]:
        """Runs a task in a process of its own."""
        if self._apart is None:
            # Only workers that need it pay for it.
            from depalma.agent.apart import Apart

            self._apart = Apart(self._groups)

        def work() -> tuple[Any, ...]:
            self.pid = os.getpid()
            return self._work(task)

        outcome = self._apart.run(work, limits, self.scratch, (f"{self.spool}.out", f"{self.spool}.err"))
        if self._apart.learnt:  # at once: this worker imports it before its next task, and may never get one
            self._tell(self._apart.learnt)
        if outcome.record is not None:
            return (*outcome.record, None, None, "")
        return None, "", 0, outcome.error, outcome.exit_code, outcome.signal, outcome.code

    def _call(self, task: tuple[Any, ...]) -> Any:
        index, attempt, fence, argument, path, item = task[1:7]
        job = self.jobs[task[11]]
        self._enter(job)
        environment = os.environ
        environment["DEPALMA_TASK_INDEX"] = str(index)
        environment["DEPALMA_ATTEMPT"] = str(attempt)
        environment["DEPALMA_FENCE"] = str(fence)
        if task[9]:
            environment["CUDA_VISIBLE_DEVICES"] = environment["DEPALMA_GPUS"] = task[9]
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        for name in self._own:
            environment.pop(name, None)  # they were of the task before
        self._own = task[10]
        environment.update(self._own)
        if path:
            argument = read_item(path, item) if item >= 0 else _read(path)
        if not argument:
            return job.function()()
        own, args, kwargs = pickle.loads(argument)
        function = job.function() if own is None else resolve(own) if isinstance(own, str) else own
        return function(*args, **kwargs)

    def _enter(self, job: Job) -> None:
        """Makes the surroundings those of the job."""
        if self._entered is not job:
            for name, before in self._restore.items():
                if before is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = before
            self._restore = {name: os.environ.get(name) for name in job.environment}
            os.environ.update(job.environment)
            self._entered = job
        try:
            os.chdir(job.cwd or self.scratch)
        except OSError as error:
            self._entered = None
            raise RuntimeError(f"working folder {job.cwd or self.scratch}: {error.strerror}") from None

    def _pack(self, value: Any) -> tuple[bytes | None, str, int]:
        """Returns the pickled value, or where it was put if it is large. Errors: RuntimeError that names its type."""
        data = _dumps(value)
        if len(data) > self.result_limit_bytes:
            raise RuntimeError(f"the result has {len(data)} bytes pickled; allowed: {self.result_limit_bytes}")
        if len(data) <= _INLINE_BYTES:
            return data, "", len(data)
        digest = hashlib.sha256(data).hexdigest()
        target = f"{self.root}/blobs/out/{digest}"
        temporary = f"{target}.{self.pid}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.rename(temporary, target)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return None, digest, len(data)

    def _pack_exception(self, problem: BaseException, error: str) -> tuple[bytes | None, str, int]:
        try:
            return self._pack(problem.with_traceback(None))
        except BaseException:
            # The exception cannot travel; one that says the same can.
            return self._pack(RuntimeError(error.rstrip().rsplit("\n", 1)[-1][:2000]))

    def _keep_output(self, target: str, keep: str) -> bool:
        """Gives what the task printed its own file; the next task gets a new one. Returns whether it printed."""
        wrote = False
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            name = "out" if number == 1 else "err"
            try:
                stream.flush()
                size_bytes = os.fstat(number).st_size
                if not size_bytes:
                    continue
                if size_bytes > self.output_limit_bytes:
                    os.ftruncate(number, self.output_limit_bytes)
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                os.rename(f"{self.spool}.{name}", f"{target}.{name}")
                wrote = True
            except (OSError, ValueError, AttributeError):
                # The function closed or replaced it, or the disk is full: from here on there is a new one.
                with suppress(OSError):
                    os.unlink(f"{self.spool}.{name}")
            fd = os.open(f"{self.spool}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        self._renew_scratch(keep)
        return wrote

    def _renew_scratch(self, keep: str) -> None:
        """Gives the next task an empty folder; what is in this one goes to `keep`, or to the trash."""
        try:
            if not os.path.islink(self.scratch) and not os.listdir(self.scratch):
                return
        except OSError:
            pass  # the function did away with it, or locked it
        self._trashed += 1
        target = keep or f"{self.root}/trash/{self.pid}.{self._trashed}"
        with suppress(FileNotFoundError):
            try:
                os.rename(self.scratch, target)
            except PermissionError:
                os.chmod(self.scratch, 0o700)  # what must not be written cannot be moved either
                os.rename(self.scratch, target)
        os.mkdir(self.scratch, 0o700)


def describe(problem: BaseException) -> str:
    """Returns the traceback as the user would see it, without our own frames, its end at most 64 KiB."""
    try:
        below = problem.__traceback__
        while below is not None and below.tb_frame.f_code.co_filename == __file__:
            below = below.tb_next
        text = "".join(traceback.format_exception(type(problem), problem, below))
    except BaseException as error:
        text = f"{type(problem).__name__} (its traceback cannot be shown: {type(error).__name__})"
    data = text.encode(errors="backslashreplace")
    if len(data) > _ERROR_BYTES:
        return "…" + data[3 - _ERROR_BYTES :].decode(errors="ignore")
    return data.decode()


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception:
        import cloudpickle
    try:
        data: bytes = cloudpickle.dumps(value, 5)
        return data
    except Exception as error:
        raise RuntimeError(f"the result, of type {type(value).__qualname__}, cannot be pickled: {error}") from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def read_item(path: str, item: int) -> bytes:
    """Returns item `item` of a packed arguments file (items.py) without reading the others."""
    with open(path, "rb") as file:
        magic, count = struct.unpack("<4sI", file.read(8))
        if magic != b"DPI1" or item >= count:
            raise RuntimeError(f"argument {item} is not in its blob of {count} items")
        file.seek(8 + 8 * item)
        begin, end = _ITEM.unpack(file.read(16))
        if not begin <= end <= os.fstat(file.fileno()).st_size:
            raise RuntimeError(f"argument {item} is damaged in its blob: {begin}..{end}")
        file.seek(8 + 8 * (count + 1) + begin)
        return file.read(end - begin)


def prepare(code_dir: str) -> None:
    """Makes this interpreter one that runs the functions of a code tree."""
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path[0] = code_dir
    if package_root not in sys.path:
        sys.path.append(package_root)
    sys.argv = ["depalma-worker"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()


def after_fork() -> None:
    """What a forked process does first. It writes to little of what it has inherited: each page of that is a copy.

    Objects that are there are no garbage, and a collection would write to every one (with scikit-learn: 80 ms). Random
    numbers are its own, also where a library copies its state (random does it by itself).
    """
    gc.freeze()
    for name, seed in (("numpy.random", "seed"), ("torch", "seed")):
        function = getattr(sys.modules.get(name), seed, None)
        if function is not None:
            function()


def newest_module() -> str:
    """Returns the module that was imported last."""
    return next(reversed(sys.modules))


def new_modules(since: str) -> list[tuple[str, str]]:
    """Returns the modules imported after this one that can be imported by name, each with its file.

    Older ones are not touched, see `after_fork`.
    """
    found = []
    for name in list(itertools.takewhile(lambda name: name != since, reversed(sys.modules))):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if name != "__main__" and spec is not None:
            found.append((name, str(getattr(spec, "origin", "") or "")))
    return found[::-1]


def main() -> None:
    """Entry: `worker.py FOLDER NUMBER CODE_DIR OUTPUT_LIMIT_BYTES RESULT_LIMIT_BYTES`."""
    root, number, code_dir, output_bytes, result_bytes = sys.argv[1:6]
    prepare(code_dir)
    sock = socket.socket(fileno=3)
    sock.setblocking(True)
    os.set_inheritable(3, False)
    Worker(sock, root, number, int(output_bytes), int(result_bytes)).serve()
    os._exit(0)


if __name__ == "__main__":
    main()

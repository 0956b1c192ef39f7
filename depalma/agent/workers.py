"""The agent's end of its worker processes: what was sent, what came back, what can be taken back."""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depalma.agent.events import Attempt, Job
from depalma.agent.limits import NOTHING, Limits
from depalma.model import AttemptRef, JobSpec, Payload, Report
from depalma.tails import OutputTail

_BUFFER_BYTES = 1024 * 1024
_MESSAGE_BYTES = 262_144
#: A worker remembers many more; jobs beyond these are told again.
_JOBS = 32
#: Larger arguments go through a file: a message must fit the socket's buffer, with others.
ARGUMENT_LIMIT_BYTES = 32_768


class Garbled(Exception):
    """The worker sent something that is no answer: code in it must have written to its socket."""


class WorkerHandle:
    """One worker. Its end of the socket pair stays open here too: so unread messages can be read back."""

    def __init__(self, number: int, code_index: int, code_digest: str) -> None:
        self.number = number
        self.code_index = code_index
        self.code_digest = code_digest
        self.ready = False
        self.stopped = False  #: it was told to end, maybe before it began
        self.still: set[str] = set()  #: why it is to stand still, maybe since before the monitor knew it
        self.imported: set[str] = set()  #: that it need not import any more, as far as is known
        self._learnt: list[tuple[list[str], list[str]]] = []
        self.key = 0  #: the monitor's name for it
        self.jobs: dict[int, None] = {}  #: the last few jobs that it was told about
        self.sent: dict[AttemptRef, None] = {}  #: sent and not answered, oldest first
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        for end in (self.near, self.far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def descriptor_for_child(self) -> int:
        """Returns a descriptor of the worker's end, to be given away."""
        return os.dup(self.far.fileno())

    def send(
        self, attempt: Attempt, argument: tuple[bytes | None, str, int, str, str], job: tuple[Any, ...] | None
    ) -> bool:
        """Hands over one attempt, before it what its job is. Returns whether there was room."""
        try:
            if job is not None:
                self.near.send(marshal.dumps(job))
                self.jobs[attempt.job.key] = None
                if len(self.jobs) > _JOBS:
                    del self.jobs[next(iter(self.jobs))]
            own = gpus_of(attempt), own_variables(attempt), attempt.job.key
            self.near.send(marshal.dumps((*attempt.ref, attempt.argument.fence, *argument, *own)))
        except BlockingIOError:
            return False
        self.sent[attempt.ref] = None
        return True

    def recall(self) -> tuple[AttemptRef, ...]:
        """Takes back every message that the worker has not read. Returns their attempts, in order."""
        refs: list[AttemptRef] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                message = marshal.loads(self.far.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT))
                if message[0] == "job":
                    self.jobs.pop(message[1], None)
                else:
                    ref = (message[0], message[1], message[2])
                    refs.append(ref)
                    self.sent.pop(ref, None)
        return tuple(refs)

    def answers(self) -> Iterator[Report | None]:
        """Yields the reports that have come; None says that the worker is ready. Errors: Garbled."""
        while True:
            try:
                data = self.near.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            try:
                record = marshal.loads(data)
                if not record:
                    self.ready = True
                    yield None
                    continue
                if record[0] == "learnt":
                    self._learnt.append((record[1], record[2]))
                    self.imported.update(record[1], record[2])
                    continue
                report = self._report(record)
                self.sent.pop((report.job, report.task, report.attempt), None)
            except (ValueError, EOFError, TypeError, LookupError) as error:
                raise Garbled(str(error)) from error
            yield report

    def taken_learnt(self) -> list[tuple[list[str], list[str]]]:
        """Returns the modules that it had to import since this was last asked: of libraries, and of its code."""
        taken, self._learnt = self._learnt, []
        return taken

    def _report(self, record: tuple[Any, ...]) -> Report:
        job, task, attempt, inline, digest, size, error, started, finished, exit_code, number, code, wrote = record
        result = Payload(inline=inline or b"", digest=digest, size_bytes=size) if inline is not None or digest else None
        outcome = "failed" if error else "succeeded"
        return Report(
            job, task, attempt, outcome, exit_code if error else 0, number, error, result, started, finished,
            self.code_index, self.code_digest, code, None, OutputTail() if wrote else None,
        )  # fmt: skip

    def close(self) -> None:
        """Closes both ends."""
        self.near.close()
        self.far.close()


def job_message(job: Job, function_path: str, environment: dict[str, str], folder: Path) -> tuple[Any, ...]:
    """Returns what a worker has to know of a job; if that is much, where it is, in a file in `folder`."""
    spec = job.spec
    inline = spec.function_pickle.inline if spec.function_pickle is not None else b""
    apart = tuple(limits_of(spec)) if is_apart(spec) else ()
    message = ("job", job.key, spec.function, inline, function_path, environment, spec.cwd, apart)
    data = marshal.dumps(message)
    if len(data) <= ARGUMENT_LIMIT_BYTES:
        return message
    path = folder / f"job.{job.key}"
    path.write_bytes(data)
    return ("job", job.key, str(path))


def is_apart(spec: JobSpec) -> bool:
    """Returns whether each task of a function job is a process of its own, and not its worker's.

    What has limits of its own is: a worker cannot be given them task by task. A library holds on to the GPUs that it
    saw first, so what has some is, too.
    """
    return spec.isolate or bool(spec.gpus) or limits_of(spec) != NOTHING


def gpus_of(attempt: Attempt) -> str:
    """Returns the GPUs that an attempt has, as CUDA_VISIBLE_DEVICES names them."""
    return ",".join(map(str, attempt.argument.gpus))


def task_variables(attempt: Attempt, scratch: str) -> dict[bytes, bytes]:
    """Returns the environment of a command that is its own, and not its job's."""
    variables = {
        b"DEPALMA_TASK_INDEX": b"%d" % attempt.ref[1],
        b"DEPALMA_ATTEMPT": b"%d" % attempt.ref[2],
        b"DEPALMA_FENCE": b"%d" % attempt.argument.fence,
        b"DEPALMA_SCRATCH": os.fsencode(scratch),
    }
    if attempt.argument.gpus:
        variables[b"CUDA_VISIBLE_DEVICES"] = variables[b"DEPALMA_GPUS"] = gpus_of(attempt).encode()
        variables[b"CUDA_DEVICE_ORDER"] = b"PCI_BUS_ID"  # the numbers are those of nvidia-smi, as the load of GPUs is
    if attempt.argument.gpus or attempt.argument.gang or attempt.argument.alternative or attempt.job.spec.alternatives:
        variables |= {name.encode(): value.encode() for name, value in own_variables(attempt).items()}
    return variables


def own_variables(attempt: Attempt) -> dict[str, str]:
    """Returns what an attempt is told of its part of a GPU, of its gang, and as which alternative it runs; nothing if
    it has none of these."""
    variables = gang_variables(attempt)
    if attempt.argument.alternative or attempt.job.spec.alternatives:
        variables["DEPALMA_ALTERNATIVE"] = str(attempt.argument.alternative)
    if attempt.argument.gpus and attempt.job.spec.gpus < 1:
        variables["DEPALMA_GPU_SHARE"] = str(attempt.job.spec.gpus)
    return variables


def gang_variables(attempt: Attempt) -> dict[str, str]:
    """Returns what a member of a gang is told of the others; nothing if it is in none."""
    hosts = attempt.argument.gang
    if not hosts:
        return {}
    rank = (attempt.ref[1] - attempt.job.spec.first_index) % len(hosts)
    return {
        "DEPALMA_GANG_RANK": str(rank),
        "DEPALMA_GANG_SIZE": str(len(hosts)),
        "DEPALMA_GANG_HOSTS": ",".join(hosts),
    }


def limits_of(spec: JobSpec) -> Limits:
    """Returns the limits of each task of a job, apart from its time, which the core holds."""
    return Limits(
        spec.memory_bytes,
        spec.cpu_time_s,
        spec.max_processes,
        spec.max_files,
        spec.max_output_bytes,
        spec.scratch_bytes,
    )

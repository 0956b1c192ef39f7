"""Carries out what the core decides about processes: commands and workers, through the monitor."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from depalma.agent import forkserver
from depalma.agent import worker as worker_program
from depalma.agent.channel import Message
from depalma.agent.commands import Command, Line, signal_name, stdin_of
from depalma.agent.events import AnyEvent, Attempt, Ended, Job, Outdone, Recalled, WorkerEnded, WorkerReady
from depalma.agent.limits import encode
from depalma.agent.link import MonitorLink
from depalma.agent.measure import printable
from depalma.agent.nurseries import Nurseries, Nursery
from depalma.agent.proctree import OWNER
from depalma.agent.spawning import NURSERY
from depalma.agent.stage import name_of as name_of_attempt
from depalma.agent.store import OutputFiles, empty_folder
from depalma.agent.workers import ARGUMENT_LIMIT_BYTES, Garbled, WorkerHandle, job_message, limits_of, task_variables
from depalma.model import AttemptRef, Report

log = logging.getLogger(__name__)

#: Environments of jobs that the monitor knows; -1 is that of the workers.
_KNOWN_JOBS = 256
_WORKERS = -1
#: What whoever started the agent may have had in the environment, and no task may.
_SECRET = frozenset(["DEPALMA_TOKEN", "DEPALMA_TOKEN_FILE"])
#: Answers that come soon after others wait for company this long.
_COALESCE_S = 0.001


class Runner:
    """Processes of attempts. `emit` takes the events that they cause."""

    def __init__(
        self,
        root: Path,
        host: str,
        link: MonitorLink,
        emit: Callable[[AnyEvent], None],
        output_limit_bytes: int,
        result_limit_bytes: int,
    ) -> None:
        self.root = root
        self.host = host
        self.link = link
        self.emit = emit
        self.output_limit_bytes = output_limit_bytes
        self.result_limit_bytes = result_limit_bytes
        self.output = OutputFiles(root)
        self.environment_of: Callable[[int], Path | None] = lambda code_index: None  #: where its packages are
        self.commands: dict[AttemptRef, Command] = {}
        self.slots: dict[int, Line] = {}
        self.workers: dict[int, WorkerHandle] = {}
        self.keys: dict[int, AttemptRef | WorkerHandle | Nursery] = {}
        self.nurseries = Nurseries(link, self._start_nursery, self._spawn_worker, self._outdo)
        self._next_key = 1
        self._argument_files: dict[AttemptRef, str] = {}  #: arguments too large for a message
        self._known_jobs: dict[int, None] = {}
        self._drained_s = 0.0
        self._paused: list[WorkerHandle] = []
        for name in ("blobs/out", "blobs/cache", "code/trees/0"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        empty_folder(root / "blobs/out")
        for name in ("spool", "scratch", "trash"):
            empty_folder(root / name)

    def _key(self, meaning: AttemptRef | WorkerHandle | Nursery) -> int:
        key = self._next_key
        self._next_key += 1
        self.keys[key] = meaning
        return key

    def tell_environment(self, job: Job | None) -> None:
        """Has the monitor know the environment of a job's commands and of what visits its tasks; None: of workers."""
        number = _WORKERS if job is None else job.key
        if number in self._known_jobs:
            return
        variables = {} if job is None else self._command_environment(job)
        inherited = {name: value for name, value in os.environ.items() if name not in _SECRET}
        whole = {**inherited, **variables, OWNER: str(self.root), "DEPALMA_HOST": self.host}
        self.link.send(("environment", number, {os.fsencode(name): os.fsencode(whole[name]) for name in whole}))
        self._known_jobs[number] = None
        if len(self._known_jobs) > _KNOWN_JOBS:
            live = {command.attempt.job.key for command in self.commands.values()} | {_WORKERS, number}
            for old in [job for job in self._known_jobs if job not in live][: _KNOWN_JOBS // 2]:
                del self._known_jobs[old]
                self.link.send(("environment", old, None))

    def stage_of(self, attempt: Attempt) -> tuple[str, str]:
        """Returns the folder of an attempt's inputs, and where its scratch folder goes for its outputs; "" = none."""
        spec, folder = attempt.job.spec, f"{self.root}/staged/{name_of_attempt(attempt.ref)}"
        return folder if spec.inputs is not None else "", f"{folder}.done" if spec.outputs else ""

    def code_dir(self, index: int) -> str:
        """Returns the folder of the tree at a code index."""
        return f"{self.root}/code/trees/{index}"

    def job_environment(self, job: Job) -> dict[str, str]:
        """Returns the variables of a job that all its tasks share.

        Ours win: who submits from within a task may hand on all of that task's environment.
        """
        return {
            **job.spec.env,
            "DEPALMA_JOB_ID": str(job.id),
            "DEPALMA_CPUS": f"{job.spec.cpus:g}",
            "DEPALMA_CODE_INDEX": str(job.code_index),
            "DEPALMA_CODE_DIR": self.code_dir(job.code_index),
        }

    # ------------------------------------------------------------ commands

    def launch(self, lane: int, slot: int, attempts: tuple[Attempt, ...]) -> None:
        """Hands commands to a slot, to run one after the other; their ends come as events."""
        line = self.slots.setdefault(slot, Line(lane))
        line.lane = lane
        for attempt in attempts:
            job = attempt.job
            try:
                self.tell_environment(job)
                argv = self._argv(attempt)
            except (OSError, ValueError, RuntimeError) as error:
                self._fail(attempt, f"the command cannot be started: {error}")
                continue
            key = self._key(attempt.ref)
            line.refs[attempt.ref] = None
            self.commands[attempt.ref] = Command(key, attempt, slot)
            files = (self._target(job.spec.stdout, attempt, ".out"), self._target(job.spec.stderr, attempt, ".err"))
            extra = task_variables(attempt, f"{self.root}/scratch/{slot}")
            rest = slot, False, encode(limits_of(job.spec)), self.stage_of(attempt), stdin_of(job.spec, self.blob_path)
            self.link.send(("spawn", key, argv, job.key, extra, job.spec.cwd, files, *rest))

    def _command_environment(self, job: Job) -> dict[str, str]:
        variables = self.job_environment(job)
        if job.code_index > 0:
            before = variables.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [self.code_dir(job.code_index), before]))
            environment = self.environment_of(job.code_index)
            if environment is not None:
                path = variables.get("PATH") or os.environ.get("PATH", os.defpath)
                variables = {**variables, "VIRTUAL_ENV": str(environment), "PATH": f"{environment}/bin:{path}"}
        return variables

    def _argv(self, attempt: Attempt) -> list[bytes]:
        words = attempt.job.spec.argv
        argument = attempt.argument.argument
        if attempt.argument.argument_blob:
            path, item = self.blob_path(attempt.argument.argument_blob), attempt.argument.argument_item
            argument = worker_program.read_item(path, item) if item >= 0 else Path(path).read_bytes()
        if argument is None:
            return [os.fsencode(word) for word in words]
        text = argument.decode("utf-8", "surrogateescape")
        filled = [word.replace("{}", text) for word in words]
        if filled == list(words) and not any("{}" in word for word in words):
            filled.append(text)
        return [os.fsencode(word) for word in filled]

    def _target(self, wanted: str, attempt: Attempt, ending: str) -> str:
        job, task, count = attempt.ref
        if not wanted:
            return f"{self.output.root}/{job}/{task}.{count}{ending}"
        return ">" + wanted.replace("%j", str(job)).replace("%t", str(task)).replace("%a", str(count))

    def stop_command(self, ref: AttemptRef, grace_s: float) -> None:
        """SIGTERM to the tree of a command, after the grace SIGKILL."""
        if ref in self.commands:
            self.link.send(("kill", self.commands[ref].key, grace_s))

    def _command_ended(
        self, ref: AttemptRef, status: int, started: float, ended: float, error: str, error_code: str
    ) -> Report | None:
        command = self.commands.pop(ref, None)
        if command is None:
            return None
        self.slots[command.slot].refs.pop(ref, None)
        known, error = command.attempt, printable(error)
        code = os.waitstatus_to_exitcode(status)
        if error_code:
            exit_code, number = (None, -code) if code < 0 else (code, None)
            report = self._report(known, "failed", exit_code, number, error, started, ended)
            return msgspec.structs.replace(report, error_code=error_code)
        if code < 0:
            return self._report(
                known, "failed", None, -code, error or f"killed by {signal_name(-code)}", started, ended
            )
        outcome, error = ("failed", error or f"exit code {code}") if code else ("succeeded", error)
        return self._report(known, outcome, code, None, error, started, ended)

    def _fail(self, attempt: Attempt, problem: str) -> None:
        now = time.time()
        self.emit(Ended((self._report(attempt, "failed", None, None, printable(problem), now, now),)))

    def _report(
        self, attempt: Attempt, outcome: str, code: int | None, number: int | None, error: str, start: float, end: float
    ) -> Report:
        digest = attempt.job.template.tree_digest
        return Report(*attempt.ref, outcome, code, number, error, None, start, end, attempt.job.code_index, digest)

    def _with_tail(self, report: Report) -> Report:
        tail = self.output.short_tail((report.job, report.task, report.attempt))
        return msgspec.structs.replace(report, tail=tail)

    # ------------------------------------------------------------ workers

    def start_worker(self, number: int, code_index: int, code_digest: str) -> None:
        """Starts a worker process."""
        handle = self.workers[number] = WorkerHandle(number, code_index, code_digest)
        self.tell_environment(None)
        handle.key = self._key(handle)
        self.output.salvage(f"w{number}", None, self.root / "trash" / f"old.{handle.key}")  # lanes are numbered anew
        asyncio.get_running_loop().add_reader(handle.near, self._readable, handle)
        self.nurseries.fork(handle)

    def _spawn_worker(self, handle: WorkerHandle) -> None:
        """Starts a worker from the beginning."""
        spool = f">{self.root}/spool/w{handle.number}"
        program = [worker_program.__file__, str(self.root), str(handle.number)]
        fd, files = handle.descriptor_for_child(), (f"{spool}.out", f"{spool}.err")
        self._spawn_python(handle.key, program, handle.code_index, files, -1, fd)

    def _outdo(self, code_index: int, names: list[str]) -> None:
        """Lets go of the workers that would still have to import all that."""
        handles = [handle for handle in self.workers.values() if handle.code_index == code_index]
        outdone = {handle.number for handle in handles if handle.ready and not handle.imported.issuperset(names)}
        if outdone:
            self.emit(Outdone(frozenset(outdone)))

    def _start_nursery(self, nursery: Nursery) -> None:
        nursery.key = self._key(nursery)
        program, fd = [forkserver.__file__, str(self.root)], os.dup(nursery.far.fileno())
        self._spawn_python(nursery.key, program, nursery.code_index, ("", ""), NURSERY, fd)

    def _spawn_python(
        self, key: int, program: list[str], code_index: int, files: tuple[str, str], slot: int, fd: int
    ) -> None:
        environment = self.environment_of(code_index)
        python = f"{environment}/bin/python" if environment is not None else sys.executable
        given = (python, *program, self.code_dir(code_index), self.output_limit_bytes, self.result_limit_bytes)
        words = [os.fsencode(str(word)) for word in given]
        self.link.send(("spawn", key, words, _WORKERS, {}, "", files, slot, True, (), ("", "")), fd)

    def send_tasks(self, number: int, attempts: tuple[Attempt, ...]) -> None:
        """Hands attempts to a worker; what does not fit comes back at once."""
        handle = self.workers[number]
        for position, attempt in enumerate(attempts):
            job = attempt.job
            message: Message | None = None
            try:
                if job.key not in handle.jobs:
                    pickled = job.spec.function_pickle
                    path = self.blob_path(pickled.digest) if pickled is not None and pickled.digest else ""
                    message = job_message(job, path, self.job_environment(job), self.root / "blobs" / "out")
                argument = self._argument(attempt)
            except OSError as error:
                self._fail(attempt, f"its argument cannot be written for the worker: {error}")
                continue
            if not handle.send(attempt, (*argument, *self.stage_of(attempt)), message):
                self.emit(Recalled(number, tuple(attempt.ref for attempt in attempts[position:]), full=True))
                return

    def _argument(self, attempt: Attempt) -> tuple[bytes | None, str, int]:
        """Returns (bytes, path, item): where the worker finds the argument."""
        given = attempt.argument
        if given.argument_blob:
            return None, self.blob_path(given.argument_blob), given.argument_item
        if given.argument is not None and len(given.argument) > ARGUMENT_LIMIT_BYTES:
            path = self._argument_files[attempt.ref] = f"{self.root}/blobs/out/{'.'.join(map(str, attempt.ref))}"
            Path(path).write_bytes(given.argument)
            return None, path, -1
        return given.argument, "", -1

    def _drop_argument(self, ref: AttemptRef) -> None:
        path = self._argument_files.pop(ref, None)
        if path is not None:
            Path(path).unlink(missing_ok=True)

    def blob_path(self, digest: str) -> str:
        """Returns where a fetched blob is."""
        return f"{self.root}/blobs/cache/{digest}"

    def recall(self, number: int) -> None:
        """Takes back what has not started on a lane."""
        for slot, line in self.slots.items():
            if line.lane == number:
                self.link.send(("recall", number, slot))
                return
        handle = self.workers.get(number)
        self.emit(Recalled(number, handle.recall() if handle is not None else ()))

    def stop_worker(self, number: int, grace_s: float) -> None:
        """Ends a worker process and everything below it."""
        handle = self.workers.get(number)
        if handle is not None:
            handle.stopped = True
            self.link.send(("kill", handle.key, grace_s))

    def restrain(self, order: str, number: int | None, reason: str) -> None:
        """Has what runs on a lane (None: on all, also later) stand still for a reason, or not: `suspend`, `resume`."""
        heads = [next(iter(line.refs)) for line in self.slots.values() if line.lane == number and line.refs]
        keys = [self.commands[ref].key for ref in heads]
        handle = self.workers.get(number) if number is not None else None
        if handle is not None:
            (handle.still.add if order == "suspend" else handle.still.discard)(reason)
            keys.append(handle.key)
        for key in [None] if number is None else keys:
            self.link.send((order, key, reason))

    def _readable(self, handle: WorkerHandle) -> None:
        now = time.monotonic()
        if now - self._drained_s > 2 * _COALESCE_S:
            self._drained_s = now
            self.drain(handle)
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(handle.near)
        if not self._paused:
            loop.call_later(_COALESCE_S, self._drain_paused)
        self._paused.append(handle)

    def _drain_paused(self) -> None:
        self._drained_s = time.monotonic()
        paused, self._paused = self._paused, []
        reports: list[Report] = []
        for handle in paused:
            if handle.number in self.workers:
                reports += self._answers(handle)
                asyncio.get_running_loop().add_reader(handle.near, self._readable, handle)
        if reports:
            self.emit(Ended(tuple(reports)))

    def drain(self, handle: WorkerHandle) -> None:
        """Takes what a worker has answered."""
        if reports := self._answers(handle):
            self.emit(Ended(tuple(reports)))

    def _answers(self, handle: WorkerHandle) -> list[Report]:
        reports: list[Report] = []
        try:
            for report in handle.answers():
                if report is None:
                    self.emit(WorkerReady(handle.number))
                else:
                    self._drop_argument((report.job, report.task, report.attempt))
                    reports.append(self._with_tail(report) if report.tail is not None else report)
        except Garbled as error:
            log.warning("worker %d sent what is no answer (%s): it is killed", handle.number, error)
            self.stop_worker(handle.number, 0.0)
        for libraries, own in handle.taken_learnt():
            self.nurseries.learn(handle.code_index, libraries, own)
        return reports

    def _worker_ended(self, handle: WorkerHandle, status: int, ended: float, error: str, error_code: str) -> None:
        if self.workers.pop(handle.number, None) is None:
            return
        self.drain(handle)
        unread = handle.recall()
        self._forget_handle(handle)
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code} ({signal_name(-code)})" if code < 0 else f"exit code {code}"
        reason = printable(error) or f"worker process died: {how}"
        if not handle.ready:
            reason += self.output.last_words(f"w{handle.number}")
        ref = next(iter(handle.sent), None)
        if ref is not None:
            self._drop_argument(ref)
        trash = self.root / "trash" / f"w{handle.number}.{handle.key}"
        wrote = self.output.salvage(f"w{handle.number}", ref, trash)
        exit_code, number = (None, -code) if code < 0 else (code, None)
        self.emit(WorkerEnded(handle.number, unread, reason, exit_code, number, ended, wrote, error_code))

    def _forget_handle(self, handle: WorkerHandle) -> None:
        asyncio.get_running_loop().remove_reader(handle.near)
        handle.close()

    # ------------------------------------------------------------ from the monitor

    def recalled(self, lane: int, keys: list[int]) -> None:
        """Takes the monitor's answer: these it has not started, and will not."""
        refs: list[AttemptRef] = []
        for key in [key for key in keys if key in self.keys]:  # else everything was forgotten meanwhile
            ref = self.keys.pop(key)
            assert not isinstance(ref, WorkerHandle | Nursery)
            self.slots[self.commands.pop(ref).slot].refs.pop(ref)
            refs.append(ref)
        self.emit(Recalled(lane, tuple(refs)))

    def exits(self, ended: list[tuple[int, int, float, float, str, str, bool]]) -> None:
        """Takes the ends of processes, whatever they were."""
        reports: list[Report] = []
        for key, status, started, at, error, error_code, wrote in ended:
            meaning = self.keys.pop(key, None)
            if isinstance(meaning, WorkerHandle):
                self._worker_ended(meaning, status, at, error, error_code)
            elif isinstance(meaning, Nursery):
                self.nurseries.ended(meaning)
            elif meaning is not None:
                report = self._command_ended(meaning, status, started, at, error, error_code)
                if report is not None:
                    reports.append(self._with_tail(report) if wrote else report)
        if reports:
            self.emit(Ended(tuple(reports)))

    def forget_all(self) -> None:
        """Forgets every process: all are dead, or about to be."""
        for handle in self.workers.values():
            self._forget_handle(handle)
        self.nurseries.forget_all()
        self.workers.clear()
        self.commands.clear()
        self.slots.clear()
        self.keys.clear()
        self._known_jobs.clear()
        self._argument_files.clear()
        self._paused.clear()

    def command_slot(self, ref: AttemptRef) -> int | None:
        """Returns the slot that a command runs on; None if it does not, as far as is known."""
        command = self.commands.get(ref)
        return command.slot if command is not None and next(iter(self.slots[command.slot].refs)) == ref else None

    def worker_of(self, ref: AttemptRef) -> WorkerHandle | None:
        """Returns the worker that runs an attempt, as far as is known."""
        return next((handle for handle in self.workers.values() if next(iter(handle.sent), None) == ref), None)

    def tasks_of(self, trees: list[tuple[int, list[int]]]) -> list[tuple[str, list[int]]]:
        """Returns the process ids by task, from the monitor's answer."""
        found = []
        for key, pids in trees:
            meaning = self.keys.get(key)
            ref = next(iter(meaning.sent), None) if isinstance(meaning, WorkerHandle) else meaning
            if ref is not None and not isinstance(ref, Nursery):
                found.append((f"{ref[0]}.{ref[1]}", pids))
        return found

    def cut_output(self) -> None:
        """Cuts what running attempts have written beyond the limit."""
        live = [(next(iter(line.refs)), str(slot)) for slot, line in self.slots.items() if line.refs]
        live += [(next(iter(h.sent)), f"w{h.number}") for h in self.workers.values() if h.sent]
        self.output.cut(live, self.output_limit_bytes)

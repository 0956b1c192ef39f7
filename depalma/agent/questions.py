"""What a leader may ask an agent at any time: the processes of its tasks, what they have written, the load of late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from depalma.agent.core import AgentCore
from depalma.agent.link import MonitorLink
from depalma.agent.loadmeter import LoadMeter
from depalma.agent.measure import ProcessTable
from depalma.agent.runner import Runner
from depalma.agent.store import read_slice
from depalma.protocol import Answer, AskLoadHistory, AskOutput, AskProcesses, LoadTold, Output, Processes, Question

_OUTPUT_BYTES = 1024 * 1024


class Questions:
    """Answers them, by way of `send`."""

    def __init__(
        self,
        host: str,
        runner: Runner,
        link: MonitorLink,
        core: AgentCore,
        meter: LoadMeter,
        send: Callable[[Answer], None],
    ) -> None:
        self._runner = runner
        self._link = link
        self._core = core
        self._meter = meter
        self._send = send
        self._processes = ProcessTable(host)
        self._asked: dict[int, int | None] = {}
        self._unsure: dict[int, tuple[AskOutput, Output]] = {}  #: by the ping whose answer makes it certain
        self._pings = 0
        # Threads of the loop's own pool may all be busy with large files.
        self._looker = ThreadPoolExecutor(1, "ps")

    def ask(self, frame: Question) -> None:
        """Takes a question. That for processes goes by the monitor, which knows them."""
        if isinstance(frame, AskProcesses):
            self._asked[frame.request] = frame.job
            self._link.send(("trees", frame.request))
            self._link.flush()
        elif isinstance(frame, AskLoadHistory):
            self._send(LoadTold(frame.request, self._meter.history(frame.last_s)))
        else:
            self._answer_output(frame)

    async def answer_processes(self, request: int, trees: list[tuple[int, list[int]]]) -> None:
        """Takes what the monitor knows of a request: process ids, by its keys."""
        job = self._asked.pop(request, None)
        tasks = self._runner.tasks_of(trees)
        if job is not None:
            tasks = [(task, pids) for task, pids in tasks if task.startswith(f"{job}.")]
        views = await asyncio.get_running_loop().run_in_executor(self._looker, self._processes.look, tasks)
        still = self._core.why_still()
        told = [msgspec.structs.replace(view, suspended=still.get(view.task, "")) for view in views]
        self._send(Processes(request, tuple(told)))

    def _answer_output(self, ask: AskOutput) -> None:
        """Reads output. What runs writes into the file of its slot or worker, which is that of the next task as soon
        as this one is over: what was read there counts once it is certain that the attempt had not ended by then."""
        ref = (ask.job, ask.task, ask.attempt)
        runner = self._runner
        slot, worker = runner.command_slot(ref), runner.worker_of(ref)
        if slot is not None:
            self._pings += 1
            self._unsure[self._pings] = ask, self._read_output(ask, runner.output.live(str(slot), ask.stream))
            self._link.send(("ping", self._pings))
            self._link.flush()
            return
        if worker is not None:
            answer = self._read_output(ask, runner.output.live(f"w{worker.number}", ask.stream))
            runner.drain(worker)
            if runner.worker_of(ref) is worker:
                self._send(answer)
                return
        self._send(self._read_kept(ask))

    def confirm(self, ping: int) -> None:
        """Takes the monitor's answer to a ping: it has told all ends that there were before it."""
        if ping in self._unsure:
            ask, answer = self._unsure.pop(ping)
            runs = self._runner.command_slot((ask.job, ask.task, ask.attempt)) is not None
            self._send(answer if runs else self._read_kept(ask))

    def _read_kept(self, ask: AskOutput) -> Output:
        output = self._runner.output
        answer = self._read_output(ask, output.final(ask.job, ask.task, ask.attempt, ask.stream))
        gone = output.gone.get(ask.job) if answer.ended and not answer.size_bytes else None
        return msgspec.structs.replace(answer, error=f"it is no longer kept: {gone}") if gone else answer

    def _read_output(self, ask: AskOutput, path: Path) -> Output:
        try:
            data, size = read_slice(path, max(0, ask.offset), min(max(0, ask.limit_bytes), _OUTPUT_BYTES))
        except OSError as error:
            return Output(ask.request, b"", 0, ended=True, error=f"output cannot be read: {error.strerror}")
        return Output(ask.request, data, size, ended=(ask.job, ask.task, ask.attempt) not in self._core.attempts)

"""What a leader may ask an agent at any time: the processes of its tasks, what they have written, the load of late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor

import msgspec

from depalma.agent.core import AgentCore
from depalma.agent.link import MonitorLink
from depalma.agent.loadmeter import LoadMeter
from depalma.agent.measure import ProcessTable
from depalma.agent.runner import Runner
from depalma.agent.store import read_slice
from depalma.model import AttemptRef
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
        self._live: Container[AttemptRef] = core.attempts
        self._meter = meter
        self._send = send
        self._processes = ProcessTable(host)
        self._asked: dict[int, int | None] = {}
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
            self._send(self._read_output(frame))

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

    def _read_output(self, ask: AskOutput) -> Output:
        ref = (ask.job, ask.task, ask.attempt)
        path = self._runner.live_output(ref, ask.stream) or self._runner.output.final(*ref, ask.stream)
        try:
            data, size = read_slice(path, max(0, ask.offset), min(max(0, ask.limit_bytes), _OUTPUT_BYTES))
        except OSError as error:
            return Output(ask.request, b"", 0, ended=True, error=f"output cannot be read: {error.strerror}")
        return Output(ask.request, data, size, ended=ref not in self._live)

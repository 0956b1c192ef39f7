"""Output of what runs is read from a file that the next task gets: no byte of it may be told as another's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from depalma.agent.questions import Questions
from depalma.agent.store import OutputFiles
from depalma.protocol import AskOutput

REF = (1, 0, 1)


class Host:
    """What the questions need of an agent: who runs where, as far as the agent knows, and orders to the monitor."""

    def __init__(self, root: Path) -> None:
        self.output = OutputFiles(root)
        self.output.spool.mkdir()
        self.slot: int | None = None
        self.worker: Any = None
        self.answered = False  #: the worker has sent the answer, which is not read yet
        self.pings: list[int] = []
        self.told: list[Any] = []
        self.live = {REF}
        link: Any = SimpleNamespace(send=lambda order: self.pings.append(order[1]), flush=lambda: None)
        runner: Any = self
        meter: Any = None
        core: Any = SimpleNamespace(attempts=self.live)
        self.questions = Questions("h", runner, link, core, meter, self.told.append)

    def command_slot(self, ref: Any) -> int | None:
        return self.slot if ref == REF else None

    def worker_of(self, ref: Any) -> Any:
        return self.worker if ref == REF else None

    def drain(self, worker: Any) -> None:
        if self.answered:
            self.worker = None

    def write(self, where: str, data: bytes) -> None:
        self.output.live(where, "stdout").write_bytes(data)

    def ask(self, offset: int = 0) -> None:
        self.questions.ask(AskOutput(7, *REF, "stdout", offset, 1000))


@pytest.fixture
def host(tmp_path: Path) -> Any:
    made = Host(tmp_path)
    yield made
    looker: ThreadPoolExecutor = made.questions._looker
    looker.shutdown()


def test_what_a_command_wrote_is_told_when_the_monitor_says_that_it_still_runs(host: Host) -> None:
    host.slot = 3
    host.write("3", b"mine")
    host.ask()
    assert host.told == []
    host.questions.confirm(host.pings[0])
    assert [(answer.request, answer.data, answer.ended) for answer in host.told] == [(7, b"mine", False)]


def test_the_next_commands_output_is_not_told(host: Host) -> None:
    """The command had ended and written nothing, and the agent had not heard it yet."""
    host.slot = 3
    host.write("3", b"another's")
    host.ask()
    host.slot = None
    host.live.clear()
    host.questions.confirm(host.pings[0])
    assert [(answer.data, answer.size_bytes, answer.ended) for answer in host.told] == [(b"", 0, True)]
    host.questions.confirm(0)
    assert len(host.told) == 1


def test_a_workers_next_output_is_not_told(host: Host) -> None:
    host.worker = SimpleNamespace(number=4)
    host.write("w4", b"mine")
    host.ask(offset=1)
    assert [answer.data for answer in host.told] == [b"ine"]
    final = host.output.final(*REF, "stdout")
    final.parent.mkdir()
    final.write_bytes(b"mine, all of it")
    host.write("w4", b"another's")
    host.answered = True
    host.ask()
    assert [answer.data for answer in host.told[1:]] == [b"mine, all of it"]


def test_what_is_no_longer_kept_is_said(host: Host) -> None:
    host.output.gone[1] = "older than 7 days"
    host.ask()
    assert not host.told[0].error  # it lives: nothing of it can have been removed
    host.live.clear()
    host.ask()
    assert host.told[1].error == "it is no longer kept: older than 7 days"

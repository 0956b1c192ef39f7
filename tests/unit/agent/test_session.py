"""When an agent leaves a connection for another one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from depalma.agent.lives import Lives
from depalma.agent.session import Session
from depalma.model import HostFacts
from depalma.monitor import boottime

URL, OTHER = "http://a:1", "http://b:1"
FACTS = HostFacts(1, 1, 1, 0, "0", "3.11", "test")


class Socket:
    """Says when it is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def close(self) -> None:
        self.closed.set()


class Hunt:
    """Finds a master at once; `answered`: meanwhile the answer of the one that is connected is read."""

    def __init__(self, url: str, *, answered: bool) -> None:
        self.url, self.answered = url, answered
        self.session: Any = None
        self.found: list[Socket] = []
        self.finds = asyncio.Event()

    async def find(self, _: str) -> tuple[str, Socket]:
        if self.answered:
            self.session._unanswered_s = None
        self.found.append(Socket())
        self.finds.set()
        return self.url, self.found[-1]


def silent_session(hunt: Hunt, tmp_path: Any) -> Session:
    core: Any = SimpleNamespace(connected=True)
    finder: Any = hunt
    lives = Lives(tmp_path, "m", "b")
    session = Session(finder, core, FACTS, "h1", print, print, lambda: None, lives)  # type: ignore[arg-type]
    session._unanswered_s = boottime() - 3.0
    hunt.session = session
    return session


async def test_one_that_stood_still_itself_stays_with_a_leader_that_has_answered(tmp_path: Any) -> None:
    """A new connection would end what users run in its tasks."""
    hunt = Hunt(URL, answered=True)
    watch = asyncio.create_task(silent_session(hunt, tmp_path)._watch(URL, 0.0))
    async with asyncio.timeout(30):
        await hunt.finds.wait()
        await hunt.found[0].closed.wait()
    assert not watch.done()
    watch.cancel()


@pytest.mark.parametrize(("url", "answered"), [(URL, False), (OTHER, False), (OTHER, True)])
async def test_a_silent_one_is_left(tmp_path: Any, url: str, answered: bool) -> None:
    """Also if it answers after all, but another one leads by now."""
    hunt = Hunt(url, answered=answered)
    async with asyncio.timeout(30):
        found = await silent_session(hunt, tmp_path)._watch(URL, 0.0)
    assert found == (url, hunt.found[0])
    assert not hunt.found[0].closed.is_set()

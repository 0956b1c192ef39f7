"""What the leader asks agents on behalf of users: processes, output, the load of late. Nothing here is replicated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from depalma.leader.context import Context
from depalma.leader.session import AgentSession
from depalma.model import AttemptRef, LoadHistory, ProcessView
from depalma.protocol import (
    Answer,
    AskLoadHistory,
    AskOutput,
    AskProcesses,
    LoadTold,
    Output,
    Processes,
    Question,
)

#: How soon a host that connects is asked: first, and at last, as a thousand of them may be away for long.
_LOOK_S = (0.01, 0.2)


class Questions:
    """Asks hosts, each until its time is over; one that does not answer holds up none of the others."""

    def __init__(self, context: Context, by_host: Mapping[str, AgentSession]) -> None:
        self._context = context
        self._by_host = by_host

    async def processes(self, job: int | None, timeout_s: float) -> tuple[list[ProcessView], list[str]]:
        """Returns the processes of tasks on all hosts, and the hosts that may have some and did not answer in time."""
        names = self._by_host.keys() | self._hosts_with_attempts(job)
        answers, missing = await self._ask_all(names, lambda number: AskProcesses(number, job), timeout_s)
        found = [view for answer in answers.values() if isinstance(answer, Processes) for view in answer.processes]
        return found, missing

    async def load_history(
        self, names: Iterable[str], last_s: float, timeout_s: float
    ) -> tuple[dict[str, LoadHistory], list[str]]:
        """Returns the load of the last seconds by host, and the hosts that did not answer in time.

        An agent of an older version, which does not know the question, is one that does not answer.
        """
        answers, missing = await self._ask_all(
            names, lambda number: AskLoadHistory(number, last_s), timeout_s, lambda session: session.tells_history
        )
        return {host: answer.history for host, answer in answers.items() if isinstance(answer, LoadTold)}, missing

    async def output(
        self,
        host: str,
        ref: AttemptRef,
        stream: str,
        offset: int,
        limit_bytes: int,
        timeout_s: float,
        *,
        patient: bool = False,
    ) -> Output | None:
        """Returns a piece of an attempt's output, or None if its host is not there (`patient`: and does not come), or
        does not answer."""

        def question(number: int) -> Question:
            return AskOutput(number, *ref, stream, offset, limit_bytes)

        if patient:
            answer = await self._ask_host(host, question, timeout_s, lambda session: True)
        else:
            session = self._by_host.get(host)
            answer = await self._ask(session, question, timeout_s) if session is not None else None
        return answer if isinstance(answer, Output) else None

    def _hosts_with_attempts(self, job: int | None) -> set[str]:
        hosts = self._context.state.hosts.values()
        if job is None:
            return {host.name for host in hosts if host.attempts}
        return {host.name for host in hosts if any(ref[0] == job for ref in host.attempts)}

    async def _ask_all(
        self,
        names: Iterable[str],
        question: Callable[[int], Question],
        timeout_s: float,
        able: Callable[[AgentSession], bool] = lambda session: True,
    ) -> tuple[dict[str, Answer], list[str]]:
        hosts = sorted(names)
        answers = await asyncio.gather(*(self._ask_host(host, question, timeout_s, able) for host in hosts))
        found = {host: answer for host, answer in zip(hosts, answers, strict=True) if answer is not None}
        return found, [host for host in hosts if host not in found]

    async def _ask_host(
        self, host: str, question: Callable[[int], Question], timeout_s: float, able: Callable[[AgentSession], bool]
    ) -> Answer | None:
        """Asks one host; while it is on its way to this leader it is waited for."""
        end, pause_s = time.monotonic() + timeout_s, _LOOK_S[0]
        while self._context.leading and (left_s := end - time.monotonic()) > 0:
            session = self._by_host.get(host)
            if session is not None:
                if not able(session):
                    return None
                answer = await self._ask(session, question, left_s)
                if answer is not None:
                    return answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_S[1])
        return None

    async def _ask(self, session: AgentSession, question: Callable[[int], Question], timeout_s: float) -> Answer | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await session.ask(question)
        except (TimeoutError, ConnectionError):
            return None

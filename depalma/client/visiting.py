"""Running a command inside a running task: the same method for both clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from depalma.client.specs import login_name
from depalma.client.steering import HasId, ids_of
from depalma.client.verbs import Verb, send

if TYPE_CHECKING:
    from depalma.client.connections import Connections

T = TypeVar("T")


class Granted(Struct, frozen=True):
    """A visit that may begin."""

    path: str
    task: str
    attempt: int
    host: str


class VisitResult(Struct, frozen=True):
    """What a command in a running task has done. `exit_code`: 128 + n for signal n."""

    task: str
    host: str
    exit_code: int
    stdout: bytes
    stderr: bytes


def ask(job: int, task: int | None, argv: Sequence[str], **terminal: object) -> Verb[Granted]:
    """Asks to be let in. Errors: Rejected (not_running, which_task, unknown_task, host_away, too_many)."""
    body = {"argv": list(argv), "task": task, "by": login_name(), **terminal}
    answer = yield from send("POST", f"/v1/jobs/{job}/exec", body)
    return Granted(answer["path"], answer["task"], answer["attempt"], answer["host"])


class Visiting:
    """What `Client` can do inside tasks that run."""

    _connections: Connections

    def _run(self, verb: Verb[T]) -> T:
        raise NotImplementedError

    def run_in(
        self,
        job: int | HasId,
        argv: Sequence[str],
        *,
        task: int | None = None,
        input: bytes = b"",
        timeout_s: float | None = None,
    ) -> VisitResult:
        """Runs a command inside a running task (no `task`: the only one that runs): on its host, in its folder, with
        its variables, under its limits. Returns exit code, stdout and stderr.

        It ends with the attempt, with this call, and after `timeout_s` (TimeoutError). It changes nothing of how the
        task ends, and is never run again. Errors: Rejected (not_running, which_task, unknown_task, host_away,
        too_many); DepalmaError if the task ended, or its host or the leader was lost, before the command was done.
        """
        from depalma.client import visits

        (number,) = ids_of([job])

        async def grant() -> Granted:
            return self._run(ask(number, task, argv))

        return visits.in_a_thread(visits.run_in(self._connections, grant, input, timeout_s))


class AsyncVisiting:
    """What `AsyncClient` can do inside tasks that run; see `Visiting`."""

    @property
    def _shared_connections(self) -> Connections:
        raise NotImplementedError

    async def _run(self, verb: Verb[T]) -> T:
        raise NotImplementedError

    async def run_in(
        self,
        job: int | HasId,
        argv: Sequence[str],
        *,
        task: int | None = None,
        input: bytes = b"",
        timeout_s: float | None = None,
    ) -> VisitResult:
        """Runs a command inside a running task; see `Visiting.run_in`."""
        from depalma.client import visits

        (number,) = ids_of([job])

        async def grant() -> Granted:
            return await self._run(ask(number, task, argv))

        return await visits.run_in(self._shared_connections, grant, input, timeout_s)

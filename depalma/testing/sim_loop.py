"""An asyncio event loop of one simulated process: it runs on the simulation's timeline, stands still with its process,
and is gone with it."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import CoroutineType
from typing import Any, TypeVar, cast

from depalma.testing.clock import Timeline

#: how soon a process that stood still is noticed to go on
_LOOK_S = 0.002
ResultT = TypeVar("ResultT")


class SimLoop(asyncio.AbstractEventLoop):
    """Runs callbacks and tasks in order, as soon as they are due and the process does not stand still.

    `alive` and `stands` say how the process is; once it is dead nothing runs any more, not even what cleans up. An
    exception that nobody handles comes out of the timeline, as the loop's driver would have died of it.
    """

    def __init__(self, timeline: Timeline, *, alive: Callable[[], bool], stands: Callable[[], bool]) -> None:
        self._timeline = timeline
        self._alive = alive
        self._stands = stands
        self._ready: deque[asyncio.Handle] = deque()
        self._planned = False
        self._fatal: BaseException | None = None
        self._unstarted: list[asyncio.Task[Any]] = []

    def close(self) -> None:
        """Ends it without a word: what was never begun is nothing to be warned of."""
        for task in self._unstarted:
            if inspect.getcoroutinestate(_coroutine(task)) == inspect.CORO_CREATED:
                _coroutine(task).close()
        self._unstarted.clear()

    def time(self) -> float:
        """The simulation's time."""
        return self._timeline.clock.monotonic()

    # The signatures of the base class say more than is needed here.
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = asyncio.Handle(callback, args, self, context)
        self._add(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timeline.after(max(0.0, when - self.time()), lambda: self._add(handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, ResultT], **options: Any) -> asyncio.Task[ResultT]:  # type: ignore[override]
        """See asyncio."""
        task = asyncio.Task(coro, loop=self, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it may die with its process
        self._unstarted.append(task)
        return task

    def get_debug(self) -> bool:
        """See asyncio."""
        return False

    def is_closed(self) -> bool:
        """See asyncio."""
        return not self._alive()

    def is_running(self) -> bool:
        """See asyncio."""
        return True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """The first exception that nobody handled ends the simulation."""
        error = context.get("exception")
        if self._fatal is None and isinstance(error, BaseException):
            self._fatal = error

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _add(self, handle: asyncio.Handle) -> None:
        if self._alive():
            self._ready.append(handle)
            self._plan(0.0)

    def _plan(self, delay_s: float) -> None:
        if not self._planned:
            self._planned = True
            self._timeline.after(delay_s, self._run)

    def _run(self) -> None:
        self._planned = False
        if self._stands():
            self._plan(_LOOK_S)
            return
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(self._ready)):
                if not self._alive():
                    break
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
                if self._fatal is not None:
                    raise self._fatal
        finally:
            asyncio._set_running_loop(before)
        if not self._alive():
            self._ready.clear()
            return
        self._unstarted = [
            task for task in self._unstarted if inspect.getcoroutinestate(_coroutine(task)) == inspect.CORO_CREATED
        ]
        if self._ready:
            self._plan(0.0)


def _coroutine(task: asyncio.Task[Any]) -> CoroutineType[Any, Any, Any]:
    return cast("CoroutineType[Any, Any, Any]", task.get_coro())

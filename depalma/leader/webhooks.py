"""Tells the webhooks: one messenger each, which sends one id after the other, and what they all have delivered as one
command.

A new leader goes on behind the replicated cursor, which lags behind what was sent; so an id may come twice, and the
first of each id come in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable

import aiohttp
from yarl import URL

from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.leader.context import Context
from depalma.leader.posting import body_of, headers_of, missing_before, pause_s, plain, retry_after_s
from depalma.leader.resolving import OwnResolver
from depalma.model import EventView
from depalma.state.outbox import Webhook
from depalma.state.webhook_commands import DeliverWebhooks

log = logging.getLogger(__name__)

#: From the start of the connection to the head of the answer.
REQUEST_S = 10.0
#: Of a body so much is read, for so long, only so that its connection can be used again.
READ_BYTES = 4096
READ_S = 1.0
#: For so long a connection is kept for the next id.
KEEP_S = 2.0
#: Cursors are recorded this often at most: a target that takes a thousand ids a second costs ten commands.
RECORD_S = 0.1
#: Ids that are looked up at once.
AHEAD = 100

#: (name, epoch, last id that was delivered, what is wrong with the next one)
Note = tuple[str, int, int, str]


class Messengers:
    """A messenger for each webhook, while this master leads."""

    def __init__(self, context: Context, ended: Callable[[asyncio.Task[None]], None]) -> None:
        self._context = context
        self._ended = ended
        self._running: dict[str, tuple[Messenger, asyncio.Task[None]]] = {}
        self._notes: dict[str, Note] = {}
        self._noted = asyncio.Event()
        self._recording: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Starts to deliver."""
        self._recording = self._start(self._record(), "webhooks")
        self.changed(self._context.state.webhooks.by_name)

    def end(self) -> None:
        """Stops."""
        if self._recording is not None:
            self._recording.cancel()
        for _, task in self._running.values():
            task.cancel()
        self._running = {}

    def changed(self, names: Iterable[str]) -> None:
        """These have something to deliver, or were made, changed or removed."""
        if self._recording is None:
            return
        for name in names:
            messenger, task = self._running.get(name, (None, None))
            if messenger is not None and task is not None and not (messenger.is_over or task.done()):
                messenger.wake()
            elif name in self._context.state.webhooks.by_name:
                messenger = Messenger(self._context, name, self._note)
                self._running[name] = messenger, self._start(messenger.run(), f"webhook {name}")
            else:
                self._running.pop(name, None)

    def _start(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _note(self, note: Note) -> None:
        self._notes[note[0]] = note
        self._noted.set()

    async def _record(self) -> None:
        """Writes down how far they all are, several deliveries in one command."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            notes, self._notes = self._notes, {}
            try:
                await self._context.execute(DeliverWebhooks(tuple(notes.values()), self._context.wall()))
            except (NotLeader, OutcomeUnknown) as error:
                # It may lead on: what is not in the log yet, and not outdated, is said again.
                log.info("recording deliveries: %s", error)
                self._notes = notes | self._notes
                self._noted.set()
            await asyncio.sleep(RECORD_S)


class Messenger:
    """Delivers to one target, in order, one at a time."""

    def __init__(self, context: Context, name: str, note: Callable[[Note], None]) -> None:
        self._context = context
        self._name = name
        self._note = note
        self._wake = asyncio.Event()
        self.is_over = False  #: its target was removed; it only closes its connections still
        self._epoch = -1
        self._position = 0  #: the last id that was delivered
        self._failures = 0
        self._ahead: deque[tuple[int, EventView]] = deque()

    def wake(self) -> None:
        """There is something new."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers until the target is removed, or this task is cancelled."""
        async with _client() as http:
            while (webhook := self._context.state.webhooks.by_name.get(self._name)) is not None:
                if webhook.epoch != self._epoch:
                    self._epoch, self._position, self._failures = webhook.epoch, webhook.delivered, 0
                    self._ahead.clear()
                self._wake.clear()
                if not self._ahead:
                    outbox = self._context.state.webhooks.outboxes[self._name]
                    self._ahead.extend(outbox.after(self._position, AHEAD))
                if self._ahead:
                    await self._deliver(http, webhook, *self._ahead[0])
                else:
                    await self._wake.wait()
            self.is_over = True

    async def _deliver(self, http: aiohttp.ClientSession, webhook: Webhook, number: int, event: EventView) -> None:
        """Tries once; after a failure waits before it returns."""
        error, asked_s = await self._post(http, webhook, number, event)
        if not error:
            self._position, self._failures = number, 0
            self._ahead.popleft()
            self._note((self._name, self._epoch, number, ""))
            return
        self._failures += 1
        if (webhook.delivered, webhook.error) != (self._position, error):
            self._note((self._name, self._epoch, self._position, error))
        pause = pause_s(self._failures, random.random(), asked_s)
        log.info("webhook %s: id %d, try %d: %s; next in %.1f s", self._name, number, self._failures, error, pause)
        await self._pause(pause)

    async def _pause(self, pause: float) -> None:
        """Waits; it is over at once when the target was changed, replayed or removed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                while True:
                    webhook = self._context.state.webhooks.by_name.get(self._name)
                    if webhook is None or webhook.epoch != self._epoch:
                        return
                    self._wake.clear()
                    await self._wake.wait()

    async def _post(
        self, http: aiohttp.ClientSession, webhook: Webhook, number: int, event: EventView
    ) -> tuple[str, float]:
        """Returns what went wrong (nothing: it was delivered), and how long the receiver wants to be left alone."""
        state, now = self._context.state, self._context.wall()
        job = state.jobs.get(event.job) if event.job is not None else None
        missing = missing_before(number, self._position)
        body = body_of(webhook, self._context.config.cluster, number, missing, event, job)
        headers = headers_of(webhook, number, event.kind, body, now)
        try:
            async with asyncio.timeout(REQUEST_S) as limit:
                # Percent signs and the like go out as they were given.
                url = URL(webhook.url, encoded=True)
                async with http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    limit.reschedule(None)
                    asked_s = retry_after_s(answer.headers, self._context.wall())
                    status, reason = answer.status, plain(answer.reason or "", 80)
                    # Its head has decided. What the body says, and whether it ever ends, does not matter.
                    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                        async with asyncio.timeout(READ_S):
                            await answer.content.read(READ_BYTES)
        except TimeoutError:
            return f"no answer within {REQUEST_S:g} s", 0.0
        except Exception as error:  # whatever a foreign server does to the HTTP library: no master ends of it
            return _explained(error), 0.0
        if 200 <= status < 300:
            return "", 0.0
        hint = " (redirects are not followed)" if 300 <= status < 400 else ""
        return f"answered {status} {reason}".rstrip() + hint, asked_s


def _explained(error: Exception) -> str:
    """Returns what went wrong before there was an answer, in one line."""
    cause = getattr(error, "os_error", None)
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(cause, OSError):
        number = None if isinstance(cause, socket.gaierror) else cause.errno
        why = cause.strerror or str(cause) if number is None else os.strerror(number)
        return plain(f"cannot connect to {error.host}:{error.port}: {why}")
    return plain(f"{type(error).__name__}: {error}")


def _client() -> aiohttp.ClientSession:
    """A client of one target's own: nothing that hangs there holds up another."""
    # A connection that stood idle for long may be closed by the receiver in the moment of its use: that would be taken
    # for a failure.
    connector = aiohttp.TCPConnector(limit=1, resolver=OwnResolver(), use_dns_cache=False, keepalive_timeout=KEEP_S)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )

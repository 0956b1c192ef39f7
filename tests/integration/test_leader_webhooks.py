"""Deliveries of a real leader to real receivers: in order, until they are taken, whatever a receiver does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from depalma.leader import posting, webhooks
from depalma.master import Master
from depalma.state.outbox import Webhook
from depalma.state.webhook_commands import AddWebhook, RemoveWebhook, ReplayWebhook, SetWebhook, TryWebhook
from depalma.testing.one_master import COMMAND, eventually, free_port, running_master, submit

SECRET = "s" * 40
Answer = Callable[[web.Request], Awaitable[web.StreamResponse] | web.StreamResponse]


class Receiver:
    """An HTTP server that writes down what comes, and answers as it is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.answer: Answer = lambda request: web.Response()
        self.tries: list[tuple[int, float]] = []  #: ids in the order in which they came, and when
        self.taken: list[int] = []  #: ids that were answered with success
        self.bodies: dict[int, Any] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._take), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        number = int(request.headers["Depalma-Id"])
        signed = request.headers["Depalma-Timestamp"].encode() + b"." + body
        expected = "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert request.headers["Depalma-Signature"] == expected
        self.tries.append((number, time.monotonic()))
        self.bodies[number] = msgspec.json.decode(body)
        self.heads[number] = dict(request.headers)
        answer = self.answer(request)  # type: ignore[arg-type]
        response = answer if isinstance(answer, web.StreamResponse) else await answer
        if response.status < 300:
            self.taken.append(number)
        return response

    def first_came_in_order(self) -> bool:
        firsts = list(dict.fromkeys(self.taken))
        return firsts == list(range(1, len(firsts) + 1))


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()


async def add(master: Master, url: str, name: str = "w", *kinds: str, keep: int = 1000) -> None:
    wanted = AddWebhook("", name, url, kinds or ("job.submitted",), (), (), (), SECRET, keep, master.wall())
    await master.execute(wanted)


def of(master: Master, name: str = "w") -> Webhook:
    return master.state.webhooks.by_name[name]


def change_of_leader(master: Master) -> None:
    """Ends the reign and begins another: what is not in the state is forgotten."""
    master._leadership(False, master.term)
    master._leadership(True, master.term)


async def test_what_is_sent(tmp_path: Path) -> None:
    """The event as /v1/events has it, what its job is, and headers to choose by without opening the body."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url)
        job = await submit(master, msgspec.structs.replace(COMMAND, name="nightly", user="ann", tags=("a", "b")))
        await eventually(lambda: of(master).delivered == 1)

        body = receiver.bodies[1]
        assert (body["id"], body["webhook"], body["cluster"], body["missing"]) == (1, "w", master.config.cluster, 0)
        assert (body["event"]["kind"], body["event"]["job"]) == ("job.submitted", job)
        assert body["event"]["detail"] == {"tasks": 1, "name": "nightly"}
        assert body["job"] == {"name": "nightly", "user": "ann", "tags": ["a", "b"]}
        head = receiver.heads[1]
        assert (head["Depalma-Webhook"], head["Depalma-Event"]) == ("w", "job.submitted")
        assert head["Content-Type"] == "application/json"
        assert abs(int(head["Depalma-Timestamp"]) - time.time()) < 60


async def test_many_events_come_in_order_and_cost_few_commands(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url)
        before = master.state.version
        for _ in range(200):
            await submit(master)
        await eventually(lambda: of(master).delivered == 200, 30)

        assert receiver.taken == list(range(1, 201))
        assert master.state.version - before - 200 < 100, "cursors go into the log several deliveries at once"


async def test_a_receiver_that_is_down_gets_everything_later_across_reigns(tmp_path: Path) -> None:
    """Each id at least once, the first of each in order."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url)
        for _ in range(10):
            await submit(master)
        await eventually(lambda: of(master).delivered == 10)
        await receiver.stop()
        for _ in range(10):
            await submit(master)
        await eventually(lambda: of(master).error != "")
        since = of(master).failing_since
        assert of(master).error == f"cannot connect to 127.0.0.1:{receiver.port}: Connection refused"
        change_of_leader(master)
        await submit(master)
        assert of(master).failing_since == since, "who leads does not change since when it fails"
        await receiver.start()
        await eventually(lambda: of(master).delivered == 21, 30)

        assert receiver.first_came_in_order()
        assert len(set(receiver.taken)) == 21
        assert (of(master).error, of(master).failing_since) == ("", None)


async def test_a_reign_that_ends_before_the_cursor_is_recorded_repeats(tmp_path: Path) -> None:
    """Rather twice than never."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        master._reign._messengers._note = lambda note: None  # type: ignore[method-assign]
        await add(master, receiver.url)
        for _ in range(3):
            await submit(master)
        await eventually(lambda: receiver.taken == [1, 2, 3])
        assert of(master).delivered == 0
        change_of_leader(master)
        await eventually(lambda: of(master).delivered == 3)

        assert receiver.taken == [1, 2, 3, 1, 2, 3]


async def test_a_receiver_that_refuses_is_asked_again_after_growing_pauses(tmp_path: Path) -> None:
    """By the receiver's clock: half a second, a second, two; a quarter less at most."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        receiver.answer = lambda request: web.Response(status=500 if len(receiver.tries) < 4 else 204)
        await add(master, receiver.url)
        await submit(master)
        await submit(master)
        await eventually(lambda: of(master).delivered == 2, 30)

        assert [number for number, _ in receiver.tries] == [1, 1, 1, 1, 2], "the next one waits: order counts"
        at = [moment for _, moment in receiver.tries]
        pauses = [later - earlier for earlier, later in pairwise(at)]
        for pause, least in zip(pauses, (0.375, 0.75, 1.5), strict=False):
            assert pause >= least * 0.95
        kinds = [record.kind for record in master.state.events.records if record.kind.startswith("webhook.")]
        assert kinds == ["webhook.added", "webhook.failing", "webhook.recovered"]


async def test_retry_after_is_honoured(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, receiving() as receiver:
        receiver.answer = lambda request: (
            web.Response(status=503, headers={"Retry-After": "2"}) if len(receiver.tries) == 1 else web.Response()
        )
        await add(master, receiver.url)
        await submit(master)
        await eventually(lambda: of(master).delivered == 1, 30)

        assert receiver.tries[1][1] - receiver.tries[0][1] >= 1.9


async def test_one_target_never_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One takes the request and says nothing; one refuses; one is not there."""
    monkeypatch.setattr(webhooks, "REQUEST_S", 4.0)
    silent = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        await silent.wait()
        return web.Response()

    async with running_master(tmp_path) as master, receiving() as slow, receiving() as good, receiving() as bad:
        slow.answer = never
        bad.answer = lambda request: web.Response(status=400)
        await add(master, slow.url, "slow")
        await add(master, bad.url, "bad")
        await add(master, f"http://127.0.0.1:{free_port()}/", "gone")
        await add(master, good.url, "good")
        for _ in range(30):
            await submit(master)
        await eventually(lambda: of(master, "good").delivered == 30)
        assert good.taken == list(range(1, 31))
        await eventually(lambda: of(master, "slow").error == "no answer within 4 s", 30)
        await eventually(lambda: of(master, "bad").error == "answered 400 Bad Request")
        await eventually(lambda: of(master, "gone").error.endswith("Connection refused"))
        assert {of(master, name).delivered for name in ("slow", "bad", "gone")} == {0}
        silent.set()
        await eventually(lambda: of(master, "slow").delivered == 30, 30)


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """They would lead, signed, wherever the receiver likes."""
    async with running_master(tmp_path) as master, receiving() as receiver, receiving() as other:
        receiver.answer = lambda request: web.Response(status=307, headers={"Location": other.url})
        await add(master, receiver.url)
        await submit(master)
        await eventually(lambda: of(master).error == "answered 307 Temporary Redirect (redirects are not followed)")
        assert other.tries == []


GARBAGE = {
    "nothing": b"",
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bytes": bytes(range(256)) * 4,
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "odd status": b"HTTP/1.1 999 \xff\x1b[31m\r\nContent-Length: 0\r\n\r\n",
    "informal for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    "long header": b"HTTP/1.1 500 No\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: minus\r\n\r\n",
    "bad retry": b"HTTP/1.1 503 No\r\nRetry-After: \xb2\xb2 soon\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_a_failure_like_any_other(tmp_path: Path, what: str) -> None:
    """The master goes on, says what came, and tries again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(GARBAGE[what])
        writer.close()

    async with running_master(tmp_path) as master, receiving() as receiver:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            await add(master, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            await submit(master)
            await eventually(lambda: of(master).error != "")
            assert of(master).error.isprintable()
            assert len(of(master).error) <= 200
            assert of(master).delivered == 0
        await master.execute(SetWebhook("", "w", master.wall(), url=receiver.url))
        await eventually(lambda: of(master).delivered == 1)


async def test_a_body_without_end_is_not_read(tmp_path: Path) -> None:
    """The head has said that it was taken; the rest costs nobody anything."""
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                written += 65536
        except ConnectionError:
            writer.close()

    async with running_master(tmp_path) as master:
        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        async with server:
            await add(master, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            await submit(master)
            await eventually(lambda: of(master).delivered == 1)
            assert written < 32 << 20  # buffers of both kernels


async def test_a_body_that_hangs_does_not_hold_back_the_next_id(tmp_path: Path) -> None:
    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.read()
        writer.close()

    async with running_master(tmp_path) as master:
        server = await asyncio.start_server(stuck, "127.0.0.1", 0)
        async with server:
            await add(master, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            await submit(master)
            await submit(master)
            await eventually(lambda: of(master).delivered == 2)


async def test_what_was_dropped_is_said(tmp_path: Path) -> None:
    """The next delivery counts the ids that are missing before it."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url, keep=5)
        await submit(master)
        await eventually(lambda: of(master).delivered == 1)
        await receiver.stop()
        for _ in range(20):
            await submit(master)
        change_of_leader(master)  # what the former had in hand goes with it
        await receiver.start()
        await eventually(lambda: of(master).delivered == 21, 30)

        assert sorted(set(receiver.taken)) == [1, *range(17, 22)]
        assert {number: body["missing"] for number, body in receiver.bodies.items()} == {
            1: 0, 17: 15, 18: 0, 19: 0, 20: 0, 21: 0,
        }  # fmt: skip


async def test_replay_sends_again_and_skip_leaves_out(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url)
        for _ in range(4):
            await submit(master)
        await eventually(lambda: of(master).delivered == 4)
        await master.execute(ReplayWebhook("", "w", 3, False, master.wall()))
        await eventually(lambda: receiver.taken == [1, 2, 3, 4, 3, 4])
        receiver.answer = lambda request: web.Response(status=413 if request.headers["Depalma-Id"] == "5" else 200)
        await submit(master)
        await submit(master)
        await eventually(lambda: of(master).error == "answered 413 Request Entity Too Large")
        await master.execute(ReplayWebhook("", "w", 6, True, master.wall()))
        await eventually(lambda: of(master).delivered == 6)
        assert receiver.taken == [1, 2, 3, 4, 3, 4, 6]


async def test_a_removed_one_is_left_alone_and_one_made_anew_begins_at_one(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, receiving() as receiver:
        receiver.answer = lambda request: web.Response(status=500)
        await add(master, receiver.url)
        await submit(master)
        await eventually(lambda: len(receiver.tries) >= 1)
        await master.execute(RemoveWebhook("", "w", master.wall()))
        receiver.answer = lambda request: web.Response()
        await add(master, receiver.url)
        await master.execute(TryWebhook("", "w", master.wall()))
        await eventually(lambda: of(master).delivered == 1)
        assert receiver.bodies[1]["event"]["kind"] == "webhook.tested"


async def test_names_are_looked_up(tmp_path: Path) -> None:
    """By a thread of the target's own; one that there is not is an error to be shown."""
    async with running_master(tmp_path) as master, receiving() as receiver:
        await add(master, receiver.url.replace("127.0.0.1", "localhost"))
        await add(master, "http://no-such-host.invalid/", "nowhere")
        await add(master, "http://" + "a" * 70 + ".b/", "odd")
        await submit(master)
        await eventually(lambda: of(master).delivered == 1)
        await eventually(lambda: of(master, "nowhere").error != "" and of(master, "odd").error != "", 30)


def test_pauses_double_up_to_a_minute_and_heed_the_receiver() -> None:
    assert [posting.pause_s(failures, 0.0, 0.0) for failures in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert posting.pause_s(2000, 0.0, 0.0) == 60
    assert posting.pause_s(1, 1.0, 0.0) == 0.375
    assert posting.pause_s(1, 0.5, 7.0) == 7.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0), ("", 0.0), ("-1", 0.0), ("soon", 0.0), ("99999999999999999999", 3600.0), ("²", 0.0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0), ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", 3600.0), ("Sun, 99 Nov 1994 08:49:37 GMT", 0.0),
    ],
)  # fmt: skip
def test_what_a_receiver_asks_for(text: str, seconds: float) -> None:
    now = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT
    assert posting.retry_after_s({"Retry-After": text}, now) == seconds


def test_a_signature_that_others_can_compute() -> None:
    """`printf '1.{}' | openssl dgst -sha256 -hmac secret` says the same."""
    assert posting.signature("secret", "1", b"{}") == (
        "v1=1122767b193110cfec322b6f199b599edbf608ed087f2d27afb0b97d99523908"
    )


async def test_a_receiver_that_closes_each_connection_does_not_count_as_failing(tmp_path: Path) -> None:
    """Whether it says so before or not."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 204 OK\r\n\r\n")
        writer.close()

    async with running_master(tmp_path) as master:
        server = await asyncio.start_server(once, "127.0.0.1", 0)
        async with server:
            await add(master, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            for count in range(1, 6):
                await submit(master)
                await eventually(lambda wanted=count: of(master).delivered == wanted)  # type: ignore[misc]
        assert not [record for record in master.state.events.records if record.kind == "webhook.failing"]

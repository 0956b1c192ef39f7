"""The background stream: opened with cursors, opened again when it breaks, told of jobs that may not be in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from depalma.client.connections import Connections
from depalma.client.record import Record
from depalma.client.stream import ResultStream
from depalma.client.transport import Endpoints
from depalma.client.wire import KEEP_ALIVE, ResultBatch, TaskResult, frame
from depalma.errors import DepalmaError

PATIENCE_S = 30.0


def part(job: int, cursor: int, *tasks: int, final: bool = False) -> bytes:
    results = tuple(TaskResult(task, "succeeded") for task in tasks)
    return frame(ResultBatch(job, cursor, results, "succeeded" if final else "running", final))


class Feeds:
    """Plays the result streams of some masters: each opening takes the next feed."""

    def __init__(self, play: Any) -> None:
        self.opened: list[dict[str, Any]] = []
        self.feeds: list[Callable[[], Iterator[bytes]]] = []
        self.over = threading.Event()
        self._reply = play.Reply

    def script(self, seen: Any) -> Any:
        self.opened.append({"master": seen.master, **msgspec.msgpack.decode(seen.body)})
        if not self.feeds:
            return self._reply(chunks=self.quiet())
        return self._reply(chunks=self.feeds.pop(0)())

    def quiet(self) -> Iterator[bytes]:
        while not self.over.wait(0.05):
            yield KEEP_ALIVE

    def then_quiet(self, *chunks: bytes) -> Callable[[], Iterator[bytes]]:
        def feed() -> Iterator[bytes]:
            yield from chunks
            yield from self.quiet()

        return feed

    def ending(self, *chunks: bytes) -> Callable[[], Iterator[bytes]]:
        return lambda: iter(chunks)


def wait_until(said: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < deadline, f"still {said()!r} after {timeout_s} s"
        time.sleep(0.005)


@pytest.fixture
def feeds(play: Any) -> Iterator[Feeds]:
    made = Feeds(play)
    yield made
    made.over.set()


@pytest.fixture
def stream_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ResultStream]]:
    monkeypatch.setattr("depalma.client.stream._PREPARE_S", PATIENCE_S)
    made: list[tuple[ResultStream, Connections]] = []

    def make(*masters: Any, patience_s: float = 60.0, deadline_s: float = PATIENCE_S) -> ResultStream:
        connections = Connections(Endpoints([master.url for master in masters]), "t", deadline_s=deadline_s)
        made.append((ResultStream(connections, patience_s=patience_s), connections))
        return made[-1][0]

    yield make
    for stream, connections in made:
        stream.close()
        connections.close()


def test_a_watched_job_is_delivered_to_its_end(play: Any, feeds: Feeds, stream_of: Any) -> None:
    feeds.feeds = [feeds.then_quiet(part(7, 2, 0, 1), KEEP_ALIVE, part(7, 3, 2, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    assert sorted(record.by_index) == [0, 1, 2]
    assert feeds.opened[0]["cursors"] == {"7": 0}


def test_a_broken_stream_is_opened_again_with_the_cursors_so_far(play: Any, feeds: Feeds, stream_of: Any) -> None:
    feeds.feeds = [
        feeds.ending(part(7, 2, 0, 1), part(7, 3, 2)[:9]),
        feeds.then_quiet(part(7, 4, 2, 3, final=True)),
    ]
    stream, record = stream_of(play.master(feeds.script)), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    assert [result.task for result in record.order] == [0, 1, 2, 3]
    assert [opened["cursors"] for opened in feeds.opened] == [{"7": 0}, {"7": 2}]


def test_a_gap_makes_it_ask_again(play: Any, feeds: Feeds, stream_of: Any) -> None:
    feeds.feeds = [feeds.then_quiet(part(7, 5, 4)), feeds.then_quiet(part(7, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    assert [result.task for result in record.order] == [0]


def test_a_silent_master_is_left_for_another(
    play: Any, feeds: Feeds, stream_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.client.stream.SILENCE_S", 0.2)

    def frozen() -> Iterator[bytes]:
        yield KEEP_ALIVE
        wait_until(lambda: stream.session)  # it bears little from now on, and the next one much
        monkeypatch.setattr("depalma.client.stream.SILENCE_S", 2 * PATIENCE_S)
        feeds.over.wait(PATIENCE_S)

    feeds.feeds = [frozen, feeds.then_quiet(part(7, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script), play.master(feeds.script)), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    assert [opened["master"] for opened in feeds.opened] == ["m1", "m2"]


def test_a_job_that_the_streams_own_master_took_needs_no_new_stream(play: Any, feeds: Feeds, stream_of: Any) -> None:
    more = threading.Event()

    def feed() -> Iterator[bytes]:
        yield KEEP_ALIVE
        more.wait(PATIENCE_S)
        yield part(8, 1, 0, final=True)
        yield from feeds.quiet()

    feeds.feeds = [feed]
    stream, record = stream_of(play.master(feeds.script)), Record(8)
    session = stream.prepare()
    assert session == feeds.opened[0]["session"]
    stream.watch(8, record, session, "m1")
    more.set()
    record.wait(lambda: record.over, PATIENCE_S)
    assert len(feeds.opened) == 1


@pytest.mark.parametrize(("session", "master"), [("", "m1"), ("right", "m2"), ("wrong", "m1")])
def test_a_job_that_may_not_be_in_the_stream_opens_it_again(
    play: Any, feeds: Feeds, stream_of: Any, session: str, master: str
) -> None:
    feeds.feeds = [feeds.then_quiet(), feeds.then_quiet(part(8, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(8)
    right = stream.prepare()
    stream.watch(8, record, right if session == "right" else session, master)
    record.wait(lambda: record.over, PATIENCE_S)
    assert [opened["cursors"] for opened in feeds.opened] == [{}, {"8": 0}]
    assert feeds.opened[0]["session"] != feeds.opened[1]["session"]


def test_results_that_come_before_the_answer_to_the_submission_are_kept(
    play: Any, feeds: Feeds, stream_of: Any
) -> None:
    feeds.feeds = [feeds.then_quiet(part(8, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(8)
    session = stream.prepare()
    wait_until(lambda: 8 in stream.book)
    stream.watch(8, record, session, "m1")
    assert record.over
    assert [result.task for result in record.order] == [0]


def test_an_announced_job_of_which_nothing_comes_is_asked_for_by_name(
    play: Any, feeds: Feeds, stream_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.client.stream.DOUBT_S", 0.1)
    feeds.feeds = [feeds.then_quiet(), feeds.then_quiet(part(8, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(8)
    stream.watch(8, record, stream.prepare(), "m1")
    record.wait(lambda: record.over, PATIENCE_S)
    assert [opened["cursors"] for opened in feeds.opened] == [{}, {"8": 0}]


def test_a_cluster_that_is_gone_for_good_is_told_to_those_who_wait(play: Any, stream_of: Any) -> None:
    master = play.master(lambda seen: play.problem(503, "no_leader"))
    stream, record = stream_of(master, patience_s=0.1, deadline_s=0.2), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    with pytest.raises(DepalmaError, match="no master that leads"):
        record.at_index(0)


def test_a_refusal_is_told_to_those_who_wait(play: Any, stream_of: Any) -> None:
    stream, record = stream_of(play.master(lambda seen: play.problem(401, "not_authorised", "bad token"))), Record(7)
    stream.watch(7, record)
    record.wait(lambda: record.over, PATIENCE_S)
    with pytest.raises(DepalmaError, match="bad token"):
        record.at_index(0)


def test_closing_ends_the_thread_and_tells_those_who_wait(play: Any, feeds: Feeds, stream_of: Any) -> None:
    stream, record = stream_of(play.master(feeds.script)), Record(7)
    stream.watch(7, record)
    wait_until(lambda: stream.session)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "depalma-results"]
    with pytest.raises(DepalmaError, match="closed"):
        record.at_index(0)


def test_who_comes_after_the_close_is_told_too(play: Any, feeds: Feeds, stream_of: Any) -> None:
    """A submission that got its answer while another thread closed the client."""
    stream, record = stream_of(play.master(feeds.script)), Record(7)
    stream.close()
    stream.watch(7, record)
    assert isinstance(record.error, DepalmaError)


def test_an_idle_stream_is_closed_and_comes_back(
    play: Any, feeds: Feeds, stream_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds.feeds = [feeds.then_quiet(), feeds.then_quiet(part(8, 1, 0, final=True))]
    stream, record = stream_of(play.master(feeds.script)), Record(8)
    assert stream.prepare()
    monkeypatch.setattr("depalma.client.stream.IDLE_S", 0.1)
    wait_until(lambda: not stream.session)
    monkeypatch.setattr("depalma.client.stream.IDLE_S", 2 * PATIENCE_S)
    stream.watch(8, record, stream.prepare(), "m1")
    record.wait(lambda: record.over, PATIENCE_S)

"""Large results are fetched in the background; whoever waits for one is told, whatever becomes of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from depalma.client.client import Client
from depalma.client.futures import LoneFuture
from depalma.client.wire import TaskResult
from depalma.errors import DepalmaError
from depalma.model import Payload


def test_a_result_that_comes_when_the_program_ends_is_an_error() -> None:
    """Pools refuse work from then on; threads that wait for results are waited for by the interpreter."""
    with Client(["http://127.0.0.1:9"], token="t") as client:
        client._fetchers = ThreadPoolExecutor(1)
        client._fetchers.shutdown()
        future = LoneFuture(client._with_data, client._cancel_soon)
        future.deliver([TaskResult(0, "succeeded", result=Payload(digest="0" * 64, size_bytes=10))])
        assert isinstance(future.exception(timeout=30), DepalmaError)


def test_closing_does_not_wait_for_results_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masters that are gone were waited for, for half a minute each result."""
    monkeypatch.setattr("depalma.client.client._CLOSE_S", 0.3)
    client = Client(["http://127.0.0.1:9"], token="t", deadline_s=30.0)
    futures = [LoneFuture(client._with_data, client._cancel_soon) for _ in range(8)]
    for future in futures:
        future.deliver([TaskResult(0, "succeeded", result=Payload(digest="0" * 64, size_bytes=10))])
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 10
    assert all(isinstance(future.exception(timeout=30), DepalmaError) for future in futures)


def test_closing_waits_for_a_cancellation_to_be_told(play: Any) -> None:
    master = play.master(lambda seen: play.answer({"cancelled": [7]}))
    with Client([master.url], token="t") as client:
        client._cancel_soon(7)
    assert [seen.path for seen in master.seen] == ["/v1/jobs/cancel"]

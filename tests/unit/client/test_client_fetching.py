"""Large results are fetched in the background; whoever waits for one is told, whatever becomes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
        assert isinstance(future.exception(timeout=1), DepalmaError)

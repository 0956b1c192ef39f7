"""What a client makes of masters by https: it stays with it, and does not wait for those that cannot be trusted."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from depalma.client.transport import Answer, Attempt, Endpoints, Exchange, Pause, Request
from depalma.errors import NoLeader
from depalma.trust import fingerprint


def untrusted() -> ssl.SSLCertVerificationError:
    return ssl.SSLCertVerificationError(1, "forged")


def test_who_was_given_https_goes_to_nobody_in_plain_text() -> None:
    """Whatever a master says of itself and of the others; and the other way round."""
    for given, told in (("https", "http"), ("http", "https")):
        endpoints = Endpoints([f"{given}://a:1"])
        endpoints.heard(f"{given}://a:1", {"depalma-leader": f"{told}://b:1/"})
        endpoints.learn(f"{told}://a:1,{told}://b:1")
        assert endpoints.order(0.0) == [f"{given}://b:1", f"{given}://a:1"]


def test_masters_that_prove_nothing_are_not_waited_for() -> None:
    exchange = Exchange(Endpoints(["https://a:1", "https://b:1"]), Request("GET", "/"), now=0.0, deadline_s=30.0)
    for _ in range(2):
        step = exchange.next(0.0)
        assert isinstance(step, Attempt)
        exchange.failed(step, untrusted(), 0.0)
    with pytest.raises(NoLeader, match=r"no master proves to be one: https://a:1: not to be trusted: .*forged.*b:1"):
        exchange.next(0.0)


def test_one_false_master_among_true_ones_stops_nobody() -> None:
    exchange = Exchange(Endpoints(["https://a:1", "https://b:1"]), Request("GET", "/"), now=0.0, deadline_s=30.0)
    first = exchange.next(0.0)
    assert isinstance(first, Attempt)
    exchange.failed(first, untrusted(), 0.0)
    second = exchange.next(0.0)
    assert isinstance(second, Attempt)
    assert not exchange.answered(second, Answer(503, {}), 0.0)
    assert isinstance(exchange.next(0.0), Pause)


def test_a_file_that_was_made_readable_is_read_again(tmp_path: Path) -> None:
    """Copied as root, and given to its user only then: its bytes and their time stay as they were."""
    file = tmp_path / "ca.crt"
    file.write_bytes(b"x")
    file.chmod(0)
    before = fingerprint(file)
    deadline = time.monotonic() + 5
    while fingerprint(file) == before and time.monotonic() < deadline:  # the clock of files has a coarse tick
        file.chmod(0o600)
    assert fingerprint(file) != before

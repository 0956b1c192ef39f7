"""Requests that are sent again: the first answer, or nothing; never a second time."""

from __future__ import annotations

from random import Random

import pytest

from depalma.model import JobSpec
from depalma.state import commands as c
from depalma.state import requests
from depalma.state.machine import Machine, digest_of
from depalma.state.requests import with_seen

SPEC = JobSpec(kind="command", argv=("true",))
LIMIT = 40


class Sender:
    """Submits jobs, as a client that has seen some of the state and may have to send one of its requests again."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.at = 1.0
        self.count = 0

    def fresh(self, behind: int = 0) -> str:
        """Returns a new id of one who saw the state when it was so many versions younger."""
        self.count += 1
        return with_seen(f"r{self.count}", max(0, self.machine.state.version - behind))

    def send(self, request: str) -> int | str:
        """Returns the job's id, or the code of the refusal."""
        self.at += 1.0
        outcome = self.machine.apply(c.encode(c.SubmitJob(request, SPEC, self.at)), self.machine.state.version + 1)
        if isinstance(outcome, c.Rejected):
            return outcome.code
        assert isinstance(outcome, c.Applied)
        assert isinstance(outcome.value, int)
        return outcome.value


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setattr(requests, "LIMIT", LIMIT)
    return Sender(Machine())


@pytest.mark.parametrize("seed", range(20))
def test_however_late_it_is_sent_again_nothing_is_done_twice(sender: Sender, seed: int) -> None:
    """And one that is new is refused only if its sender has not looked for longer than answers are kept."""
    random = Random(seed)
    given: dict[str, int] = {}
    refused = again = 0
    for _ in range(1_000):
        if given and random.random() < 0.5:
            request = random.choice(list(given)[-2 * LIMIT :])
            answer = sender.send(request)
            assert answer in (given[request], "request_forgotten")
            again += answer == given[request]
        else:
            behind = random.choice([0, 0, 1, 5, LIMIT, 5 * LIMIT])
            request = sender.fresh(behind)
            answer = sender.send(request)
            if isinstance(answer, int):
                assert answer not in given.values()
                given[request] = answer
            else:
                assert answer == "request_forgotten"
                assert behind >= LIMIT // 2
                refused += 1
    assert len(sender.machine.state.jobs) == len(given)
    assert refused > 10
    assert again > 100


def test_what_is_known_of_requests_outlives_a_snapshot(sender: Sender) -> None:
    requests_sent = [sender.fresh() for _ in range(3 * LIMIT)]
    answers = [sender.send(request) for request in requests_sent]
    copy = Machine()
    copy.restore(sender.machine.snapshot())
    sender.machine = copy
    assert sender.send(requests_sent[0]) == "request_forgotten"
    assert sender.send(requests_sent[-1]) == answers[-1]
    assert isinstance(sender.send(sender.fresh()), int)


@pytest.mark.parametrize("request_id", ["r", "r\0", "r\0x", "r\0-1", "r\0²", "\0"])
def test_an_id_that_says_nothing_of_what_was_seen_is_new_if_it_is_not_known(sender: Sender, request_id: str) -> None:
    for _ in range(3 * LIMIT):
        sender.send(sender.fresh())
    assert isinstance(sender.send(request_id), int)


def test_a_refusal_changes_nothing(sender: Sender) -> None:
    first = sender.fresh()
    for _ in range(3 * LIMIT):
        sender.send(sender.fresh())
    before = digest_of(sender.machine.state, version=False)
    assert sender.send(first) == "request_forgotten"
    assert digest_of(sender.machine.state, version=False) == before

"""One call, step by step: whom it asks, when it waits, how it ends."""

from __future__ import annotations

import json

import pytest

from depalma.client.transport import (
    ATTEMPT_S,
    AVOID_S,
    BACKOFF_S,
    Answer,
    Attempt,
    Endpoints,
    Exchange,
    Pause,
    Request,
    segment,
    with_query,
)
from depalma.errors import DepalmaError, NoLeader, Rejected

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def exchange(endpoints: Endpoints | None = None, request: Request | None = None, deadline_s: float = 30.0) -> Exchange:
    return Exchange(endpoints or Endpoints([A, B, C]), request or Request("GET", "/"), now=0.0, deadline_s=deadline_s)


def says(status: int, code: str = "", leader: str = "", **more: object) -> Answer:
    body = json.dumps({"code": code, "title": code, "detail": f"about {code}", **more}).encode()
    return Answer(status, {"depalma-leader": leader}, body)


def attempt(call: Exchange, now: float = 0.0) -> Attempt:
    step = call.next(now)
    assert isinstance(step, Attempt), step
    return step


def test_a_good_answer_ends_the_call() -> None:
    call = exchange()
    assert call.answered(attempt(call), says(200), 0.0)


def test_the_leader_that_an_answer_names_is_asked_first_by_the_next_call() -> None:
    endpoints = Endpoints([A, B, C])
    call = exchange(endpoints)
    call.answered(attempt(call), says(200, leader=C), 0.0)
    assert attempt(exchange(endpoints)).url == C


def test_dead_masters_are_passed_over_without_a_pause_and_all_dead_ones_with_growing_pauses() -> None:
    call = exchange()
    asked: list[str] = []
    pauses: list[float] = []
    now = 0.0
    while len(pauses) < 8:
        step = call.next(now)
        if isinstance(step, Pause):
            pauses.append(step.seconds)
            now += step.seconds
        else:
            asked.append(step.url)
            call.failed(step, ConnectionRefusedError(111, "Connection refused"), now)
    assert sorted(asked[:3]) == [A, B, C]
    assert pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5])
    assert max(pauses) == BACKOFF_S[1]


def test_a_follower_that_answers_421_sends_us_to_the_leader_at_once() -> None:
    call = exchange()
    first = attempt(call)
    assert not call.answered(first, says(421, "not_leader", leader=C), 0.0)
    assert attempt(call).url == C


def test_masters_that_point_at_each_other_do_not_make_the_client_spin() -> None:
    call = exchange(Endpoints([A, B]))
    pauses = 0
    for _ in range(20):
        step = call.next(now := pauses * 1.0)
        if isinstance(step, Pause):
            pauses += 1
        else:
            call.answered(step, says(421, "not_leader", leader=B if step.url == A else A), now)
    assert pauses >= 6


def test_a_dead_leader_is_not_believed_for_a_moment_even_if_a_follower_still_names_it() -> None:
    endpoints = Endpoints([A, B, C])
    endpoints.leader = A
    call = exchange(endpoints)
    call.failed(attempt(call), ConnectionResetError(104, "reset"), 0.0)
    second = attempt(call)
    assert second.url in (B, C)
    call.answered(second, says(503, "no_leader", leader=A), 0.0)
    third = attempt(call)
    assert third.url in {B, C} - {second.url}
    assert endpoints.avoided(A, 0.0)
    assert not endpoints.avoided(A, AVOID_S)


def test_an_unknown_outcome_is_tried_again_with_the_same_key() -> None:
    call = exchange(request=Request("POST", "/v1/jobs", b"{}"))
    key = dict(call.headers)["Idempotency-Key"]
    assert not call.answered(attempt(call), says(503, "outcome_unknown"), 0.0)
    assert call.answered(attempt(call), says(201), 0.0)
    assert len(key) == 32
    assert dict(call.headers)["Idempotency-Key"] == key


def test_reads_carry_no_key_and_a_given_key_is_kept() -> None:
    assert "Idempotency-Key" not in dict(exchange().headers)
    assert dict(exchange(request=Request("POST", "/", key="mine")).headers)["Idempotency-Key"] == "mine"


def test_the_deadline_ends_it_with_the_last_words_of_each_master() -> None:
    call = exchange(Endpoints([A, B]), deadline_s=5.0)
    call.failed(attempt(call), ConnectionRefusedError(111, "Connection refused"), 0.0)
    call.answered(attempt(call), says(503, "no_leader"), 4.0)
    with pytest.raises(NoLeader, match=r"within 5 s \(http://a:1: Connection refused; http://b:1: 503 no_leader\)"):
        call.next(5.0)


def test_who_stood_still_until_the_deadline_asks_once() -> None:
    call = exchange(Endpoints([A, B]), deadline_s=5.0)
    first = call.next(60.0)
    assert isinstance(first, Attempt)
    call.failed(first, ConnectionRefusedError(111, "Connection refused"), 60.0)
    with pytest.raises(NoLeader, match="Connection refused"):
        call.next(60.0)


def test_time_that_the_server_may_wait_is_added_to_deadline_and_attempt() -> None:
    call = exchange(request=Request("GET", "/", wait_s=20.0), deadline_s=1.0)
    assert attempt(call).timeout_s == pytest.approx(21.0)
    assert isinstance(call.next(20.9), Attempt)


def test_a_master_that_does_not_answer_is_given_more_time_each_time() -> None:
    call = exchange(Endpoints([A]), deadline_s=1000.0)
    first = attempt(call)
    assert first.timeout_s == ATTEMPT_S
    call.failed(first, TimeoutError(), ATTEMPT_S)
    now = ATTEMPT_S
    while isinstance(step := call.next(now), Pause):
        now += step.seconds
    assert step.timeout_s == 2 * ATTEMPT_S


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "unknown_job", "unknown_job"),
        (401, "", "not_authorised"),
        (409, "rejected", "rejected"),
        (413, "too_large", "too_large"),
    ],
)
def test_a_refusal_is_rejected_with_its_code(status: int, code: str, expected: str) -> None:
    call = exchange()
    with pytest.raises(Rejected, match="about") as caught:
        call.answered(attempt(call), says(status, code), 0.0)
    assert caught.value.code == expected


def test_a_raw_request_gets_refusals_as_answers() -> None:
    call = exchange(request=Request("GET", "/", raw=True))
    assert call.answered(attempt(call), says(410, "events_gone", oldest=7), 0.0)


def test_a_fault_of_the_master_is_an_error_that_says_so() -> None:
    call = exchange()
    with pytest.raises(DepalmaError, match="the master failed: HTTP 500: about oops"):
        call.answered(attempt(call), says(500, "oops"), 0.0)


def test_a_refusal_that_is_no_json_is_shown_as_text() -> None:
    call = exchange()
    with pytest.raises(Rejected, match="Bad Gateway of some proxy"):
        call.answered(attempt(call), Answer(400, {}, b"Bad Gateway of some proxy"), 0.0)


def test_paths_are_quoted() -> None:
    assert (
        with_query("/v1/jobs", {"name": "a b&c", "all": True, "tag": None, "x": False}) == "/v1/jobs?name=a+b%26c&all=1"
    )
    assert segment("a/b?c") == "a%2Fb%3Fc"


def forgotten(index: int) -> Answer:
    answer = says(409, "request_forgotten")
    return Answer(answer.status, {**answer.headers, "depalma-index": str(index)}, answer.body)


def test_a_write_says_how_far_its_sender_had_seen_before_its_first_attempt() -> None:
    endpoints = Endpoints([A, B, C])
    first = exchange(endpoints)
    first.answered(attempt(first), Answer(200, {"depalma-index": "70"}), 0.0)
    call = exchange(endpoints, Request("POST", "/"))
    sent = dict(call.headers)
    assert sent["Depalma-Seen"] == "70"
    step = attempt(call)
    call.answered(step, Answer(503, {"depalma-index": "90"}), 0.0)
    assert dict(call.headers) == sent, "an answer to it may be as old as 71"
    assert dict(exchange(endpoints, Request("POST", "/")).headers)["Depalma-Seen"] == "90"
    assert "Depalma-Seen" not in dict(exchange(endpoints, Request("GET", "/")).headers)
    own = dict(exchange(endpoints, Request("POST", "/", key="mine")).headers)
    assert (own["Idempotency-Key"], own.get("Depalma-Seen")) == ("mine", None), "it may have been used long ago"
    first = exchange(endpoints)
    first.answered(attempt(first), Answer(200, {"depalma-index": "7"}), 0.0)
    assert dict(exchange(endpoints, Request("POST", "/")).headers)["Depalma-Seen"] == "7", "it was restored"


def test_who_has_not_looked_for_long_is_told_that_his_new_request_may_be_old_and_knows_better() -> None:
    call = exchange(request=Request("POST", "/"))
    before = dict(call.headers)
    step = attempt(call)
    call.failed(step, ConnectionRefusedError(111, "Connection refused"), 0.0)  # it never left
    step = attempt(call)
    assert not call.answered(step, forgotten(500), 0.0)
    again = attempt(call)
    assert again.url == step.url
    after = dict(call.headers)
    assert after["Depalma-Seen"] == "500"
    assert after["Idempotency-Key"] != before["Idempotency-Key"]
    with pytest.raises(Rejected, match="about request_forgotten"):
        call.answered(again, forgotten(500), 0.0)


@pytest.mark.parametrize("how", ["timeout", "503", "earlier call", "own key"])
def test_what_may_have_been_done_is_not_sent_as_a_new_request(how: str) -> None:
    request = Request("POST", "/", maybe_done=how == "earlier call", key="mine" if how == "own key" else "")
    call = exchange(request=request)
    if how == "timeout":
        call.failed(attempt(call), TimeoutError(), 0.0)
    elif how == "503":
        assert not call.answered(attempt(call), says(503, "outcome_unknown"), 0.0)
    with pytest.raises(Rejected) as refused:
        call.answered(attempt(call), forgotten(500), 0.0)
    assert refused.value.code == "request_forgotten"

"""What a leader sends: forward only, and never a storm."""

from __future__ import annotations

from depalma.consensus.log import Log
from depalma.consensus.messages import Append
from depalma.consensus.replication import PROBE_BYTES, WINDOW_BYTES, Follower, Mode, next_append


def log_of(count: int, size: int = 1) -> Log:
    log = Log()
    for index in range(2, count + 2):
        log.append((bytes(size), index, 1))
    return log


def sent(follower: Follower, log: Log, *, heartbeat: bool = False, round_number: int = 0) -> list[Append]:
    """Everything that goes out in one tick."""
    messages = []
    while message := next_append(follower, log, term=1, commit_index=1, round_number=round_number, heartbeat=heartbeat):
        heartbeat = False
        messages.append(message)
    return messages


def streaming(log: Log, match: int) -> Follower:
    follower = Follower(next=match + 1)
    assert next_append(follower, log, term=1, commit_index=1, round_number=0, heartbeat=True)
    follower.accepted(match, 0.0)
    assert follower.mode is Mode.STREAM
    return follower


def test_a_probe_goes_out_once_until_it_is_answered() -> None:
    log, follower = log_of(10), Follower(next=12)

    assert [(m.prev_index, m.entries) for m in sent(follower, log, heartbeat=True)] == [(11, [])]
    assert sent(follower, log) == []


def test_entries_in_flight_are_not_sent_again() -> None:
    log = log_of(10)
    follower = streaming(log, 5)

    assert [len(m.entries) for m in sent(follower, log)] == [6]
    assert sent(follower, log) == []
    follower.accepted(8, 1.0)
    assert follower.next == 12, "an acknowledgement moves nothing back"
    assert sent(follower, log) == []


def test_the_window_limits_what_is_in_flight() -> None:
    log = log_of(100, size=1 << 18)
    follower = streaming(log, 1)

    out = sent(follower, log)
    in_flight = sum(len(command) for m in out for _, command in m.entries)
    assert in_flight == WINDOW_BYTES
    follower.accepted(out[0].prev_index + len(out[0].entries), 1.0)

    assert len(sent(follower, log)) == 1


def test_one_refusal_makes_one_probe() -> None:
    """Each of ten messages in flight is refused; only the first of these refusals means anything."""
    log = log_of(1000)
    follower = streaming(log, 500)
    sent(follower, log)
    for _ in range(9):
        sent(follower, log, heartbeat=True)
    probes = []
    for _ in range(10):
        follower.refused(1001, 400, 1.0)
        probes += sent(follower, log)

    assert [m.prev_index for m in probes] == [500]


def test_a_late_refusal_below_what_is_known_to_match_is_ignored() -> None:
    log = log_of(1000)
    follower = streaming(log, 500)

    assert follower.refused(300, 200, 1.0) is False
    assert (follower.match, follower.mode) == (500, Mode.STREAM)


def test_a_probe_goes_back_to_what_the_follower_has() -> None:
    log, follower = log_of(1000), Follower(next=1002)
    sent(follower, log, heartbeat=True)
    follower.refused(1001, 50, 1.0)

    (probe,) = sent(follower, log)
    assert probe.prev_index == 49
    follower.accepted(49 + len(probe.entries), 2.0)
    assert follower.mode is Mode.STREAM


def test_a_guess_carries_little_and_the_rest_follows_once_it_was_right() -> None:
    """Seed 341108578: two wrong guesses in a row cost half a megabyte each."""
    for size, carried in ((1000, 4), (PROBE_BYTES, 1), (PROBE_BYTES + 1, 0)):
        log, follower = log_of(100, size), Follower(next=90)

        (probe,) = sent(follower, log)
        assert len(probe.entries) == carried
        follower.refused(89, 50, 1.0)
        (probe,) = sent(follower, log)
        assert len(probe.entries) == carried
        follower.accepted(49 + carried, 1.0)
        assert sum(len(m.entries) for m in sent(follower, log)) == 101 - 49 - carried


def test_a_follower_that_lost_what_it_had_is_noticed_and_no_longer_counted() -> None:
    log = log_of(100)
    follower = streaming(log, 80)
    follower.reconnected()
    sent(follower, log)

    assert follower.refused(80, 2, 1.0) is True
    assert (follower.match, follower.next) == (0, 2)


def test_match_never_goes_back_on_a_late_acknowledgement() -> None:
    log = log_of(100)
    follower = streaming(log, 80)
    follower.accepted(40, 1.0)

    assert (follower.match, follower.next) == (80, 81)


def test_a_read_gets_its_round_out_even_if_there_is_nothing_to_send() -> None:
    log = log_of(10)
    follower = streaming(log, 11)

    (message,) = sent(follower, log, round_number=7)
    assert (message.round, message.entries) == (7, [])
    assert sent(follower, log, round_number=7) == []


def test_what_was_lost_is_sent_again_from_what_is_known() -> None:
    log = log_of(10)
    follower = streaming(log, 5)
    sent(follower, log)
    assert follower.waits()
    follower.lost()

    (again,) = sent(follower, log)
    assert (again.prev_index, len(again.entries)) == (5, 6)

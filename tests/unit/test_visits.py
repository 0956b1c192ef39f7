"""What the ends of a visit say to each other: whatever comes is checked, and only so much is on the way."""

from __future__ import annotations

import random

import msgspec
import pytest

from depalma import visits
from depalma.visits import CHUNK_BYTES, WINDOW_BYTES, Breach, Credit, Data, End, Flight, Over, Signal, Size

FROM_USER = [Data(0, b"\0\xff" * 9), Credit(9), End(), Signal("INT"), Size(24, 80), Data(0, b"x" * CHUNK_BYTES)]
FROM_TASK = [Data(1, b"\0\xff"), Data(2, b""), Credit(9), Over(3), Over(None, "lost"), Data(1, b"x" * CHUNK_BYTES)]


def test_messages_survive_their_encoding():
    assert [visits.from_user(visits.encode(message)) for message in FROM_USER] == FROM_USER
    assert [visits.from_task(visits.encode(message)) for message in FROM_TASK] == FROM_TASK


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Data(1, b"x"), "data for stream 1; allowed: 0"),
        (Signal("KILL"), "signal 'KILL'; allowed: HUP, INT, QUIT, USR1, USR2, TERM"),
        (Size(0, 80), "a window of 0 rows and 80 columns; allowed: 1 to 10000"),
        (Size(24, 10_001), "a window of 24 rows and 10001 columns"),
        (Data(0, b"x" * (CHUNK_BYTES + 1024)), "a message of "),
        (Over(0), "a message that is none"),
    ],
)
def test_what_a_user_may_not_say(message, said):
    with pytest.raises(Breach, match=said):
        visits.from_user(visits.encode(message))


@pytest.mark.parametrize("message", [Data(0, b"x"), Data(3, b"x"), End(), Signal("INT"), Size(24, 80)])
def test_what_a_task_may_not_say(message):
    with pytest.raises(Breach):
        visits.from_task(visits.encode(message))


def test_damaged_bytes_are_a_breach_and_nothing_else():
    rng = random.Random(7)
    whole = [visits.encode(message) for message in (*FROM_USER[:5], *FROM_TASK[:5])]
    wild = [b"", b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode(["data", 0, "text"]), b"\xff" * 40_000]
    for _ in range(3000):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        wild.append(bytes(data[: rng.randint(0, len(data))]))
    for data in wild:
        for read in (visits.from_user, visits.from_task):
            try:
                read(data)
            except Breach:
                continue


def test_no_more_is_on_the_way_than_was_agreed():
    flight = Flight()
    flight.add(WINDOW_BYTES)
    assert flight.room_bytes == 0
    with pytest.raises(Breach, match=r"262145 bytes on the way; allowed: 262144"):
        flight.add(1)
    flight.consumed(10)
    flight.add(10)
    for size_bytes in (WINDOW_BYTES + 1, -1):
        with pytest.raises(Breach, match="are called consumed"):
            flight.consumed(size_bytes)
    flight.consumed(WINDOW_BYTES)
    assert flight.size_bytes == 0

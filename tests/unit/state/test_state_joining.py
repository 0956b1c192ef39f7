"""Invitations work once, expire, and survive a snapshot."""

from __future__ import annotations

import random

import pytest

from depalma.state import commands as c
from depalma.state.joining import MAX_OPEN
from depalma.state.machine import Machine, digest_of

SECRET, OTHER = "a" * 64, "b" * 64


def invite(bench, secret: str = SECRET, host: str = "h9", *, lasts_s: float = 100.0) -> None:  # type: ignore[no-untyped-def]
    now = bench.tick()
    bench.ok(c.InviteHost("", secret, host, now + lasts_s, now, "ann"))


def test_an_invitation_makes_a_host_known_and_works_once(bench) -> None:  # type: ignore[no-untyped-def]
    invite(bench)
    assert "h9" not in bench.state.hosts

    bench.ok(c.JoinHost("machine-1", SECRET, "10.0.0.9", bench.tick()))

    assert bench.state.hosts["h9"].state == "down"
    assert bench.kinds() == ["host.invited", "host.added", "host.joined"]
    # The same machine did not get the answer and asks again; another one has the same string.
    bench.ok(c.JoinHost("machine-1", SECRET, "10.0.0.9", bench.tick()))
    assert bench.refused(c.JoinHost("machine-2", SECRET, "10.0.0.8", bench.tick())).code == "invitation_used"
    assert bench.kinds() == ["host.invited", "host.added", "host.joined"]


def test_a_host_that_is_known_stays_as_it_is(bench) -> None:  # type: ignore[no-untyped-def]
    bench.ok(c.AddHost("", "h9", ("g",), {}, 5, 2, 0, bench.tick()))
    invite(bench)

    bench.ok(c.JoinHost("machine-1", SECRET, "10.0.0.9", bench.tick()))

    assert bench.state.hosts["h9"].groups == ("g",)


def test_refusals(bench) -> None:  # type: ignore[no-untyped-def]
    invite(bench, lasts_s=10.0)
    now = bench.tick()

    for field, command in (
        ("secret_hash", c.InviteHost("", "short", "h1", now + 5, now)),
        ("host", c.InviteHost("", OTHER, "no name", now + 5, now)),
        ("expires_at", c.InviteHost("", OTHER, "h1", now - 1, now)),
        ("expires_at", c.InviteHost("", OTHER, "h1", now + 1e9, now)),
        ("by", c.InviteHost("", OTHER, "h1", now + 5, now, "x" * 201)),
        ("request", c.JoinHost("", SECRET, "", now)),
    ):
        refusal = bench.refused(command)
        assert (refusal.code, refusal.message.split(":")[0]) == ("bad_field", field)
    assert bench.refused(c.InviteHost("", SECRET, "h1", now + 5, now)).code == "name_taken"
    assert bench.refused(c.JoinHost("r", OTHER, "", now)).code == "no_invitation"
    assert bench.refused(c.JoinHost("r", SECRET, "", now + 60)).code == "invitation_expired"


def test_expired_ones_make_room(bench) -> None:  # type: ignore[no-untyped-def]
    now = bench.tick()
    for number in range(MAX_OPEN):
        bench.machine.apply(c.encode(c.InviteHost("", f"{number:064x}", "h1", now + 50, now)), 1)
        bench.twin.apply(c.encode(c.InviteHost("", f"{number:064x}", "h1", now + 50, now)), 1)

    assert bench.refused(c.InviteHost("", SECRET, "h1", now + 9, now + 1)).code == "too_many"
    bench.ok(c.InviteHost("", SECRET, "h1", now + 90, now + 50))
    assert list(bench.state.invitations) == [SECRET]


def test_a_snapshot_knows_what_was_used(bench) -> None:  # type: ignore[no-untyped-def]
    invite(bench)
    invite(bench, OTHER, "h8")
    bench.ok(c.JoinHost("machine-1", SECRET, "10.0.0.9", bench.tick()))
    again = Machine()

    again.restore(bench.machine.snapshot())

    assert digest_of(again.state) == digest_of(bench.state)
    refused = again.apply(c.encode(c.JoinHost("machine-2", SECRET, "", bench.tick())), 1)
    assert isinstance(refused, c.Rejected)
    assert refused.code == "invitation_used"
    assert isinstance(again.apply(c.encode(c.JoinHost("machine-2", OTHER, "", bench.tick())), 1), c.Applied)


def test_the_same_request_invites_once(bench) -> None:  # type: ignore[no-untyped-def]
    now = bench.tick()
    command = c.InviteHost("r1", SECRET, "h9", now + 9, now)

    bench.ok(command)
    bench.ok(command)

    assert bench.kinds() == ["host.invited"]


@pytest.mark.parametrize("seed", range(5))
def test_by_chance_among_other_commands(make_bench, make_fuzzer, seed: int) -> None:  # type: ignore[no-untyped-def]
    """The bench checks after each: twins agree, and a refusal changes nothing."""
    rng, bench = random.Random(seed), make_bench()
    fuzzer, winners, joined = make_fuzzer(bench, rng), {}, 0
    for step in range(600):
        command = fuzzer.step()
        secret, request, now = rng.choice("123x") * 64, fuzzer.request(), bench.now
        if rng.random() < 0.3:
            until = now + rng.choice([5, 5000, -1])
            command = c.InviteHost(request, secret, rng.choice([fuzzer.host_name(), "h7", "bad name"]), until, now)
        elif rng.random() < 0.3:
            command = c.JoinHost(request, secret, "10.0.0.9", now)
        outcome = bench.do(command)
        if isinstance(command, c.JoinHost) and isinstance(outcome, c.Applied):
            joined += 1
            # The same secret may be given again later.
            which = command.secret_hash, bench.state.invitations[command.secret_hash].expires_at
            winner = winners.setdefault(which, command.request)
            assert winner == command.request, f"step {step}: two machines used one invitation"
    assert joined > 3
    assert digest_of(bench.state) == digest_of(bench.twin.state)

"""Hosts: known, up, suspect and back, lost for good; one incarnation after the other."""

from __future__ import annotations

import msgspec
import pytest

from depalma.state import commands as c


def test_a_host_is_down_until_its_agent_comes(bench):
    """And says so."""
    bench.ok(c.AddHost("", "h1", ("g",), {"os": "debian"}, 5, 0, 1, bench.tick()))
    host = bench.state.hosts["h1"]
    assert (host.state, host.reason) == ("down", "its agent has not connected yet")
    assert host.slots == 0

    bench.up("h1", slots=6)
    assert (host.state, host.reason, host.since) == ("up", "", bench.now)
    assert host.slots == 6
    assert host.groups == ("g",)
    assert bench.kinds() == ["host.added", "host.up"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "-x"}),
        ("groups", {"groups": ("a b",)}),
        ("slots", {"slots": -1}),
        ("gpus", {"gpus": -1}),
        ("priority", {"priority": 1 << 40}),
        ("labels", {"labels": {"k": "v" * 2000}}),
    ],
)
def test_a_wrong_host_is_refused_by_field(bench, field, changes):
    """As a spec is."""
    values = {"name": "h1", "groups": (), "labels": {}, "priority": 0, "slots": 1, "gpus": 0} | changes
    refusal = bench.refused(c.AddHost("", **values, at=1.0))

    assert refusal.code == "bad_field"
    assert refusal.message.startswith(f"{field}: ")


def test_a_name_is_taken_once(bench):
    """The second host of that name is refused."""
    bench.host("h1")

    assert bench.refused(c.AddHost("", "h1", (), {}, 0, 1, 0, 1.0)).code == "name_taken"


def test_suspect_and_recovered_lose_nothing(bench):
    """Its tasks stay, and their reports count, too, while it is suspect."""
    host = bench.host()
    bench.submit(2)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.ok(c.HostSuspect("h1", "h1-1", "silent for 3 s", bench.tick()))
    assert (host.state, host.reason) == ("suspect", "silent for 3 s")
    assert bench.finish((1, 0, 1)).recorded
    assert bench.plan() == []

    bench.ok(c.HostRecovered("h1", "h1-1", bench.tick()))
    assert (host.state, host.reason) == ("up", "")
    assert list(host.attempts) == [(1, 1, 1)]


def test_a_lost_host_gives_its_tasks_back_and_is_over(bench):
    """Nothing of that incarnation counts any more; a new one may come."""
    host = bench.host()
    job = bench.submit(2)
    bench.assign((1, 0, 1), (1, 1, 1))
    assert bench.lose() == 2
    assert host.state == "lost"
    assert job.counts().queued == 2

    for command in (
        c.HostUp("h1", "h1-1", host.facts, 1.0),
        c.HostSuspect("h1", "h1-1", "", 1.0),
        c.HostRecovered("h1", "h1-1", 1.0),
        c.HostLost("h1", "h1-1", "", 1.0),
        c.AckCode("h1", "h1-1", 0, "", "", 1.0),
    ):
        assert bench.refused(command).code == "incarnation_over"
    assert bench.up("h1", life=2) == 0
    assert bench.assign((1, 0, 2), life=2).accepted


def test_a_restarted_agent_loses_what_its_predecessor_had(bench):
    """And the predecessor cannot come back."""
    host = bench.host()
    bench.submit()
    bench.assign((1, 0, 1))
    assert bench.up("h1", life=2) == 1
    assert host.attempts == {}

    assert bench.refused(c.HostUp("h1", "h1-1", host.facts, 1.0)).code == "incarnation_over"
    assert bench.refused(c.HostLost("h1", "h1-1", "", 1.0)).code == "incarnation_over"


def test_a_reconnecting_agent_keeps_what_it_has(bench):
    """The same incarnation, after a leader died."""
    host = bench.host()
    bench.submit()
    bench.assign((1, 0, 1))
    bench.ok(c.HostSuspect("h1", "h1-1", "quiet", bench.tick()))

    assert bench.up("h1", life=1) == 0
    assert host.state == "up"
    assert list(host.attempts) == [(1, 0, 1)]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (c.HostRecovered("h1", "h1-1", 1.0), "wrong_state"),
        (c.HostSuspect("h1", "h1-7", "", 1.0), "stale_incarnation"),
        (c.HostRecovered("h1", "h1-7", 1.0), "stale_incarnation"),
        (c.HostLost("h1", "h1-7", "", 1.0), "stale_incarnation"),
        (c.HostSuspect("h9", "h1-1", "", 1.0), "unknown_host"),
        (c.HostRecovered("h9", "h1-1", 1.0), "unknown_host"),
        (c.HostLost("h9", "h1-1", "", 1.0), "unknown_host"),
        (c.HostLost("h2", "", "", 1.0), "wrong_state"),
    ],
)
def test_commands_about_another_life_are_refused(bench, command, code):
    """Each names the incarnation it believes in."""
    bench.host("h1")
    bench.ok(c.AddHost("", "h2", (), {}, 0, 1, 0, bench.tick()))

    assert bench.refused(command).code == code


def test_an_agent_of_an_unknown_host_or_without_incarnation(bench):
    """Refused, both."""
    host = bench.host("h1")

    assert bench.refused(c.HostUp("h9", "x", host.facts, 1.0)).code == "unknown_host"
    assert bench.refused(c.HostUp("h1", "", host.facts, 1.0)).code == "bad_field"
    nonsense = msgspec.structs.replace(host.facts, slots=-1)
    assert bench.refused(c.HostUp("h1", "h1-2", nonsense, 1.0)).message.startswith("facts.slots: ")


def test_old_incarnations_are_remembered_up_to_a_number(bench):
    """The list does not grow for ever."""
    host = bench.host()
    for life in range(2, 40):
        bench.up("h1", life=life)

    assert len(host.over) == 16
    assert host.over[-1] == "h1-38"

"""What the owner of a host allows, and that the owner is there: accepted, refused, and what it means for placement."""

from __future__ import annotations

import pytest

from depalma.model import Load
from depalma.ownership import OwnerPolicy
from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.views import host_view, task_view


def note(bench, reason="input at tty1", step="", suspended=False, host="h1", life=1):
    return c.NoteOwner(host, f"{host}-{life}", reason, step, suspended, bench.tick())


def test_a_policy_is_changed_field_by_field(bench):
    bench.host()
    bench.ok(c.SetOwner("r1", "h1", {"idle_s": 900.0, "hours": "sat-sun"}, bench.tick()))
    bench.ok(c.SetOwner("r2", "h1", {"suspend_s": None}, bench.tick()))
    assert bench.state.hosts["h1"].owner_policy == OwnerPolicy(idle_s=900.0, hours="sat-sun", suspend_s=None)
    before = len(bench.events())
    bench.ok(c.SetOwner("r2", "h1", {"suspend_s": 7.0}, bench.tick()))  # asked again: nothing new
    bench.ok(c.SetOwner("r3", "h1", {"idle_s": 900.0}, bench.tick()))  # as it is
    assert len(bench.events()) == before
    assert bench.events()[-1].detail == {"fields": "owner"}
    bench.ok(c.SetOwner("r4", "h1", {}, bench.tick(), anew=True))
    assert bench.state.hosts["h1"].owner_policy == OwnerPolicy()


def test_the_cluster_file_speaks_first_and_only_then(bench):
    bench.host()
    bench.ok(c.SetOwner("", "h1", {"idle_s": 60.0}, bench.tick(), from_file=True))
    assert bench.refused(c.SetOwner("", "h1", {"idle_s": 5.0}, bench.tick(), from_file=True)).code == "owner_given"
    bench.ok(c.SetOwner("", "h1", {}, bench.tick(), anew=True))
    assert bench.refused(c.SetOwner("", "h1", {"idle_s": 5.0}, bench.tick(), from_file=True)).code == "owner_given"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hours": "never"}, "owner.hours: 'never' given; allowed: days and times"),
        ({"idle_s": float("nan")}, "owner.idle_s: nan given; allowed: 0 to"),
        ({"idle": 1.0}, "owner: 'idle' given; allowed: idle_s,"),
        ({"idle_s": 5.0, "cpu_percent": "x"}, "owner.cpu_percent: 'x' given; allowed: a number"),
    ],
)
def test_a_bad_policy_is_refused_whole(bench, changes, message):
    bench.host()
    assert bench.refused(c.SetOwner("", "h1", changes, bench.tick())).message.startswith(message)


def test_a_policy_of_a_host_that_is_not_there_or_goes_is_refused(bench):
    assert bench.refused(c.SetOwner("", "h7", {}, bench.tick())).code == "unknown_host"
    bench.host()
    bench.submit()
    bench.assign((1, 0, 1))
    bench.ok(c.RemoveHost("", "h1", True, bench.tick()))
    assert bench.refused(c.SetOwner("", "h1", {}, bench.tick())).code == "host_removed"


def test_a_host_whose_owner_is_there_gets_nothing_and_says_why(bench):
    bench.host()
    bench.submit(2)
    bench.assign((1, 0, 1))
    bench.start((1, 0, 1))
    bench.ok(note(bench, step="lowered"))
    since = bench.now
    assert bench.plan() == []
    refused = bench.assign((1, 1, 1)).refused
    assert refused == (((1, 1, 1), "host_owner"),)
    host = bench.state.hosts["h1"]
    assert (host.shown_state, host.shown_since) == ("owner", since)
    assert "h1: owner: input at tty1; tasks run at the lowest priority" in explain(bench.state, bench.state.jobs[1])
    bench.ok(note(bench, step="suspended", suspended=True))
    assert host.shown_since == since, "it is still the same stay"
    view = host_view(bench.state, host, Load(), None)
    assert (view.state, view.owner_step, view.reason) == ("owner", "suspended", "input at tty1; tasks stand still")
    bench.ok(note(bench, reason=""))
    assert (host.shown_state, host.shown_since, host.presence) == ("up", bench.now, None)
    assert bench.dispatch() == [("h1", (1, 1, 1))]
    kinds = [event.kind for event in bench.events() if event.kind in ("host.making_way",) or "owner" in event.kind]
    assert kinds == ["host.owner_returned", "host.making_way", "host.owner_left"]
    count = len(bench.events())
    bench.ok(note(bench, reason=""))
    assert len(bench.events()) == count, "said again, nothing happened"


def test_tasks_that_stand_still_are_shown_as_suspended(bench):
    bench.host(slots=3)
    bench.submit()
    bench.submit(restartable=False)
    bench.submit()
    bench.assign((1, 0, 1), (2, 0, 1), (3, 0, 1))
    bench.start((1, 0, 1), (2, 0, 1))

    def words():
        return [task_view(bench.state, bench.state.jobs[job], 0).state for job in (1, 2, 3)]

    bench.ok(note(bench, step="lowered"))
    assert words() == ["running", "running", "assigned"]
    bench.ok(note(bench, step="suspended", suspended=True))
    assert words() == ["suspended", "suspended", "assigned"]
    assert "stands still: input at tty1; tasks stand still" in explain(bench.state, bench.state.jobs[2], 0)
    bench.ok(note(bench, step="warned", suspended=True))
    assert words() == ["running", "suspended", "assigned"], "what is to end goes on until then"
    bench.ok(c.SetOwner("", "h1", {"requeue_all": True}, bench.tick()))
    assert words() == ["running", "running", "assigned"]


def test_what_moved_for_the_owner_uses_no_retry(bench):
    bench.host()
    bench.host("h2")
    bench.submit(retries=0)
    bench.assign((1, 0, 1))
    bench.start((1, 0, 1))
    bench.ok(note(bench, step="warned"))
    bench.finish((1, 0, 1), outcome="moved", started_at=bench.now, error="its owner uses the machine: input at tty1")
    assert bench.dispatch() == [("h2", (1, 0, 2))]
    past = task_view(bench.state, bench.state.jobs[1], 0).attempts[0]
    assert (past.state, past.reason) == ("moved", "its owner uses the machine: input at tty1")


def test_the_word_of_an_agent_that_does_not_count_any_more_is_refused(bench):
    bench.host()
    assert bench.refused(note(bench, life=2)).code == "stale_incarnation"
    bench.lose()
    assert bench.refused(note(bench)).code == "stale_incarnation"
    assert bench.refused(note(bench, host="h7")).code == "unknown_host"


@pytest.mark.parametrize(("changes", "field"), [({"step": "asleep"}, "step"), ({"reason": "x" * 501}, "reason")])
def test_a_word_that_is_none_is_refused(bench, changes, field):
    bench.host()
    assert bench.refused(note(bench, **changes)).message.startswith(f"{field}: ")


def test_it_holds_over_a_restart_of_the_agent_and_stands_behind_what_was_asked_for(bench):
    bench.host()
    bench.ok(note(bench))
    bench.up(life=2)
    host = bench.state.hosts["h1"]
    assert host.shown_state == "owner", "until the new one says otherwise it gets no work"
    bench.ok(c.DrainHost("", "h1", None, bench.tick(), "disk"))
    assert host.shown_state == "drained"
    bench.ok(c.UndrainHost("", "h1", bench.tick()))
    assert host.shown_state == "owner"
    bench.ok(note(bench, reason="", life=2))
    assert host.shown_state == "up"

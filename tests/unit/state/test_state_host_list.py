"""Changing, draining and removing hosts, and groups: what is accepted, each refusal, and what it means for tasks."""

from __future__ import annotations

import pytest

from depalma.state import commands as c
from depalma.state.explain import explain


def drain(bench, name="h1", deadline_at=None, **changes):
    return bench.ok(c.DrainHost("", name, deadline_at, bench.tick(), **{"reason": "update", "by": "ann"} | changes))


def finish_moved(bench, *refs, started=True, host="h1"):
    return bench.finish(*refs, outcome="moved", host=host, started_at=bench.now if started else None, error="drained")


# ---------------------------------------------------------------- set


def test_a_host_is_changed_as_far_as_it_is_said(bench):
    """What is not given stays; labels are set and removed one by one."""
    bench.ok(c.AddHost("", "h1", ("g",), {"os": "debian", "old": "x"}, 0, 2, 0, bench.tick()))
    host = bench.state.hosts["h1"]

    bench.ok(c.SetHost("r", "h1", bench.tick(), slots=6, labels={"disk": "ssd"}, drop_labels=("old", "never")))

    assert (host.slots, host.priority, host.groups, host.gpus) == (6, 0, ("g",), 0)
    assert host.labels == {"os": "debian", "disk": "ssd"}
    bench.ok(c.SetHost("", "h1", bench.tick(), ("a", "b"), 7, 0, 2))
    assert (host.groups, host.priority, host.slots, host.gpus) == (("a", "b"), 7, 0, 2)
    assert [event.detail["fields"] for event in bench.events() if event.kind == "host.changed"] == [
        "labels,slots",
        "groups,priority,slots,gpus",
    ]
    before = len(bench.events())
    bench.ok(c.SetHost("", "h1", bench.tick(), priority=7))
    assert len(bench.events()) == before, "nothing was changed, nothing is told"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("groups", {"groups": ("a b",)}),
        ("groups", {"groups": ("g", "g")}),
        ("groups", {"groups": tuple(f"g{n}" for n in range(101))}),
        ("slots", {"slots": -1}),
        ("gpus", {"gpus": 10**9}),
        ("priority", {"priority": 1 << 40}),
        ("labels", {"labels": {"k": "v" * 2000}}),
        ("labels", {"labels": {str(n): "" for n in range(101)}}),
    ],
)
def test_a_wrong_change_is_refused_by_field(bench, field, changes):
    """And changes nothing (the bench looks)."""
    bench.host()
    refusal = bench.refused(c.SetHost("", "h1", bench.tick(), **changes))

    assert refusal.code == "bad_field"
    assert refusal.message.startswith(f"{field}: ")


def test_fewer_slots_take_nothing_away(bench):
    """What runs stays; new work comes when there is room again."""
    bench.host(slots=2)
    bench.submit(4)
    bench.dispatch()
    bench.ok(c.SetHost("", "h1", bench.tick(), slots=1))

    assert bench.plan() == []
    bench.finish((1, 0, 1))
    assert bench.plan() == []
    bench.finish((1, 1, 1))
    assert len(bench.dispatch()) == 1


# ---------------------------------------------------------------- drain


def test_a_drained_host_gets_nothing_and_says_when_it_is_empty(bench):
    """Running tasks end by themselves; then it is drained."""
    host = bench.host()
    job = bench.submit(3)
    bench.dispatch()
    assert drain(bench, deadline_at=5000.0) == 2

    assert (host.shown_state, host.shown_reason, host.shown_since) == ("draining", "update (by ann)", bench.now)
    assert bench.plan() == []
    assert bench.assign((1, 2, 1)).refused == (((1, 2, 1), "host_draining"),)
    assert explain(bench.state, job)[-1] == "h1: draining: update (by ann)"
    bench.finish((1, 0, 1))
    assert host.shown_state == "draining"
    bench.finish((1, 1, 1))
    assert (host.shown_state, host.shown_since) == ("drained", bench.now)
    assert bench.kinds()[-2:] == ["task.finished", "host.drained"]

    bench.ok(c.UndrainHost("", "h1", bench.tick()))
    assert (host.shown_state, host.shown_reason, host.shown_since) == ("up", "", bench.now)
    assert bench.dispatch() == [("h1", (1, 2, 1))]


def test_a_host_with_nothing_to_do_is_drained_at_once(bench):
    """Also one whose agent never came."""
    bench.host("h1")
    bench.ok(c.AddHost("", "h2", (), {}, 0, 2, 0, bench.tick()))
    assert drain(bench, "h1") == drain(bench, "h2") == 0

    assert bench.state.hosts["h1"].shown_state == "drained"
    assert bench.state.hosts["h2"].shown_state == "down"
    bench.up("h2")
    assert bench.state.hosts["h2"].shown_state == "drained"


def test_a_drain_outlives_its_agent(bench):
    """Suspect, lost, back as a new incarnation: nothing of that gives it work."""
    host = bench.host()
    bench.submit(1)
    bench.dispatch()
    drain(bench, deadline_at=5000.0)
    bench.ok(c.HostSuspect("h1", "h1-1", "quiet", bench.tick()))
    assert (host.shown_state, host.shown_reason) == ("suspect", "quiet; update (by ann)")
    bench.lose()
    assert host.shown_state == "lost"
    bench.up(life=2)

    assert host.shown_state == "drained"
    assert host.drain.deadline_at == 5000.0
    assert bench.plan() == []


def test_a_second_drain_changes_the_deadline_only(bench):
    """Since when, and that it is empty already, stay."""
    host = bench.host()
    drain(bench)
    since = host.shown_since
    drain(bench, deadline_at=7000.0, reason="disk", by="")

    assert (host.shown_state, host.shown_since, host.shown_reason) == ("drained", since, "disk")
    assert host.drain.deadline_at == 7000.0
    assert bench.kinds().count("host.drained") == 1


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("deadline_at", {"deadline_at": float("nan")}),
        ("deadline_at", {"deadline_at": -1.0}),
        ("reason", {"reason": "x" * 501}),
        ("by", {"by": "x" * 201}),
    ],
)
def test_a_wrong_drain_is_refused_by_field(bench, field, changes):
    """And changes nothing."""
    bench.host()
    values = {"deadline_at": None, "at": 1.0} | changes
    assert bench.refused(c.DrainHost("", "h1", **values)).message.startswith(f"{field}: ")


def test_what_was_moved_runs_elsewhere_as_a_new_attempt(bench):
    """It does not count against the retries, and the story says why."""
    bench.host("h1")
    bench.host("h2")
    job = bench.submit(1)
    bench.assign((1, 0, 1))
    bench.start((1, 0, 1))
    drain(bench, deadline_at=bench.now)
    finish_moved(bench, (1, 0, 1))

    past = job.stories[0].attempts[0]
    assert (past.state, past.reason, past.host) == ("moved", "drained", "h1")
    assert job.stories[0].failures == 0
    assert [event.detail["state"] for event in bench.events() if event.kind == "task.requeued"] == ["moved"]
    assert bench.dispatch() == [("h2", (1, 0, 2))]


def test_what_may_not_run_again_ends_as_lost_unless_it_never_began(bench):
    """With the reason of the move."""
    bench.host("h1", slots=4)
    job = bench.submit(3, restartable=False)
    bench.assign((1, 0, 1), (1, 1, 1), (1, 2, 1))
    bench.start((1, 2, 1))
    finish_moved(bench, (1, 0, 1))
    finish_moved(bench, (1, 1, 1), (1, 2, 1), started=False)

    assert [job.state_of(index) for index in range(3)] == ["lost", "queued", "lost"]
    assert job.outcome(0).error == "drained"
    assert [event.task for event in bench.events() if event.kind == "task.lost"] == [0, 2]


def test_a_cancelled_task_that_was_moved_is_cancelled(bench):
    """It does not come back."""
    bench.host()
    job = bench.submit(1)
    bench.assign((1, 0, 1))
    bench.cancel(1)
    finish_moved(bench, (1, 0, 1))

    assert job.state() == "cancelled"


# ---------------------------------------------------------------- remove


def test_a_busy_host_is_removed_by_force_only_and_not_before_it_is_dead(bench):
    """Its attempts are live until its agent, or the lease, says otherwise."""
    host = bench.host("h1")
    bench.host("h2")
    job = bench.submit(1, on_host="h1")
    bench.dispatch()
    assert bench.refused(c.RemoveHost("", "h1", False, bench.tick())).code == "host_busy"

    assert bench.ok(c.RemoveHost("r", "h1", True, bench.tick(), "ann")) == 1
    assert (host.shown_state, host.shown_reason) == ("draining", "removed by ann")
    assert list(job.running) == [0], "nothing is lost yet"
    for command in (
        c.HostUp("h1", "h1-2", host.facts, 1.0),
        c.SetHost("", "h1", 1.0, slots=1),
        c.DrainHost("", "h1", None, 1.0),
        c.UndrainHost("", "h1", 1.0),
    ):
        assert bench.refused(command).code == "host_removed"
    assert bench.refused(c.AddHost("", "h1", (), {}, 0, 1, 0, 1.0, False)).code == "name_taken"
    assert bench.ok(c.RemoveHost("r", "h1", True, bench.tick(), "ann")) == 1

    assert bench.lose("h1") == 1
    assert "h1" not in bench.state.hosts
    assert job.state() == "queued"
    assert bench.kinds()[-3:] == ["host.lost", "task.requeued", "host.removed"]
    assert bench.refused(c.FinishTasks("h1", "h1-1", (), 1.0)).code == "unknown_host"


def test_a_host_that_finishes_its_work_while_it_is_removed_is_gone_then(bench):
    """The reports count: they came from a live incarnation."""
    bench.host("h1")
    job = bench.submit(1)
    bench.dispatch()
    bench.ok(c.RemoveHost("", "h1", True, bench.tick()))
    bench.finish((1, 0, 1))

    assert job.state() == "succeeded"
    assert "h1" not in bench.state.hosts


def test_an_idle_host_is_removed_at_once_and_its_file_does_not_bring_it_back(bench):
    """`host add` does."""
    bench.host("h1")
    assert bench.ok(c.RemoveHost("r", "h1", False, bench.tick())) == 0
    assert bench.state.hosts == {}
    assert bench.ok(c.RemoveHost("r", "h1", False, bench.tick())) == 0
    assert bench.refused(c.RemoveHost("", "h1", False, 1.0)).code == "unknown_host"
    assert bench.refused(c.AddHost("", "h1", (), {}, 0, 1, 0, 1.0)).code == "host_removed"
    bench.check_snapshot()

    bench.ok(c.AddHost("", "h1", (), {}, 0, 1, 0, bench.tick(), False))
    bench.ok(c.RemoveHost("", "h1", False, bench.tick()))
    assert bench.refused(c.AddHost("", "h1", (), {}, 0, 1, 0, 1.0)).code == "host_removed"


def test_a_host_that_was_added_by_hand_leaves_nothing_when_it_is_removed(bench):
    """Names that come and go must not pile up."""
    bench.ok(c.AddHost("", "cloud-7", (), {}, 0, 1, 0, bench.tick(), False))
    bench.ok(c.RemoveHost("", "cloud-7", False, bench.tick()))

    assert bench.state.removed == set()
    bench.ok(c.AddHost("", "cloud-7", (), {}, 0, 1, 0, bench.tick()))


def test_a_cluster_that_begins_anew_has_done_with_removals(bench):
    """Nothing of the former cluster lives: a host that was to go is gone, a drained one stays drained."""
    for name in ("h1", "h2"):
        bench.host(name)
    bench.submit(4)
    bench.dispatch()
    bench.ok(c.RemoveHost("", "h1", True, bench.tick()))
    drain(bench, "h2")
    for machine in (bench.machine, bench.twin):
        assert machine.begin_anew("restored") == 4
    bench.state.check_invariants()

    assert list(bench.state.hosts) == ["h2"]
    assert bench.state.hosts["h2"].shown_state == "lost"
    bench.up("h2", life=2)
    assert bench.state.hosts["h2"].shown_state == "drained"


def test_a_remover_that_says_too_much(bench):
    """Bounded, as all texts are."""
    bench.host()
    assert bench.refused(c.RemoveHost("", "h1", False, 1.0, "x" * 201)).message.startswith("by: ")


# ---------------------------------------------------------------- an agent that was restarted


def test_what_had_finished_is_not_run_again(bench):
    """A new incarnation whose disk holds the report keeps the attempt; everything else of the old one is lost."""
    host = bench.host()
    job = bench.submit(2)
    bench.assign((1, 0, 1), (1, 1, 1))
    lost = bench.ok(c.HostUp("h1", "h1-2", host.facts, bench.tick(), -1, ((1, 1, 1), (9, 9, 9))))

    assert lost == 1
    assert list(host.attempts) == [(1, 1, 1)]
    assert job.state_of(0) == "queued"
    assert bench.finish((1, 1, 1), life=2).recorded == ((1, 1, 1),)
    assert job.state_of(1) == "succeeded"
    bench.up("h1", life=3)
    assert job.state_of(1) == "succeeded"


# ---------------------------------------------------------------- groups


def groups(bench):
    return {host.name: host.groups for host in bench.state.hosts.values()}


def test_groups_are_set_extended_and_removed(bench):
    """Answers say how many hosts changed."""
    for name in ("h1", "h2", "h3"):
        bench.ok(c.AddHost("", name, ("old",), {}, 0, 2, 0, bench.tick()))
    assert bench.ok(c.SetGroup("", "g", ("h1", "h2"), bench.tick())) == 2
    assert bench.ok(c.AddToGroup("", "g", ("h2", "h3"), bench.tick())) == 1
    assert groups(bench) == dict.fromkeys(("h1", "h2", "h3"), ("old", "g"))
    assert bench.ok(c.SetGroup("", "g", ("h3",), bench.tick())) == 2
    assert groups(bench) == {"h1": ("old",), "h2": ("old",), "h3": ("old", "g")}
    assert bench.ok(c.RemoveGroup("", "old", ("h1",), False, bench.tick())) == 1
    assert bench.ok(c.RemoveGroup("", "old", (), False, bench.tick())) == 2
    assert groups(bench) == {"h1": (), "h2": (), "h3": ("g",)}
    told = [event.detail for event in bench.events() if event.kind == "group.changed"]
    assert told[0] == {"group": "g", "hosts": "h1,h2", "changed": 2}
    assert told[-1] == {"group": "old", "hosts": "", "changed": 2}


def test_a_group_that_queued_jobs_name_is_removed_by_force_only(bench):
    """As long as a host would be left it is no matter; nor are jobs that have ended, or have nothing queued."""
    bench.host("h1", groups=("g",))
    bench.host("h2", groups=("g",))
    bench.submit(1, group="g")
    bench.dispatch()
    waiting = bench.submit(5, group="g", cpus=2)
    bench.ok(c.RemoveGroup("", "g", ("h2",), False, bench.tick()))
    for hosts in ((), ("h1",)):
        refusal = bench.refused(c.RemoveGroup("", "g", hosts, False, bench.tick()))
        assert (refusal.code, refusal.message.endswith("name: 2")) == ("group_in_use", True)

    bench.ok(c.RemoveGroup("", "g", (), True, bench.tick()))
    assert "no host is in group g" in explain(bench.state, waiting)
    assert list(bench.state.jobs[1].running) == [0], "what runs there goes on"
    bench.ok(c.AddToGroup("", "g", ("h2",), bench.tick()))
    assert {host for host, _ in bench.dispatch()} == {"h2"}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (c.SetGroup("", "a b", ("h1",), 1.0), "bad_field"),
        (c.SetGroup("", "g", (), 1.0), "bad_field"),
        (c.SetGroup("", "g", ("h1", "h9"), 1.0), "unknown_host"),
        (c.AddToGroup("", "-g", ("h1",), 1.0), "bad_field"),
        (c.AddToGroup("", "g", (), 1.0), "bad_field"),
        (c.AddToGroup("", "g", ("h9",), 1.0), "unknown_host"),
        (c.AddToGroup("", "g101", ("h2",), 1.0), "bad_field"),
        (c.RemoveGroup("", "g", (), False, 1.0), "unknown_group"),
        (c.RemoveGroup("", "old", ("h9",), False, 1.0), "unknown_host"),
        (c.RemoveGroup("", "old", ("h2",), False, 1.0), "not_in_group"),
        (c.SetHost("", "h9", 1.0), "unknown_host"),
        (c.DrainHost("", "h9", None, 1.0), "unknown_host"),
        (c.UndrainHost("", "h9", 1.0), "unknown_host"),
    ],
)
def test_refusals(bench, command, code):
    """All or nothing."""
    bench.ok(c.AddHost("", "h1", ("old",), {}, 0, 2, 0, bench.tick()))
    bench.ok(c.AddHost("", "h2", tuple(f"g{n}" for n in range(100)), {}, 0, 2, 0, bench.tick()))

    assert bench.refused(command).code == code


# ---------------------------------------------------------------- once


@pytest.mark.parametrize(
    "make",
    [
        lambda now: c.SetHost("r", "h1", now, priority=3),
        lambda now: c.DrainHost("r", "h1", now + 9, now),
        lambda now: c.UndrainHost("r", "h1", now),
        lambda now: c.SetGroup("r", "g", ("h1",), now),
        lambda now: c.AddToGroup("r", "g", ("h1",), now),
        lambda now: c.RemoveGroup("r", "old", (), False, now),
        lambda now: c.RemoveHost("r", "h1", True, now),
    ],
    ids=["set", "drain", "undrain", "group-set", "group-add", "group-remove", "remove"],
)
def test_a_repeated_request_changes_nothing_and_gets_the_same_answer(bench, make):
    """Even when the state has gone on."""
    bench.host("h1", groups=("old",))
    bench.submit(1)
    bench.dispatch()
    first = bench.ok(make(bench.tick()))
    events = len(bench.events())

    assert bench.ok(make(bench.tick(50))) == first
    assert len(bench.events()) == events

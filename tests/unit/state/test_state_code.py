"""The code log: numbered without gaps, acknowledged tree by tree, and what tasks run with."""

from __future__ import annotations

import pytest

from depalma.codetree import command_digest, requirements_of, tree_at, tree_digest
from depalma.model import Load
from depalma.state import commands as c
from depalma.state import hosts, views
from depalma.state.restoring import blobs_of

A, B = "a" * 64, "b" * 64


def append(bench, name="pkg", digest=A, kind="folder", **changes):
    return c.AppendCode("", name, kind, digest, 10, "ann", bench.tick(), **changes)


def run(bench, *argv, timeout_s=5.0):
    digest = command_digest(argv, timeout_s)
    return append(bench, "command", digest, "command", argv=argv, timeout_s=timeout_s)


def back(bench, index):
    return c.AppendCode("", "", "", "", 0, "ann", bench.tick(), rollback_of=index)


def fail(bench, index, reason="no space left", **changes):
    return c.FailCode("h1", "h1-1", index, reason, bench.tick(), **changes)


def lag(bench, index, *, kicked=False):
    return c.LagCode("h1", "h1-1", index, "does not come on", kicked, bench.tick())


def add(bench, name="pkg", digest=A, kind="folder"):
    return bench.ok(c.AddCode("", name, kind, digest, 10, "ann", bench.tick()))


def ack(index, digest, life=1, host="h1"):
    return c.AckCode(host, f"{host}-{life}", index, digest, f"sig {index}", 2000.0)


def test_entries_are_numbered(bench):
    """From 1; the tree at an index is what was newest of each name then."""
    assert [add(bench), add(bench, "lib", B), add(bench, "pkg", B)] == [1, 2, 3]

    assert bench.state.code_index == 3
    assert [entry.index for entry in bench.state.code] == [1, 2, 3]
    assert bench.state.tree_digest(0) == ""
    for index in (1, 2, 3):
        assert bench.state.tree_digest(index) == tree_digest(tree_at(bench.state.code, index))
    assert len({bench.state.tree_digest(index) for index in range(4)}) == 4
    with pytest.raises(KeyError):
        bench.state.tree_digest(4)


def test_the_same_content_again_is_no_change(bench):
    """Only compared with the newest of that name: going back to an older content is a new entry."""
    assert add(bench) == add(bench) == 1
    assert add(bench, digest=B) == 2
    assert add(bench) == 3
    assert add(bench, kind="module") == 4


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "../x"}),
        ("name", {"name": ""}),
        ("name", {"name": ".hidden"}),
        ("kind", {"kind": "thing"}),
        ("digest", {"digest": "A" * 64}),
        ("digest", {"digest": "abc"}),
        ("size_bytes", {"size_bytes": -1}),
    ],
)
def test_a_wrong_entry_is_refused_by_field(bench, field, changes):
    """As a spec is."""
    values = {"name": "pkg", "kind": "folder", "digest": A, "size_bytes": 1} | changes
    refusal = bench.refused(c.AddCode("", **values, by="ann", at=1.0))

    assert refusal.code == "bad_field"
    assert refusal.message.startswith(f"{field}: ")


def test_a_job_keeps_the_index_of_its_submission(bench):
    """Or the one it asks for."""
    early = bench.submit()
    add(bench)
    add(bench, digest=B)

    assert early.code_index == 0
    assert bench.submit().code_index == 2
    assert bench.submit(code_index=1).code_index == 1


def test_a_host_acknowledges_tree_by_tree(bench):
    """Only upwards, and only our tree."""
    host = bench.host()
    add(bench)
    add(bench, "lib", B)

    assert bench.ok(ack(1, bench.state.tree_digest(1))) == 1
    assert bench.ok(ack(2, bench.state.tree_digest(2))) == 2
    assert bench.ok(ack(1, bench.state.tree_digest(1))) == 2
    assert host.acknowledgements == {1: "sig 1", 2: "sig 2"}
    assert bench.refused(ack(2, A)).code == "wrong_tree"
    assert bench.refused(ack(3, A)).code == "unknown_index"
    assert bench.refused(ack(-1, A)).code == "unknown_index"
    assert bench.refused(ack(1, bench.state.tree_digest(1), life=2)).code == "stale_incarnation"
    assert bench.refused(ack(1, bench.state.tree_digest(1), host="h9")).code == "unknown_host"
    assert bench.kinds().count("code.acknowledged") == 2


def test_work_waits_for_the_code(bench):
    """A task runs only where its code index is acknowledged."""
    bench.host("h1")
    bench.host("h2")
    add(bench)
    bench.submit(3)
    assert bench.plan() == []

    bench.ok(ack(1, bench.state.tree_digest(1), host="h2"))
    assert {host for host, _ in bench.dispatch()} == {"h2"}


def test_an_agent_with_a_wiped_folder_is_believed(bench):
    """What it says at its start lowers its index, never raises it."""
    host = bench.host()
    add(bench)
    bench.ok(ack(1, bench.state.tree_digest(1)))

    bench.ok(c.HostUp("h1", "h1-1", host.facts, bench.tick(), 7))
    assert host.code_index == 1
    bench.ok(c.HostUp("h1", "h1-2", host.facts, bench.tick(), -1))
    assert host.code_index == 1
    bench.ok(c.HostUp("h1", "h1-3", host.facts, bench.tick(), 0))
    assert host.code_index == 0


def test_views_name_who_has_it(bench):
    """Hosts that are gone are not missed."""
    for name in ("h1", "h2", "h3"):
        bench.host(name)
    add(bench)
    bench.ok(ack(1, bench.state.tree_digest(1)))
    bench.lose("h3")

    view = views.code_view(bench.state, bench.state.code[0])
    assert view.acknowledged == ("h1",)
    assert view.missing == ("h2",)
    assert (view.name, view.digest, view.size, view.added_by) == ("pkg", A, 10, "ann")


def test_signatures_are_kept_for_the_latest_entries(bench, monkeypatch):
    """The older ones are implied by the index."""
    monkeypatch.setattr("depalma.state.codelog.KEEP_ACKNOWLEDGEMENTS", 2)
    host = bench.host()
    for index, digest in enumerate((A, B, A), 1):
        add(bench, digest=digest)
        bench.ok(ack(index, bench.state.tree_digest(index)))

    assert sorted(host.acknowledgements) == [2, 3]
    assert hosts.KEEP_ACKNOWLEDGEMENTS >= 100


# ---------------------------------------------------------------- rollbacks, wheels, requirements, commands


def test_a_rollback_is_a_new_entry_with_the_old_tree(bench):
    """Names that came later are gone again, and nothing is taken out of the log."""
    add(bench)
    add(bench, "lib", B)
    add(bench, "pkg", B)
    state = bench.state

    assert bench.ok(back(bench, 1)) == 4
    assert bench.ok(back(bench, 1)) == 5  # never "no change": somebody asked for an entry
    assert state.tree_digest(4) == state.tree_digest(5) == state.tree_digest(1)
    assert (state.code[3].name, state.code[3].digest, state.code[3].rollback_of) == ("pkg", A, 1)
    assert [entry.index for entry in state.code] == [1, 2, 3, 4, 5]
    assert add(bench, "lib", B) == 6
    assert state.tree_digest(6) == state.tree_digest(2)
    assert bench.ok(back(bench, 4)) == 7  # to a rollback
    assert state.tree_digest(7) == state.tree_digest(1)
    assert bench.ok(back(bench, 3)) == 8
    assert state.tree_digest(8) == state.tree_digest(3)
    bench.check_snapshot()


@pytest.mark.parametrize("index", [3, -1])
def test_a_rollback_to_nowhere_is_refused(bench, index):
    """There is no such index."""
    add(bench)
    assert bench.refused(back(bench, index)).code == "unknown_code"


def test_a_rollback_to_before_all_code_is_refused(bench):
    """A command puts nothing in place."""
    bench.ok(run(bench, "true"))
    assert bench.refused(back(bench, 1)).message.startswith("rollback_of: ")


def test_requirements_belong_to_their_entry(bench):
    """They are part of the tree, come with it and go with it."""
    add(bench)
    plain = bench.state.tree_digest(1)

    assert bench.ok(append(bench, requirements=B)) == 2
    assert bench.state.tree_digest(2) != plain
    assert requirements_of(bench.state.code_in_force()) == (B,)
    assert add(bench) == 3
    assert bench.state.tree_digest(3) == plain
    assert blobs_of(bench.state) == {A, B}


def test_a_command_changes_no_tree(bench):
    """It is a numbered entry all the same, twice the same command are two."""
    add(bench)

    assert [bench.ok(run(bench, "true")), bench.ok(run(bench, "true"))] == [2, 3]
    assert bench.state.tree_digest(3) == bench.state.tree_digest(1)
    assert bench.ok(back(bench, 2)) == 4
    assert bench.state.tree_digest(4) == bench.state.tree_digest(1)
    assert blobs_of(bench.state) == {A}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("kind", {"kind": "thing"}),
        ("argv", {"argv": ("x",)}),
        ("requirements", {"requirements": "short"}),
        ("argv", {"kind": "command", "argv": ()}),
        ("argv", {"kind": "command", "argv": ("a\0b",)}),
        ("argv", {"kind": "command", "argv": ("x" * 70_000,)}),
        ("digest", {"kind": "command", "argv": ("x",)}),
        ("requirements", {"kind": "command", "argv": ("x",), "requirements": B}),
        ("timeout_s", {"kind": "command", "argv": ("x",), "timeout_s": -1.0, "digest": command_digest(("x",), -1.0)}),
    ],
)
def test_a_wrong_entry_of_a_new_kind_is_refused_by_field(bench, field, changes):
    """As the others are."""
    refusal = bench.refused(append(bench, **({"name": "pkg", "digest": A, "kind": "folder"} | changes)))

    assert refusal.message.startswith(f"{field}: "), refusal


def test_the_same_request_adds_once(bench):
    """A client that asks again gets the same number."""
    command = c.AppendCode("r1", "tool", "wheel", A, 10, "ann", 5.0)

    assert [bench.ok(command), bench.ok(command)] == [1, 1]
    assert bench.state.code_index == 1


# ---------------------------------------------------------------- hosts that lag


def test_a_host_that_fails_lags_until_it_has_caught_up(bench):
    """With its reason; its index stays where it was, and what it said of a command is kept."""
    host = bench.host()
    add(bench)
    bench.ok(ack(1, bench.state.tree_digest(1)))
    bench.ok(run(bench, "false"))
    bench.ok(fail(bench, 2, "exit code 1", exit_code=1, output="it broke"))

    assert (host.code_index, host.lag.reason, host.lag.kicked) == (1, "exit code 1", False)
    view = views.host_view(bench.state, host, Load(), None)
    assert (view.state, view.reason) == ("lagging", "exit code 1")
    shown = views.code_view(bench.state, bench.state.code[1])
    assert (shown.missing, shown.lagging, shown.failed) == (("h1",), {"h1": "exit code 1"}, {"h1": 1})
    bench.check_snapshot()

    bench.ok(c.AckCode("h1", "h1-1", 2, bench.state.tree_digest(2), "sig", bench.tick(), 0, "fine"))
    assert (host.lag, host.runs[2].exit_code, host.runs[2].output) == (None, 0, "fine")
    assert [kind for kind in bench.kinds() if kind in ("code.lagging", "code.caught_up")] == [
        "code.lagging",
        "code.caught_up",
    ]


def test_a_lagging_host_goes_on_with_what_it_has(bench):
    """Tasks of an index that it has run there; those above wait."""
    bench.host()
    add(bench)
    bench.ok(ack(1, bench.state.tree_digest(1)))
    old = bench.submit(1)
    add(bench, digest=B)
    new = bench.submit(1)
    bench.ok(fail(bench, 2))

    assert [attempt[0] for _, attempt in bench.dispatch()] == [old.id]
    assert new.queued == 1


def test_a_kicked_host_gets_nothing_until_it_is_back(bench):
    """It comes back with what was newest when it was marked."""
    host = bench.host()
    add(bench)
    bench.ok(ack(1, bench.state.tree_digest(1)))
    add(bench, digest=B)
    bench.submit(1, code_index=1)
    bench.ok(lag(bench, 1))
    bench.ok(lag(bench, 1, kicked=True))

    assert bench.plan() == []
    assert views.host_view(bench.state, host, Load(), None).state == "kicked"
    assert views.code_view(bench.state, bench.state.code[1]).missing == ()
    bench.ok(fail(bench, 2))
    assert host.lag.kicked
    bench.ok(ack(2, bench.state.tree_digest(2)))
    assert host.lag is None
    assert len(bench.dispatch()) == 1
    assert [kind for kind in bench.kinds() if kind.startswith("code.")][-1] == "code.caught_up"


def test_reports_about_the_past_are_refused(bench):
    """They name the index that they believe in."""
    bench.host()
    add(bench)
    assert bench.refused(lag(bench, 5)).code == "stale_report"
    assert bench.refused(fail(bench, 2)).code == "unknown_index"
    bench.ok(ack(1, bench.state.tree_digest(1)))
    assert bench.refused(fail(bench, 1)).code == "stale_report"
    assert bench.refused(lag(bench, 1)).code == "not_behind"


def test_the_same_problem_again_is_no_news(bench):
    """A host that tries every second fills no log of events."""
    bench.host()
    add(bench)
    for _ in range(3):
        bench.ok(fail(bench, 1))

    assert bench.kinds().count("code.lagging") == 1

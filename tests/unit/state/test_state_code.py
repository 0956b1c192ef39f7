"""The code log: numbered without gaps, acknowledged tree by tree, and what tasks run with."""

from __future__ import annotations

import pytest

from depalma.codetree import tree_at, tree_digest
from depalma.state import commands as c
from depalma.state import hosts, views

A, B = "a" * 64, "b" * 64


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
        ("kind", {"kind": "wheel"}),
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

"""The tree at a code index, and its digest: the same on masters, agents and clients."""

from __future__ import annotations

import hashlib

import msgspec

from depalma.codetree import CodeEntry, tree_at, tree_digest, tree_digests


def entry(index: int, name: str, digest: str) -> CodeEntry:
    return CodeEntry(
        index=index, name=name, kind="module", digest=digest, size_bytes=1, added_at=float(index), added_by="ann"
    )


LOG = [entry(1, "b", "11"), entry(2, "a", "22"), entry(3, "b", "33")]


def test_the_newest_entry_of_each_name_counts():
    """Up to the index; nothing before the first, nothing new after the last."""
    assert tree_at(LOG, 0) == {}
    assert tree_at(LOG, 1) == {"b": LOG[0]}
    assert tree_at(LOG, 2) == {"b": LOG[0], "a": LOG[1]}
    assert tree_at(LOG, 3) == tree_at(LOG, 9) == {"b": LOG[2], "a": LOG[1]}


def test_the_digest_is_over_names_and_digests_in_order():
    """A fixed form: agents of other versions compute the same."""
    assert tree_digest({}) == ""
    assert tree_digest(tree_at(LOG, 3)) == hashlib.sha256(b"a\x0022\nb\x0033\n").hexdigest()


def test_the_digest_depends_on_the_tree_alone():
    """Not on the way there, nor on who added what when."""
    back = [*LOG, entry(4, "b", "11")]

    assert tree_digest(tree_at(back, 4)) == tree_digest(tree_at(back, 2))
    assert len({tree_digest(tree_at(LOG, index)) for index in range(4)}) == 4


def test_digests_of_many_are_those_of_each():
    """Rollbacks and commands among them."""
    log = [*LOG, entry(4, "command", ""), entry(5, "b", "11"), entry(6, "c", "66")]
    log[3] = msgspec.structs.replace(log[3], kind="command")
    log[4] = msgspec.structs.replace(log[4], rollback_of=1)

    assert tree_at(log, 5) == tree_at(log, 1)
    for first in range(1, 7):
        wanted = {index: tree_digest(tree_at(log, index)) for index in range(first, 7)}
        assert tree_digests(log, first, 6) == wanted

"""Whom a replica lets in, by what it knows and by what others tell it."""

from __future__ import annotations

from depalma.consensus.acquaintance import Acquaintances
from depalma.consensus.log import Log
from depalma.consensus.membership import Membership, pack
from depalma.consensus.messages import Introduce
from depalma.consensus.settings import Member, Roster


def members(*names: str) -> tuple[Member, ...]:
    return tuple(Member(id=name, host="h", raft_port=number) for number, name in enumerate(names))


def ids(found: tuple[Member, ...] | None) -> list[str]:
    assert found is not None
    return sorted(member.id for member in found)


def test_a_list_of_our_own_that_may_be_void_says_nothing_against_a_committed_one() -> None:
    """Seed 341108579: as a leader that was cut off it had removed m1; the others had meanwhile let in m5, who leads."""
    log = Log()
    first = Roster().become(members("m1", "m2", "m3"))
    log.append((pack(first, []), 2, 1))
    log.append((pack(first.become(members("m2", "m3")), []), 3, 1))
    known = Acquaintances("m3", members("m1", "m2", "m3"), Membership(log, ()))
    assert ids(known.changed(2, (), 0)) == ["m1", "m2"]

    known.hear(Introduce(2, first.become(members("m1", "m2", "m3", "m5"))))

    assert ids(known.changed(2, (), 0)) == ["m1", "m2", "m5"]


def test_a_list_that_is_older_than_the_committed_one_lets_nobody_in() -> None:
    log = Log()
    first = Roster().become(members("m1", "m2", "m3"))
    second = first.become(members("m1", "m2"))
    log.append((pack(second, []), 2, 1))
    known = Acquaintances("m1", (), Membership(log, ()))
    assert ids(known.changed(2, (), 0)) == ["m2"]

    known.hear(Introduce(2, first))

    assert known.changed(2, (), 0) is None

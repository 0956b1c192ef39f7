"""Texts are judged and shown alike by every Python: replicas may have different ones."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from depalma import cron
from depalma.model import JobSpec
from depalma.state import commands as c
from depalma.state import order_commands as oc
from depalma.state.constraints import holds, rule_of
from depalma.state.machine import Machine
from depalma.state.texts import is_plain, shown

#: A heart and a digit that Python 3.11 does not know and 3.12 does.
HEART, ONE = "\U0001fa77", "\U0001e4f1"
NEW = "".join(map(chr, range(0x2FFFC, 0x30000)))  # that nobody knows yet


def test_known_characters_are_what_python_says():
    """Of all that this Python knows the answers are those of `isprintable` and `repr`."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) not in ("Cn", "Cs"):
            assert is_plain(character) == character.isprintable(), hex(code)
            assert shown(character) == repr(character), hex(code)


@pytest.mark.parametrize("value", ["a\\u00e9", "'\"\\", ["é", {"ü\n": 1.5}], None, "\ud83d", float("nan")])
def test_values_are_shown_as_ever(value):
    assert shown(value) == repr(value)


def test_rules_that_were_taken_before_hold_for_no_host():
    """Digits that are not ASCII: a job that has them must not end those who look at it."""
    rule = rule_of(f"ram>{ONE}")
    assert not holds(rule, {"ram": "64"})
    assert not holds(rule_of("ram>1"), {"ram": ONE})


def test_what_only_some_know_is_judged_alike():
    assert is_plain(HEART + ONE + NEW)
    assert shown([HEART + NEW]) == f"['{HEART}{NEW}']"
    machine = Machine()
    assert isinstance(machine.apply(c.encode(oc.SetLimit("", "tag", HEART, 1, 1.0)), 1), c.Applied)
    spec = JobSpec(kind="command", argv=("true",), limits={HEART: 1})
    assert isinstance(machine.apply(c.encode(c.SubmitJob("", spec, 1.0)), 2), c.Applied)
    spec = JobSpec(kind="command", argv=("true",), labels=(f"ram>{ONE}",))
    refused = machine.apply(c.encode(c.SubmitJob("", spec, 1.0)), 3)
    assert isinstance(refused, c.Rejected)
    assert f"'ram>{ONE}'" in refused.message
    with pytest.raises(cron.BadCron, match=r"\\U0001fa77"):
        cron.parse(HEART)

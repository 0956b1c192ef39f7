"""Rules about the labels of hosts: what a job requires of a host, or prefers. [pure]

| rule | holds for a host whose label |
|---|---|
| `disk=ssd` | is exactly that |
| `disk!=ssd` | is another one, or missing |
| `disk in ssd,nvme` | is one of them |
| `disk` | is there, whatever it is |
| `ram_gb>64`, `ram_gb<64` | is a number above, below |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import isfinite
from typing import NamedTuple

#: What a rule may look like, for refusals.
ALLOWED = "KEY=VALUE, KEY!=VALUE, KEY in A,B, KEY (it has the label), KEY>NUMBER or KEY<NUMBER"
_COMPARED = re.compile(r"([^\s=!<>]+)\s*(=|!=|>|<)\s*([^=<>].*|)", re.DOTALL)
_LISTED = re.compile(r"([^\s=!<>]+)\s+in\s+(.+)", re.DOTALL)
_EXISTS = re.compile(r"([^\s=!<>]+)(?:\s+exists)?")


class Rule(NamedTuple):
    """One rule. `values`: what is compared with; one of them for all but `in`."""

    key: str
    operator: str  #: = != > < in exists
    values: tuple[str, ...]


@lru_cache(maxsize=10_000)
def rule_of(text: str) -> Rule:
    """Returns the rule that a text means. Errors: ValueError."""
    text = text.strip()
    if match := _COMPARED.fullmatch(text):
        key, operator, value = match.groups()
        # What is not ASCII is refused where it is submitted; before, it depended on the Python.
        if operator in "<>" and value.isascii() and _number(value) is None:
            raise ValueError(f"{text!r}: {value!r} is no number")
        return Rule(key, operator, (value.strip(),))
    if match := _LISTED.fullmatch(text):
        values = tuple(value.strip() for value in match[2].split(","))
        if all(values):
            return Rule(match[1], "in", values)
    elif match := _EXISTS.fullmatch(text):
        return Rule(match[1], "exists", ())
    raise ValueError(f"{text!r} is no rule")


def holds(rule: Rule, labels: Mapping[str, str]) -> bool:
    """Returns whether a host with these labels satisfies the rule."""
    value = labels.get(rule.key)
    if rule.operator == "!=":
        return value != rule.values[0]
    if value is None:
        return False
    if rule.operator in "<>":
        number, bound = _number(value), _number(rule.values[0])
        if number is None or bound is None:
            return False
        return number > bound if rule.operator == ">" else number < bound
    return rule.operator == "exists" or value in rule.values


def broken(rules: Iterable[str], labels: Mapping[str, str]) -> str:
    """Returns in words the first rule that does not hold; empty when all do."""
    for text in rules:
        rule = rule_of(text)
        if not holds(rule, labels):
            value = labels.get(rule.key)
            is_what = "has no label " + rule.key if value is None else f"its label is {rule.key}={value}"
            return f"{is_what}, the job wants {text.strip()}"
    return ""


def _number(text: str) -> float | None:
    try:
        # Which other digits there are depends on the Python, and replicas must agree.
        number = float(text) if text.isascii() else None
    except ValueError:
        return None
    return number if number is not None and isfinite(number) else None

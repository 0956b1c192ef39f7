"""Graphs as users write them: names for jobs, and errors that say which."""

from __future__ import annotations

import pytest

from depalma.client import specs
from depalma.client.graphs import GraphError, specs_of
from depalma.model import Dependency

PREPARE = {"command": "make data"}


def test_names_become_places():
    works = specs_of(
        {
            "jobs": {
                "report": {"command": ["report", "-v"], "after": ["train:any", 7, "8:fail"], "priority": 3},
                "train": {"command": "./train {}", "arguments": ["a", "b"], "after": "prepare"},
                "check": {"command": ["check"], "array": "0-1%1", "after_each": ["train"], "name": "Check"},
                "prepare": PREPARE,
            }
        }
    )

    assert list(works) == ["report", "train", "check", "prepare"]
    report, train, check = (works[name].spec for name in ("report", "train", "check"))
    assert (report.name, report.argv, report.priority) == ("report", ("report", "-v"), 3)
    assert report.after == (Dependency(7), Dependency(8, "fail"), Dependency(-2, "any"))
    assert (train.argv, train.count, train.after) == (("/bin/sh", "-c", "./train {}"), 2, (Dependency(-4),))
    assert works["train"].arguments == [b"a", b"b"]
    assert (check.name, check.count, check.max_running) == ("Check", 2, 1)
    assert check.after == (Dependency(-2, "ok", True),)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "allowed: one key, jobs"),
        ({"jobs": []}, "allowed: one key, jobs"),
        ({"jobs": {"a": 3}}, "'a': allowed: a name, and under it a mapping with command"),
        ({"jobs": {"a": {}}}, "a: command: None given; allowed: a list of words, or a line for the shell"),
        ({"jobs": {"a": {"command": ["x", 3]}}}, "a: command: ['x', 3] given"),
        ({"jobs": {"a": {**PREPARE, "after": "b"}}}, "a: after: there is no 'b' in the graph; allowed: a"),
        ({"jobs": {"a": {**PREPARE, "after": "a:never"}}}, "a: after: 'a:never' given; allowed: a name, or NAME:ok"),
        ({"jobs": {"a": {**PREPARE, "after": {"b": 1}}}}, "a: after: {'b': 1} given; allowed: a job's id"),
        (
            {"jobs": {"a": {**PREPARE, "retrys": 1}}},
            "a: unknown option 'retrys'; allowed: after, after_each, alternatives, arguments, array, backoff_s",
        ),
        ({"jobs": {"a": {**PREPARE, "priority": "high"}}}, "a: priority: expected `int`, got `str`; 'high' given"),
        ({"jobs": {"a": {**PREPARE, "array": "x"}}}, "a: array: 'x' given"),
    ],
)
def test_what_is_wrong_is_named(document, said):
    with pytest.raises(GraphError) as caught:
        specs_of(document)

    assert said in str(caught.value)


class Handle:
    id = 5


def test_after_takes_ids_handles_and_words():
    values = specs.fields({"after": [3, "4:any", Handle()], "after_each": "6:fail"})

    assert values["after"] == (Dependency(3), Dependency(4, "any"), Dependency(5), Dependency(6, "fail", True))
    assert "after_each" not in values


@pytest.mark.parametrize("given", ["x", "4:never", 0, -1, True, None, [[3]], 1.5])
def test_anything_else_is_refused(given):
    if given is None:  # as for every option: not given
        assert "after" not in specs.fields({"after": None})
        return
    with pytest.raises(ValueError, match=r"after: .* given; allowed: a job's id or handle"):
        specs.fields({"after": given})

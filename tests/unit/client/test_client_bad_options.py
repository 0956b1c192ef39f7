"""Options of the wrong kind, in a file of jobs and in Python: refused before anything is sent, by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from depalma import LocalCluster
from depalma.client import contexts, host_verbs, specs, steering, verbs, webhook_verbs
from depalma.client.graphs import GraphError, specs_of
from depalma.client.steering import ids_of
from depalma.errors import ConfigError

#: option, its value in YAML, what the refusal says besides the option's name
BAD = [
    ("cpus", "x", "expected `float`, got `str`; 'x' given"),
    ("priority", "high", "'high' given"),
    ("priority", "1.5", "expected `int`, got `float`; 1.5 given"),
    ("memory", "lots", "allowed: bytes, or a number with K, M, G or T"),
    ("memory", "[1]", "allowed: bytes"),
    ("memory", "true", "allowed: bytes"),
    ("max_output", ".nan", "allowed: bytes"),
    ("scratch", "1X", "'1X' given"),
    ("tags", "[1]", "1 given; allowed: texts"),
    ("tags", "{a: b}", "{'a': 'b'} given; allowed: a list of texts"),
    ("labels", "3", "3 given; allowed: a list of texts"),
    ("labels", "{os: x}", "a list of texts"),
    ("prefer", "[null]", "None given; allowed: texts"),
    ("outputs", "[[a]]", "['a'] given"),
    ("resources", "[a]", "['a'] given; allowed: a mapping"),
    ("alternatives", "x", "'x' given; allowed: a list of mappings such as {'cpus': 16}"),
    ("alternatives", "[3]", "alternatives.0: 3 given; allowed: a mapping of cpus, memory, gpus, resources"),
    ("alternatives", "[{cpus: 1}, {cpu: 1}]", "alternatives.1: 'cpu' given; allowed: cpus, memory, gpus, resources"),
    ("alternatives", "[{memory: lots}]", "allowed: bytes"),
    ("alternatives", "[{cpus: x}]", "alternatives.0: Expected `float`, got `str` - at `$.cpus`"),
    ("gpus", "half", "expected `int | float`, got `str`; 'half' given"),
    ("limits", "t", "'t' given; allowed: a mapping"),
    ("limits", "{t: x}", "expected `int`, got `str`"),
    ("env", "[A=1]", "['A=1'] given; allowed: a mapping"),
    ("env", "x", "'x' given; allowed: a mapping"),
    ("retry_exit_codes", "3", "3 given; allowed: a list of whole numbers"),
    ("retry_exit_codes", "[x]", "'x' given; allowed: whole numbers"),
    ("array", "1.5", "1.5 given; allowed: a count, or like 0-99"),
    ("array", "true", "True given"),
    ("array", "5-1", "allowed: 1 to"),
    ("array", "[1]", "[1] given"),
    ("arguments", "x", "'x' given; allowed: a list of texts"),
    ("arguments", "[1, 2]", "1 given; allowed: texts (in quotes"),
    ("cwd", "3", "3 given; allowed: a text or a path"),
    ("stdin", "3", "3 given; allowed: a text or a path"),
    ("priority", str(2**70), "allowed: a number of at most 64 bits"),
    ("limits", f"{{t: {2**70}}}", "allowed: a number of at most 64 bits"),
    ("name", '"\\ud800"', "allowed: text that can be written as UTF-8"),
    ("arguments", '["\\ud800"]', "allowed: text that can be written as UTF-8"),
    ("inputs", "3", "3 given; allowed: a list of paths"),
    ("inputs", "[/no/such/file]", "/no/such/file"),
    ("after", "{b: ok}", "allowed: a job's id"),
    ("after", "b:sometimes", "NAME:any"),
    ("hold", "maybe", "'maybe' given"),
    ("restartable", "3", "3 given"),
    ("start_at", "tomorrow", "'tomorrow' given"),
    ("name", "3", "3 given"),
    ("user", "[]", "[] given"),
    ("comand", "1", "unknown option 'comand'; allowed: after, "),
    ("comand", "1", " arguments, array, "),
    ("comand", "1", " command, "),
    ("comand", "1", " cwd, "),
]


@pytest.mark.parametrize(("option", "text", "words"), BAD)
def test_in_a_file_of_jobs(option: str, text: str, words: str) -> None:
    entry = {"command": ["true"], option: yaml.safe_load(text)}
    with pytest.raises(GraphError) as caught:
        specs_of({"jobs": {"first": {"command": "true"}, "bad": entry}})
    message = str(caught.value)
    assert message.startswith("bad: ")
    assert option in message
    assert words in message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "NoneType given; allowed: one key, jobs"),
        ([], "list given"),
        ({}, "nothing given"),
        ({"jobs": {}, "job": {}}, "'jobs', 'job' given"),
        ({"jobs": {}}, "jobs: none given; allowed: one or more"),
        ({"jobs": {"a": 1}}, "'a': allowed: a name, and under it a mapping"),
        ({"jobs": {1: {"command": "x"}}}, "1: allowed: a name"),
        ({"jobs": {"a": {}}}, "a: command: None given"),
        ({"jobs": {"a": {"command": [1]}}}, "a: command: [1] given"),
    ],
)
def test_a_document_that_is_no_graph(document: Any, words: str) -> None:
    with pytest.raises(GraphError) as caught:
        specs_of(document)
    assert words in str(caught.value)


def test_words_about_texts_are_said_once():
    with pytest.raises(ValueError, match=r"^tags: 1 given; allowed: texts \(in quotes, [^(]*\)$"):
        specs.fields({"tags": [1]})


@pytest.mark.parametrize("array", [2, "5-6%1", 3])
def test_an_array_beside_arguments_is_refused_and_not_forgotten(array: Any) -> None:
    with pytest.raises(ValueError, match=rf"^array: {array!r} given; allowed: no array beside arguments"):
        specs.command_work(["echo", "{}"], indices=array, arguments=["a", "b", "c"], options={})


@pytest.mark.parametrize("given", ["x", "42", [1, 2], None, True, 1.5])
def test_what_is_no_job_is_refused_by_name(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^job: .* given; allowed: ids \(whole numbers\) or handles of jobs"):
        ids_of([1, given])


@pytest.mark.parametrize("argv", ["make", b"make", [], None, {"a": 1}, ["a", 3], ["a", b"b"], ["\ud800"], 7])
def test_a_command_that_is_none(argv: Any) -> None:
    with pytest.raises(ValueError, match=r"^argv: .* given; allowed: "):
        specs.command_work(argv, options={})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masters": 3}, "masters: 3 given"),
        ({"masters": [None]}, "masters: [None] given"),
        ({"masters": ["ftp://x"]}, "masters: 'ftp://x' given"),
        ({"masters": "http://a:1", "token": 3}, "token: "),
        ({"masters": "http://a:1", "token": "a\nb"}, "token: "),
        ({"masters": "http://a:1", "token": "é"}, "token: "),
    ],
)
def test_a_client_of_nothing(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        contexts.resolve(**given, environ={})
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masters": 2}, "masters: 2 given; allowed: 1, 3 or 5"),
        ({"masters": "3"}, "masters: '3' given"),
        ({"masters": True}, "masters: True given"),
        ({"agents": -1}, "agents: -1 given; allowed: 0 to 1000"),
        ({"agents": 1.5}, "agents: 1.5 given"),
        ({"slots": 0}, "slots: 0 given; allowed: 1 to 100000, or None"),
        ({"slots": "x"}, "slots: 'x' given"),
    ],
)
def test_a_local_cluster_that_cannot_be_is_not_begun(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        LocalCluster(**given, directory=tmp_path / "new")
    assert str(caught.value).startswith(words)
    assert not (tmp_path / "new").exists()


def test_every_option_of_a_job_is_in_the_page_about_python():
    page = (Path(__file__).parents[3] / "docs" / "python.md").read_text()
    words = set(re.findall(r"\w+", page))
    assert set(specs.JobOptions.__annotations__) - words == set()


def sent(verb: Any) -> Any:
    """Returns the body that a verb sends first."""
    return json.loads(next(verb).body)


def test_one_text_where_several_may_be_is_not_taken_for_its_letters():
    """Tags a, b and c of "abc", hosts h and 1 of "h1": nobody means that."""
    assert steering._changes(None, None, "abc")["tags"] == ("abc",)
    assert sent(host_verbs.set_group("g", "h1")) == {"hosts": ["h1"]}
    assert "hosts=h1" in next(host_verbs.remove_group("g", "h1", False)).path
    assert sent(host_verbs.set_host("h1", {"groups": "render"})) == {"groups": ["render"]}
    hook = sent(webhook_verbs.add_webhook("w", "http://x", {"kinds": "job.*", "tags": "a b", "jobs": (1, 2)}))
    assert (hook["kinds"], hook["tags"], hook["jobs"]) == (["job.*"], ["a b"], [1, 2])
    with pytest.raises(ValueError, match=r"^argv: 'true' given; allowed: a list of texts"):
        next(verbs.run_on_hosts("true", 1.0, 1.0))


def test_what_is_added_to_a_command_is_texts_as_its_arguments_are():
    assert specs.packed_items("command", ["a", "ü"]) == [b"a", "ü".encode()]
    for given in ("xyz", [1], [b"x"], None, ["\ud800"]):
        with pytest.raises(ValueError, match=r"^items: .* given; allowed: "):
            specs.packed_items("command", given)  # type: ignore[arg-type]
    assert len(specs.packed_items("function", [1, "x", None])) == 3

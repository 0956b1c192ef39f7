"""The cluster file: what is accepted, and that a refusal names the place, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from depalma import config
from depalma.errors import ConfigError
from depalma.state import checks

MASTER = "{id: m1, host: 10.0.0.1, dir: /var/lib/depalma}"
ROOT = Path(__file__).parents[3]


def refusal_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, where="lab.yaml")
    return str(caught.value)


def with_settings(settings: str) -> str:
    return f"masters: [{MASTER}]\nsettings: {{{settings}}}"


def with_host(words: str) -> str:
    return f"masters: [{MASTER}]\nhosts: [{{name: h1, {words}}}]"


def test_the_smallest_file_gets_every_default() -> None:
    parsed = config.parse(f"masters: [{MASTER}]")

    assert parsed.settings == config.Settings()
    assert (parsed.masters[0].port, parsed.masters[0].raft_port) == (7070, 7071)
    assert parsed.url(parsed.masters[0]) == "http://10.0.0.1:7070"
    assert parsed.hosts == ()


def test_the_example_file_is_valid() -> None:
    parsed = config.load(ROOT / "examples" / "example.yaml")

    assert len(parsed.masters) == 3
    assert parsed.host("ada").groups


def test_a_home_folder_is_expanded() -> None:
    parsed = config.parse("masters: [{id: m1, host: localhost, dir: ~/m1}]")

    assert parsed.masters[0].directory == Path.home() / "m1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("masters: []", ["masters: 0 given", "1, 3 or 5"]),
        (f"masters: [{MASTER}, {MASTER.replace('m1', 'm2')}]", ["masters: 2 given", "1, 3 or 5"]),
        ("cluster: lab", ["masters", "required"]),
        ("masters: [{id: m1, host: a, dir: b, prot: 1}]", ["prot", "masters[0]"]),
        (with_settings("leas_s: 3"), ["leas_s", "settings"]),
        (with_settings("lease_s: soon"), ["lease_s", "float", "str"]),
        (with_settings("lease_s: 0.1"), ["lease_s: 0.1", "0.5 to 3600"]),
        (with_settings("lease_margin: 0"), ["lease_margin: 0", "0.15 to 10"]),
        (with_settings("heartbeat_s: 9"), ["heartbeat_s: 9", "third of lease_s"]),
        (with_settings("election_s: [0.6, 0.3]"), ["election_s", "rising"]),
        (with_settings("election_s: [0.3]"), ["election_s"]),
        (with_settings("output_keep_days: 0"), ["output_keep_days: 0", "more than 0"]),
        (with_settings("output_keep_bytes: 9"), ["output_keep_bytes: 9", "1048576 to"]),
        (with_settings("output_keep_tag_days: {audit: -1}"), ["output_keep_tag_days[audit]: -1", "more than 0"]),
        (with_settings("output_keep_tag_days: [audit]"), ["output_keep_tag_days", "object"]),
        (with_settings("on_cut_off: panic"), ["'panic'", "exit, rejoin"]),
        (f"masters: [{MASTER}]\nhosts: [{{name: h1}}, {{name: h1}}]", ["hosts.name", "'h1' is given twice"]),
        (f"masters: [{MASTER}]\nhosts: [{{name: 'a b'}}]", ["hosts.name", "'a b'", "allowed"]),
        ("masters: [{id: m1, host: a, dir: b, port: 70000}]", ["70000", "1 to 65535"]),
        ("masters: [{id: m1, host: a, dir: b, port: 7071}]", ["a:7071", "twice"]),
        ("masters: [{id: m1, host: '', dir: b}]", ["masters[m1].host: ''", "a name or an address"]),
        ("masters: [{id: m1, host: -oProxyCommand=x, dir: b}]", ["host: '-oProxyCommand=x'", "leading '-'"]),
        ("masters: [{id: m1, host: a, ssh: a b, dir: b}]", ["masters[m1].ssh: 'a b'", "no space"]),
        ("masters: [{id: m1, host: a, dir: ''}]", ["masters[m1].dir: ''", "folder"]),
        (f"masters: [{MASTER}]\ncluster: ''", ["cluster: ''", "not empty"]),
        (f'masters: [{MASTER}]\nsecrets: "a\\0"', ["secrets: 'a\\x00'", "printable"]),
        (with_host("slots: -1"), ["hosts[h1].slots: -1", "0 to 100000"]),
        (with_host("gpus: 999999"), ["hosts[h1].gpus: 999999", "0 to 100000"]),
        (with_host("priority: 9999999"), ["hosts[h1].priority: 9999999", "-1000000 to 1000000"]),
        (with_host("groups: [a, a]"), ["hosts[h1].groups", "each once"]),
        (with_host("groups: ['a b']"), ["hosts[h1].groups: 'a b'", "letters"]),
        (with_host("resources: {cpus: 1}"), ["hosts[h1].resources: 'cpus'", "not cpus"]),
        (with_host("resources: {tape: -1}"), ["hosts[h1].resources.tape: -1", "0 to"]),
        (with_host(f"labels: {{a: {'x' * 1000}}}"), ["hosts[h1].labels", "1000 characters"]),
        (with_host("labels: {a: 1}"), ["labels", "str", "int"]),
        *(
            (with_settings(f"{field}: {value}"), [f"settings.{field}: ", "given; allowed: "])
            for field in (
                "history_days", "history_jobs", "max_body_bytes", "max_blob_bytes", "snapshot_every_entries",
                "output_limit_bytes", "open_job_idle_s", "code_lag_s", "code_kick_s", "blob_grace_s", "lease_s",
                "lease_margin", "heartbeat_s", "environments_kept",
            )
            for value in (("-1", ".nan", ".inf") if isinstance(getattr(config.Settings(), field), float) else ("-1",))
        ),
        (with_settings("lease_s: 1") + "\nsettings: {}", ["not YAML", "'settings' is given twice"]),
        ("cluster: 2024-13-45", ["not YAML", "month"]),
        ("[" * 5000, ["not YAML", "nesting"]),
        ("masters: [", ["not YAML"]),
        ("", ["object"]),
        ("- a", ["object", "array"]),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_what_is_allowed(text: str, words: list[str]) -> None:
    message = refusal_of(text)

    assert message.startswith("lab.yaml: ")
    assert [word for word in words if word not in message] == [], message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        config.load(tmp_path / "none.yaml")


def test_bytes_that_are_no_text_are_told_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"cluster: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8: byte 0xe9 at 9"):
        config.load(file)


def test_resources_cannot_be_called_what_the_state_counts_anyway() -> None:
    """The state refuses the same names; a file that it would not take is refused where it is read."""
    assert checks._RESERVED == config.COUNTED_ANYWAY


def test_a_yaml_tag_cannot_make_objects() -> None:
    assert "not YAML" in refusal_of("masters: !!python/object/apply:os.getcwd []")


def test_a_host_of_no_file_has_the_defaults_if_it_can_have_that_name() -> None:
    parsed = config.parse(f"masters: [{MASTER}]\nhosts: [{{name: h1, slots: 3}}]")

    assert parsed.host("h1").slots == 3
    assert parsed.host("h3") == config.HostConfig(name="h3")
    with pytest.raises(ConfigError, match=r"host name 'h 3' given; allowed: letters"):
        parsed.host("h 3")


def test_unknown_masters_are_answered_with_the_known_ones() -> None:
    parsed = config.parse(f"masters: [{MASTER}]")

    with pytest.raises(ConfigError, match=r"no master 'm2'.*m1"):
        parsed.master("m2")

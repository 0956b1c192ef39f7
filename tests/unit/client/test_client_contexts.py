"""Which cluster is meant."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from depalma.client import contexts
from depalma.client.contexts import Context, Contexts, resolve
from depalma.errors import ConfigError

URL = "http://10.0.0.1:7070"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("DEPALMA_MASTERS", "DEPALMA_TOKEN", "DEPALMA_TOKEN_FILE", "DEPALMA_CONTEXT"):
        monkeypatch.delenv(name, raising=False)


def save(tmp_path: Path) -> None:
    (tmp_path / "lab.token").write_text("from-file\n")
    lab = Context(masters=(URL,), token_file=str(tmp_path / "lab.token"))
    other = Context(masters=("http://10.0.0.9:7070",))
    contexts.save(Contexts().adding("lab", lab, use=False).adding("other", other, use=False))


def test_contexts_are_kept_for_the_user_alone(tmp_path: Path) -> None:
    save(tmp_path)
    file = tmp_path / "depalma" / "config.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]
    assert contexts.load().current == "lab"
    assert set(contexts.load().contexts) == {"lab", "other"}


def test_using_and_removing(tmp_path: Path) -> None:
    save(tmp_path)
    assert contexts.load().using("other").current == "other"
    assert contexts.load().removing("lab").current == ""
    for act in (contexts.load().using, contexts.load().removing):
        with pytest.raises(ConfigError, match="no context 'x'; there are: lab, other"):
            act("x")


def test_arguments_come_before_environment_before_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    assert resolve() == contexts.Connection((URL,), "from-file", "context lab")
    monkeypatch.setenv("DEPALMA_CONTEXT", "other")
    assert resolve().origin == "context other"
    monkeypatch.setenv("DEPALMA_MASTERS", "http://a:1/, http://b:2")
    monkeypatch.setenv("DEPALMA_TOKEN", "from-env")
    assert resolve() == contexts.Connection(("http://a:1", "http://b:2"), "from-env", "DEPALMA_MASTERS")
    assert resolve(context="lab").masters == (URL,)
    assert resolve(["http://c:3"], token="given") == contexts.Connection(("http://c:3",), "given", "argument")


def test_a_token_file_of_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    monkeypatch.setenv("DEPALMA_TOKEN_FILE", str(tmp_path / "lab.token"))
    assert resolve(URL).token == "from-file"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no cluster is named: give masters"):
        resolve()
    with pytest.raises(ConfigError, match=r"no.token: cannot be read"):
        resolve(URL, token_file=tmp_path / "no.token")
    with pytest.raises(ConfigError, match="no context 'x'; there are: none"):
        resolve(context="x")


@pytest.mark.parametrize("bad", ["ftp://a:1", "a:1", "http://", "http://a:x", "http://a:0"])
def test_bad_addresses_are_refused_by_name(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"masters: .* given; allowed: https://HOST:PORT or http://HOST:PORT"):
        resolve([bad])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "depalma" / "config.yaml"
    file.parent.mkdir()
    for text in ("contexts: {lab: {masters: 7}}", "colour: red", "{"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml: "):
            resolve()


def test_a_token_of_the_environment_wins_over_the_current_contexts_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    monkeypatch.setenv("DEPALMA_TOKEN", "from-env")
    assert resolve().token == "from-env"
    assert resolve(context="lab").token == "from-file"  # named by an argument, so are its parts

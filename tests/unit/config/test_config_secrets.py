"""The secrets folder as a master reads it: complete, long enough, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from depalma.config import load_secrets, read_agent_token
from depalma.errors import ConfigError

TOKENS = ("token", "agent.token", "raft.secret")
FILES = (*TOKENS, "ca.crt", "master-m1.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        path = tmp_path / name
        path.write_text(f"{number}" * 40 + "\n")
        path.chmod(0o600)
    return tmp_path


def test_the_tokens_are_read_without_their_line_end(folder: Path) -> None:
    secrets = load_secrets(folder, "m1")

    assert (secrets.token, secrets.agent_token, secrets.raft_secret) == ("0" * 40, "1" * 40, b"2" * 40)
    assert read_agent_token(folder) == "1" * 40


@pytest.mark.parametrize("name", TOKENS)
def test_a_secret_that_others_may_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).chmod(0o640)

    with pytest.raises(ConfigError, match=rf"{name}: others may read it; run: chmod 600"):
        load_secrets(folder, "m1")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_command_that_makes_it(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ConfigError, match=rf"has no {name}; .* depalmactl cluster init -f lab\.yaml"):
        load_secrets(folder, "m1", made_by="lab.yaml")


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/ has no token, agent\.token, raft\.secret, ca\.crt, master-m2\.pem; "):
        load_secrets(tmp_path, "m2")


def test_a_secret_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "token").unlink()
    (folder / "token").mkdir(mode=0o700)

    with pytest.raises(ConfigError, match=r"token: cannot be read"):
        load_secrets(folder, "m1")


def test_a_short_secret_is_refused_without_being_shown(folder: Path) -> None:
    (folder / "token").write_text("hunter2")

    with pytest.raises(ConfigError, match=r"token: too short .*7 characters, at least 32") as caught:
        load_secrets(folder, "m1")
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_show_themselves(folder: Path) -> None:
    shown = f"{load_secrets(folder, 'm1')!r} {load_secrets(folder, 'm1')}"

    assert str(folder) in shown
    assert not any(str(number) * 40 in shown for number in range(5))


def test_a_missing_agent_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.token: cannot be read"):
        read_agent_token(tmp_path)

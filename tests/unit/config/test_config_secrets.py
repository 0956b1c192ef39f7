"""The secrets folder: complete, long enough, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from depalma.config import load_secrets, read_agent_token
from depalma.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("token", "agent.token", "raft.secret")):
        path = tmp_path / name
        path.write_text(f"{number}" * 40 + "\n")
        path.chmod(0o600)
    return tmp_path


def test_the_three_files_are_read_without_their_line_end(folder: Path) -> None:
    secrets = load_secrets(folder)

    assert (secrets.token, secrets.agent_token, secrets.raft_secret) == ("0" * 40, "1" * 40, b"2" * 40)
    assert read_agent_token(folder) == "1" * 40


@pytest.mark.parametrize("name", ["token", "agent.token", "raft.secret"])
def test_a_secret_that_others_may_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).chmod(0o640)

    with pytest.raises(ConfigError, match=rf"{name}: others may read it; run: chmod 600"):
        load_secrets(folder)


@pytest.mark.parametrize("name", ["token", "agent.token", "raft.secret"])
def test_a_missing_secret_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ConfigError, match=rf"{name}: cannot be read"):
        load_secrets(folder)


def test_a_short_secret_is_refused_without_being_shown(folder: Path) -> None:
    (folder / "token").write_text("hunter2")

    with pytest.raises(ConfigError, match=r"token: too short .*7 characters, at least 32") as caught:
        load_secrets(folder)
    assert "hunter2" not in str(caught.value)


def test_a_missing_agent_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.token: cannot be read"):
        read_agent_token(tmp_path)

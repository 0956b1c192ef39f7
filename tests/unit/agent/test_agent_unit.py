"""The systemd unit that `depalma-agent install --user` writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from depalma import remote
from depalma.agent import unit
from depalma.testing.certificates import throwaway_secrets

CLUSTER = "masters: [{id: m1, host: 10.0.0.1, dir: /m1}]\n"


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    throwaway_secrets(tmp_path / "secrets", ["m1"])
    file = tmp_path / "lab.yaml"
    file.write_text(CLUSTER)
    return file


def install(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        remote.main(["install", *map(str, words)])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_the_unit_is_written_once(
    cluster_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    words = ("--user", "--no-start", "--config", cluster_file, "--name", "h1")

    assert install(*words) == 0
    file = tmp_path / "config/systemd/user/depalma-agent-h1.service"
    assert capsys.readouterr().err == f"{file} written\n"
    text = file.read_text()
    assert f'"--config" "{cluster_file}" "--name" "h1"' in text
    assert "RestartPreventExitStatus=2 3 5" in text

    assert install(*words) == 0
    assert capsys.readouterr().err == f"{file} is as it should be\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_nothing_is_written_for_a_host_that_cannot_be(
    cluster_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    assert install("--user", "--config", cluster_file, "--name", "h/1") == 2
    assert "host name 'h/1' given" in capsys.readouterr().err
    (tmp_path / "secrets/agent.token").unlink()
    assert install("--user", "--config", cluster_file, "--name", "h1") == 2
    assert "agent.token: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "config").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_it_with_any_path(tmp_path: Path) -> None:
    odd = tmp_path / 'a b%h"$HOME'
    odd.mkdir()
    file = tmp_path / unit.unit_name("h1")
    file.write_text(unit.unit_text(shutil.which("python3") or "/usr/bin/python3", odd / "lab.yaml", "h1"))

    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)

    complaints = [line for line in done.stderr.splitlines() if file.name in line]
    assert complaints == []

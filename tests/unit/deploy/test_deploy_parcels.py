"""What is sent to a machine."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from depalma.deploy.installing import Facts, Parcels
from depalma.errors import ConfigError

FACTS = Facts("cpython-399", "linux-riscv64", "/usr/bin/python3")


def contents(parcel: Path) -> list[str]:
    """Returns the names behind the program."""
    with parcel.open("rb") as stream:
        program = stream.read(int(stream.readline()))
        compile(program, "install.py", "exec")
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            return sorted(member.name.split("-")[0] for member in archive)


def test_a_wheelhouse_is_sent_with_this_release_in_place_of_another(tmp_path: Path) -> None:
    for name in ("aiohttp-3.0-py3-none-any.whl", "depalma-0.0.1-py3-none-any.whl"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "README").write_text("")

    with Parcels(tmp_path) as parcels:
        assert parcels.offline
        parcel = parcels.with_dependencies(FACTS)
        assert contents(parcel) == ["aiohttp", "depalma", "pip"]
        assert parcels.with_dependencies(FACTS) is parcel  # made once
    assert not parcel.exists()


def test_a_machine_that_reaches_an_index_gets_no_dependencies() -> None:
    with Parcels(None) as parcels:
        assert not parcels.offline
        assert contents(parcels.without_dependencies()) == ["depalma", "pip"]


def test_an_empty_wheelhouse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--wheelhouse: .* holds no wheel"):
        Parcels(tmp_path)

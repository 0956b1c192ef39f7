"""Wheels that are made of what is installed here."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from depalma import __version__
from depalma.deploy import wheels


def test_the_own_wheel_is_whole_and_twice_the_same(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()

    wheel = wheels.pack_own(tmp_path)

    assert wheel.name == f"depalma-{__version__}-py3-none-any.whl"
    assert wheels.pack_own(tmp_path / "again").read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"depalma-{__version__}.dist-info"
        assert {"depalma/master.py", "depalma/py.typed", f"{about}/METADATA", f"{about}/entry_points.txt"} <= names
        assert not [name for name in names if "__pycache__" in name or name.endswith(".pth")]
        record = dict(line.split(",", 1) for line in archive.read(f"{about}/RECORD").decode().splitlines())
        assert set(record) == names
        for name in names - {f"{about}/RECORD"}:
            checksum = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert record[name].split(",")[0] == f"sha256={checksum}"


def test_pip_can_be_sent(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels.pack_pip(tmp_path)) as archive:
        assert "pip/__main__.py" in archive.namelist()


def test_requirements_leave_extras_out() -> None:
    names = set(wheels.required("depalma"))

    assert {"pysyncobj", "aiohttp", "cryptography"} <= names
    assert "pytest" not in names
    assert {"idna", "multidict", "cffi"} <= set(wheels.required("depalma", deep=True))

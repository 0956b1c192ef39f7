"""Which paths may make a call wait for ever."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from depalma.agent.execution import STUCK
from depalma.agent.mounts import MayHang, Mounts
from depalma.agent.stuck import CODE


def test_what_is_on_this_machine_passes_whether_it_is_there_or_not(tmp_path: Path) -> None:
    mounts = Mounts()
    (tmp_path / "link").symlink_to("../" * 40 + "bin")
    (tmp_path / "round").symlink_to("round")
    for path in (tmp_path, tmp_path / "none/such", tmp_path / "link/sh", tmp_path / "round"):
        mounts.check(str(path))
    mounts.check_program("/bin/sh")
    mounts.check_program("/no/such/program")


def test_what_leads_to_another_file_system_does_not_pass(hanging: Path, tmp_path: Path) -> None:
    mounts = Mounts()
    (tmp_path / "link").symlink_to(f"{tmp_path}/./hanging/../hanging/folder")
    (tmp_path / "relative").symlink_to("hanging/program")
    (tmp_path / "script").write_text(f"#! {hanging}/python -u\n")
    for path in (hanging, hanging / "a/b", tmp_path / "link", tmp_path / "relative", "not/from/the/root"):
        with pytest.raises(MayHang):
            mounts.check(str(path))
    with pytest.raises(MayHang):
        mounts.check_program(str(tmp_path / "script"))
    assert mounts.begins_at(str(hanging))
    mounts.trust()
    mounts.check(str(hanging / "a"))


def test_a_program_is_followed_to_what_the_kernel_loads_for_it(tmp_path: Path) -> None:
    mounts = Mounts()
    script = tmp_path / "script"
    script.write_text(f"#!{sys.executable}\n")
    mounts.check_program(str(script))
    for content in (b"neither", b"\x7fELF"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(MayHang):
            Mounts().check_program(str(tmp_path / "other"))


def test_both_sides_call_such_an_end_the_same() -> None:
    assert STUCK == CODE

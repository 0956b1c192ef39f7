"""Which paths may make a call wait for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from depalma.agent.execution import STUCK
from depalma.agent.mounts import MayHang, Mounts, begins_at
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


def test_several_threads_may_ask_at_once() -> None:
    """The files of attempts and the trash are removed by different ones; one that fails ends the agent."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lambda: [begins_at("/none") for _ in range(20_000)]) for _ in range(4)]
    assert not any(any(each.result()) for each in asked)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount")
def test_a_folder_with_any_name_may_have_something_mounted_on_it(tmp_path: Path) -> None:
    program = (
        "from depalma.agent.cgroups import own_places\n"
        "from depalma.agent.mounts import begins_at\n"
        "print(begins_at('/none'), bool(own_places()))\n"
    )
    script = 'mkdir "$1" && mount -t tmpfs none "$1" && exec "$2" -c "$3"'
    words = [script, "sh", os.fsencode(tmp_path) + b"/\xe9", sys.executable, program]
    done = subprocess.run(["unshare", "-m", "sh", "-c", *words], capture_output=True, text=True, check=False)
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"not here: {done.stderr}")
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_both_sides_call_such_an_end_the_same() -> None:
    assert STUCK == CODE

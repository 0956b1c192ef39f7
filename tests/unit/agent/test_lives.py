"""What the next agent of a folder knows of those before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from depalma.agent.lives import NAME, Lives


def test_on_the_same_machine_all_earlier_ones_are_over(tmp_path: Path) -> None:
    """Also after it was started anew, and within one process."""
    lives = Lives(tmp_path, "m1", "b1")
    assert lives.begin("i1") == "i1"
    assert lives.over == ()
    lives.begin("i2")
    assert lives.over == ("i1",)
    for boot in ("b1", "b2"):
        again = Lives(tmp_path, "m1", boot)
        again.begin("i3")
        assert again.over[:2] == ("i1", "i2")


@pytest.mark.parametrize("machines", [("m1", "m2"), ("", "m2"), ("m1", ""), ("", "")])
def test_what_another_machine_did_in_the_folder_is_not_known_to_be_over(
    tmp_path: Path, machines: tuple[str, str]
) -> None:
    """A folder in a home that many machines mount, or a machine that has no name: the kernel's is enough by itself."""
    Lives(tmp_path, machines[0], "b1").begin("i1")
    other = Lives(tmp_path, machines[1], "b2")
    other.begin("i2")
    assert other.over == ()
    same_kernel = Lives(tmp_path, machines[1], "b2")
    same_kernel.begin("i3")
    assert same_kernel.over == ("i2",)


def test_only_the_latest_are_kept_and_whatever_is_no_line_is_passed_over(tmp_path: Path) -> None:
    lives = Lives(tmp_path, "m1", "b1")
    for number in range(100):
        lives.begin(f"i{number}")
    assert lives.over == tuple(f"i{number}" for number in range(68, 99))
    (tmp_path / NAME).write_bytes(b"\xff\xff\n\ni7 m1 b1\ni8 m1\n")
    again = Lives(tmp_path, "m1", "b1")
    again.begin("i9")
    assert again.over == ("i7",)


def test_a_folder_that_cannot_be_written_to_costs_the_next_one_a_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lives = Lives(tmp_path, "m1", "b1")
    (tmp_path / f".{NAME}.new").mkdir()
    assert lives.begin("i1") == "i1"
    assert "will have to wait for a lease" in caplog.text

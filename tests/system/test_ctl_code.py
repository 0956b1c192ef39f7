"""`depalmactl code` on a real cluster."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Ctl = Callable[..., "subprocess.CompletedProcess[str]"]
Value = Callable[..., Any]
WaitUntil = Callable[..., Any]


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_entries_of_every_kind(ctl: Ctl, value: Value, tmp_path: Path) -> None:
    """Added, shown, gone back from; each host's word for each is signed."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("VERSION = 1\n")
    (package / "notes.txt").write_text("for me\n")
    (package / ".depalmaignore").write_text("*.txt\n")
    first = int(ctl("code", "add", "pkg").stdout)
    (package / "__init__.py").write_text("VERSION = 2\n")
    assert int(ctl("code", "add", "pkg").stdout) == first + 1
    wheel = tmp_path / "tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tool.py", "print('a tool')\n")
    assert int(ctl("code", "add", wheel.name).stdout) == first + 2
    assert ctl("run", "--", sys.executable, "-m", "tool").stdout == "a tool\n"
    listing = "ls $DEPALMA_CODE_DIR/pkg; cat $DEPALMA_CODE_DIR/pkg/__init__.py"
    assert ctl("run", "--", "sh", "-c", listing).stdout == "__init__.py\nVERSION = 2\n"

    back = ctl("code", "rollback", str(first))
    assert int(back.stdout) == first + 3
    assert f"code index {first + 3}: pkg is on h1, h2" in back.stderr
    assert ctl("run", "--", "sh", "-c", "cat $DEPALMA_CODE_DIR/pkg/__init__.py").stdout == "VERSION = 1\n"
    assert ctl("run", "--", "sh", "-c", "ls $DEPALMA_CODE_DIR").stdout == "pkg\n"
    assert ["Kind", "rollback", "to", str(first)] in rows(ctl("code", "show", str(first + 3)).stdout)
    kinds = [(entry["kind"], entry["rollback_of"]) for entry in value("code", "ls")[-4:]]
    assert kinds == [("folder", 0), ("folder", 0), ("wheel", 0), ("folder", first)]
    status = rows(ctl("code", "status").stdout)
    assert status[0] == ["HOST", "STATE", "CODE", "LAG", "SIGNED", "SINCE", "REASON"]
    assert [row[:5] for row in status[1:]] == [[host, "up", str(first + 3), "0", "valid"] for host in ("h1", "h2")]
    assert [row[:2] for row in rows(ctl("code", "hosts", str(first)).stdout)[1:]] == [["h1", "valid"], ["h2", "valid"]]


def test_a_command_on_every_host(ctl: Ctl, value: Value, tmp_path: Path) -> None:
    """Its output is kept; where it fails the host lags until it is tried again."""
    good = ctl("code", "run", "--", "sh", "-c", "echo here is $DEPALMA_HOST")
    said = value("code", "hosts", good.stdout.strip())
    assert [(one["host"], one["exit_code"], one["output"]) for one in said] == [
        ("h1", 0, "here is h1\n"),
        ("h2", 0, "here is h2\n"),
    ]
    switch = tmp_path / "switch"
    bad = ctl("code", "run", "--", "sh", "-c", f"test -e {switch} || {{ echo no switch; exit 4; }}", code=1)
    index = bad.stdout.strip()
    assert f"command {index} failed on h1 (exit code 4), h2 (exit code 4)" in bad.stderr
    assert ctl("code", "status", "--check", code=1).stderr.count("behind code index") == 1
    assert f"command {index}: exit code 4" in ctl("code", "status").stdout
    assert {host["state"] for host in value("host", "ls")} == {"lagging"}

    switch.touch()
    assert "asked to try again: h1, h2" in ctl("code", "retry").stderr
    ctl("code", "run", "--", "true")  # waits behind it
    view = value("code", "show", index)
    assert (view["missing"], view["lagging"]) == ([], {})
    ctl("code", "status", "--check")


def test_a_person_at_a_terminal_sees_who_is_waited_for(
    environment: dict[str, str], tmp_path: Path, wait_until: WaitUntil
) -> None:
    gate = tmp_path / "gate"
    main, terminal = pty.openpty()
    script = f"while [ ! -e {gate} ]; do sleep 0.05; done"
    command = [sys.executable, "-m", "depalma.ctl", "code", "run", "--", "sh", "-c", script]
    surroundings = {**environment, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=terminal, text=True) as waiting:
        os.close(terminal)
        os.set_blocking(main, False)
        seen = bytearray()

        def look() -> str:
            try:
                seen.extend(os.read(main, 65536))
            except (BlockingIOError, OSError):
                pass
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))

        wait_until(look, until=lambda text: "waiting for h1, h2" in text and "0/2" in text)
        gate.touch()
        wait_until(lambda: look() and waiting.poll() is not None)  # it goes on drawing
        assert waiting.returncode == 0
        assert waiting.stdout is not None
        assert waiting.stdout.read().strip().isdigit()
    os.close(main)


def test_requirements_that_cannot_travel_are_refused(ctl: Ctl, tmp_path: Path) -> None:
    """By file and line, before anything is sent."""
    (tmp_path / "m.py").write_text("")
    (tmp_path / "r.txt").write_text("numpy\n-r more.txt\n")

    refused = ctl("code", "add", "m.py", "--requirements", "r.txt", code=2)

    assert "r.txt, line 2: '-r more.txt' given; other files are not sent along" in refused.stderr

"""The leak checks themselves must be able to fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # of the tests, not of the product

CONFTEST = Path(__file__).parents[1] / "conftest.py"

LEAKS = {
    "process": "import subprocess\ndef test(): subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL)\n",
    "daemon": "import os, time\n"
    "def test():\n"
    "    waits, begins = os.pipe()\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        if os.fork() == 0: os.execvp('sleep', ['sleep', '60'])\n"
    "        os._exit(0)\n"
    "    os.wait(); os.close(begins); os.read(waits, 1); os.close(waits)\n",  # it has become `sleep`
    "thread": "import threading, time\n"
    "def test(): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "none": "import subprocess\ndef test(): assert subprocess.run(['true']).returncode == 0\n",
}


def run_suite(folder: Path, body: str) -> tuple[int, str]:
    """Runs one test file under our conftest in a pytest of its own, with a short grace time."""
    text, changed = re.subn(r"^GRACE_S = .*$", "GRACE_S = 0.2", CONFTEST.read_text(), flags=re.MULTILINE)
    assert changed == 1
    (folder / "conftest.py").write_text(text)
    (folder / "test_one.py").write_text(body)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=folder)
    return done.returncode, done.stdout


def test_a_leaked_process_fails_its_test(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, LEAKS["process"])

    assert code == 1
    assert "processes left behind" in output
    assert "sleep 60" in output


def test_a_process_that_left_the_process_tree_fails_the_run(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, LEAKS["daemon"])

    assert code == 1
    assert "left behind by the run" in output


def test_a_leaked_thread_fails_the_run(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, LEAKS["thread"])

    assert code == 1
    assert "threads left behind" in output


def test_a_clean_suite_passes(tmp_path: Path) -> None:
    code, output = run_suite(tmp_path, LEAKS["none"])

    assert (code, "1 passed" in output) == (0, True)

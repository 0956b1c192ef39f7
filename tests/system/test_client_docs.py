"""The program of docs/python.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_page_is_a_program_that_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 9
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    command = [sys.executable, "-W", "error", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)  # it writes files
    assert done.returncode == 0, done.stderr
    for words in (
        "[2, 4, 4]",
        "10 1000 4",
        "3 failed [3, 3, 3]\n1\nhello Ada\nhello Alan\n",
        "ZeroDivisionError",
        "unknown_job",
        "1 ()\nhello you\n",
        "[('h1', 'up', 1), ('h2', 'up', 1)]",
        "3\n[2, 4, 4]\n",
    ):
        assert words in done.stdout, done.stdout

#!/usr/bin/env python3
"""Runs a master, an agent or depalmactl from a checkout, without installing anything but the dependencies.

    bin/run.py master --config lab.yaml --id m1
    bin/run.py agent --config lab.yaml --name h1
    bin/run.py ctl jobs

Uses the checkout's .venv when there is one (`bin/quickstart` or `bin/test` makes it), else the Python that runs it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"master": "depalma.master", "agent": "depalma.remote", "ctl": "depalma.ctl.main"}


def main() -> int:
    """Runs the program named by the first argument. Returns its exit code; 2 for a wrong call."""
    if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
        print(f"usage: {Path(sys.argv[0]).name} {{{'|'.join(PROGRAMS)}}} [options]", file=sys.stderr)
        return 2
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    sys.path[0] = str(ROOT)
    program = sys.argv.pop(1)
    sys.argv[0] = f"depalma-{program}" if program != "ctl" else "depalmactl"
    return int(import_module(PROGRAMS[program]).main() or 0)


if __name__ == "__main__":
    sys.exit(main())

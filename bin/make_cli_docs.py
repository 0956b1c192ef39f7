#!/usr/bin/env python3
"""Writes docs/cli.md from the commands themselves.

bin/make_cli_docs.py            writes the page
bin/make_cli_docs.py --check    exit code 1 when the page is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"


def main() -> int:
    """Returns the exit code."""
    sys.path[0] = str(ROOT)
    from depalma.ctl.reference import markdown

    wanted = markdown()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            print(f"{PAGE.relative_to(ROOT)} is out of date; run: bin/make_cli_docs.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Turns the lines of benchmarks/run.py into a Markdown table.

benchmarks/run.py | tee numbers.jsonl | benchmarks/table.py
"""

from __future__ import annotations

import json
import sys

TITLES = {
    "python_tasks": "no-op Python tasks",
    "command_tasks": "`/bin/true` tasks",
    "submit_to_result": "submit → result, one at a time",
    "lone_write": "one acknowledged write, over HTTP",
    "writes": "acknowledged writes, 16 clients",
    "failover_write": "SIGKILL of the leader → next acknowledged write",
    "failover_task": "SIGKILL of the leader → next task started",
    "agent_loss": "SIGKILL of an agent → its task runs elsewhere",
}


def cell(line: dict[str, object]) -> str:
    """Returns a value as people read it."""
    value = float(str(line["value"]))
    number = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    if line["unit"] != "ms":
        return f"{number} {line['unit'].replace('/', ' / ')}"  # type: ignore[attr-defined]
    return f"median {number} ms, worst of {line['n']}: {float(str(line['worst_ms'])):,.0f} ms"


def main() -> int:
    """Reads standard input. Returns the exit code."""
    print("| measure | |\n|---|---|")
    for text in sys.stdin:
        line = json.loads(text)
        if "machine" in line:
            print(f"{line['machine']}, {line['cpus']} cores, fdatasync {line['fdatasync_p50_ms']} ms, "
                  f"load {line['load1']}", file=sys.stderr)  # fmt: skip
        elif line["benchmark"] in TITLES:
            print(f"| {TITLES[line['benchmark']]} | {cell(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`bin/chaos`: runs scenarios by name and prints what they found."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

from depalma.testing.chaos import mounts, network, requirements
from depalma.testing.chaos.report import Report, table
from depalma.testing.chaos.scenarios import SCENARIOS, Scenario


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/chaos", description="Real faults on real processes; needs root.")
    parser.add_argument("scenarios", nargs="*", metavar="FAULT", help="F1 F9 …; see --list")
    parser.add_argument("--all", action="store_true", help="every scenario")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--short", action="store_true", help="the short form of each, as in every test run")
    parser.add_argument("--runs", type=int, default=1, help="how often each (default 1)")
    parser.add_argument("--seed", type=int, help="the first run's seed (default: a new one)")
    parser.add_argument("--slack", type=float, default=1.0, help="multiplies the allowed times (default 1)")
    parser.add_argument("--dir", type=Path, help="where runs that fail leave their evidence (default: a new folder)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every run passed, 1 if one broke a promise, was slow or void, 2 for wrong arguments."""
    options = _parser().parse_args(argv)
    if options.list:
        for one in SCENARIOS.values():
            _say(f"{one.id:4} {one.title}{'' if one.quick else '  (not in the short set)'}")
        return 0
    names = list(SCENARIOS) if options.all else [name.upper() for name in options.scenarios]
    unknown = [name for name in names if name not in SCENARIOS]
    if not names or unknown:
        sys.stderr.write(
            f"unknown: {' '.join(unknown)}\n" if unknown else "name scenarios, or --all; --list says which\n"
        )
        return 2
    directory = (options.dir or Path(tempfile.mkdtemp(prefix="depalma-chaos-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    seed = options.seed if options.seed is not None else SystemRandom().randrange(1_000_000)
    reports: list[Report] = []
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        for name in names:
            reports += _runs(SCENARIOS[name], directory, seed, options)
    finally:
        network.sweep()
        mounts.sweep()
        _say("\n" + table(reports))
        if not any(directory.iterdir()):
            directory.rmdir()
    return int(any(report.verdict != "pass" for report in reports))


def _interrupt(number: int, _: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: what it made is taken away."""
    raise SystemExit(128 + number)


def _runs(one: Scenario, directory: Path, seed: int, options: argparse.Namespace) -> list[Report]:
    reason = requirements.missing(*one.needs)
    if reason:
        _say(f"{one.id} {one.title}: skipped: {reason}")
        return []
    found = []
    for i in range(options.runs):
        report = one.execute(directory, seed=seed + i, whole=not options.short, slack=options.slack)
        _say("\n".join(report.lines()))
        found.append(report)
    return found


if __name__ == "__main__":
    sys.exit(main())

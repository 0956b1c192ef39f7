"""`bin/chaos`: runs scenarios by name and prints what they found."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from random import SystemRandom

from depalma.testing.chaos import requirements
from depalma.testing.chaos.report import Report, table
from depalma.testing.chaos.scenarios import SCENARIOS, Scenario
from depalma.testing.chaos.sweep import sweep


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/chaos", description="Real faults on real processes; needs root.")
    parser.add_argument("scenarios", nargs="*", metavar="FAULT", help="F1 F9 …; see --list")
    parser.add_argument("--all", action="store_true", help="every scenario")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--short", action="store_true", help="the short form of each, as in every test run")
    parser.add_argument(
        "--size", nargs="*", default=[], metavar="NAME=NUMBER", help="other sizes of one scenario, such as kills=10"
    )
    parser.add_argument("--runs", type=int, default=1, help="how often each (default 1)")
    parser.add_argument("--seed", type=int, help="the first run's seed (default: a new one)")
    parser.add_argument("--slack", type=float, default=1.0, help="multiplies the allowed times (default 1)")
    parser.add_argument("--dir", type=Path, help="where runs that fail leave their evidence (default: a new folder)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every run passed, 1 if one broke a promise, was slow or void, or none ran; 2 for wrong arguments."""
    options = _parser().parse_args(argv)
    if options.list:
        for one in _in_order():
            _say(f"{one.id:4} {one.title}{'' if one.quick else '  (not in the short set)'}")
        return 0
    names = [one.id for one in _in_order()] if options.all else [name.upper() for name in options.scenarios]
    unknown = [name for name in names if name not in SCENARIOS]
    if not names or unknown:
        sys.stderr.write(
            f"unknown: {' '.join(unknown)}\n" if unknown else "name scenarios, or --all; --list says which\n"
        )
        return 2
    try:
        sizes = _sizes([SCENARIOS[name] for name in names], options.size)
    except ValueError as error:
        sys.stderr.write(f"--size: {error}\n")
        return 2
    directory = (options.dir or Path(tempfile.mkdtemp(prefix="depalma-chaos-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    seed = options.seed if options.seed is not None else SystemRandom().randrange(1_000_000)
    reports: list[Report] = []
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sweep()
        for name in names:
            reports += _runs(SCENARIOS[name], directory, seed, sizes, options)
    finally:
        sweep()
        _say("\n" + table(reports))
        if not any(directory.iterdir()):
            directory.rmdir()
    words = {report.verdict for report in reports}
    return int("pass" not in words or not words <= {"pass", "skipped"})


def _in_order() -> list[Scenario]:
    return sorted(SCENARIOS.values(), key=lambda one: int(one.id[1:]))


def _interrupt(number: int, _: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: what it made is taken away."""
    raise SystemExit(128 + number)


def _sizes(scenarios: list[Scenario], words: list[str]) -> dict[str, float]:
    """Returns the sizes that were asked for. Errors: ValueError."""
    sizes: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if len(scenarios) != 1:
            raise ValueError(f"{word}: is for one scenario, {len(scenarios)} are named")
        known = scenarios[0].whole
        if name not in known:
            raise ValueError(f"{word}: {scenarios[0].id} has {', '.join(known)}")
        sizes[name] = type(known[name])(value)
    return sizes


def _runs(
    one: Scenario, directory: Path, seed: int, sizes: dict[str, float], options: argparse.Namespace
) -> list[Report]:
    reason = requirements.missing(*one.needs, cluster=one.cluster)
    if reason:
        _say(f"{one.id} {one.title}: skipped: {reason}")
        return [Report(one.id, one.title, seed, skipped=reason)]
    found = []
    for i in range(options.runs):
        report = _run(one, directory, seed + i, sizes, options)
        _say("\n".join(report.lines()))
        found.append(report)
    return found


def _run(one: Scenario, directory: Path, seed: int, sizes: dict[str, float], options: argparse.Namespace) -> Report:
    """One run; if the harness fails, that is told too, and the other scenarios still run."""
    try:
        return one.execute(directory, seed=seed, whole=not options.short, slack=options.slack, size=sizes)
    except Exception as error:
        traceback.print_exc()
        return Report(one.id, one.title, seed, violations=[f"the run itself failed: {type(error).__name__}: {error}"])


if __name__ == "__main__":
    sys.exit(main())

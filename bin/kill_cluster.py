#!/usr/bin/env python3
"""Kills processes of a cluster: all of them, or just the ones you name.

    bin/kill_cluster.py DIR                      a local cluster: SIGTERM, and SIGKILL for what is left after 10 s
    bin/kill_cluster.py DIR --id m2 --signal KILL        one master dies without a word
    bin/kill_cluster.py DIR --role agent --signal STOP   every agent freezes (CONT wakes them)
    bin/kill_cluster.py -f lab.yaml              over ssh: what `depalmactl cluster up` started and `down` left

DIR is the cluster's folder; its cluster.json says which processes there are. With -f, every machine of the cluster file
looks at what it has on record. A process id that by now belongs to another program is left alone.
Exit codes: 0 done, 1 something still runs (-f: or a machine could not be asked), 2 wrong call, 3 no such cluster or
process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 10.0
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Sends the signal. Returns the exit code."""
    options = parse_arguments()
    if options.file is not None:
        return kill_over_ssh(options.file, options.ssh_config)
    try:
        listed = json.loads((options.dir / "cluster.json").read_text())["processes"]
    except (OSError, ValueError, KeyError) as error:
        print(f"no cluster in {options.dir}: {error!r}", file=sys.stderr)
        return 3
    chosen = [
        process
        for process in listed
        if options.role in (None, process["role"]) and (not options.id or process["id"] in options.id)
    ]
    if not chosen:
        names = ", ".join(process["id"] for process in listed)
        print(f"no such process; there are: {names}", file=sys.stderr)
        return 3
    number = signal.Signals[f"SIG{options.signal.removeprefix('SIG')}"]
    for process in chosen:
        state = "ended already" if not send(process, number) else f"got {number.name}"
        print(f"{process['role']} {process['id']} (pid {process['pid']}) {state}")
    if number is signal.SIGTERM:
        return finish(chosen)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, nargs="?", metavar="DIR", help="folder of a local cluster (cluster.json)")
    parser.add_argument("-f", "--file", type=Path, help="the cluster file of a cluster that was started over ssh")
    parser.add_argument("-F", "--ssh-config", type=Path, help="a configuration file for ssh, instead of your own")
    parser.add_argument("--role", choices=["master", "agent"], help="only these")
    parser.add_argument("--id", action="append", help="only this one; may be repeated")
    names = [name.name.removeprefix("SIG") for name in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)]
    parser.add_argument("--signal", choices=names, default="TERM")
    options = parser.parse_args()
    if (options.dir is None) == (options.file is None):
        parser.error("give DIR or -f FILE")
    if options.file is not None and (options.role or options.id or options.signal != "TERM"):
        parser.error("-f is about the whole cluster; --role, --id and --signal go with DIR")
    return options


def kill_over_ssh(file: Path, ssh_config: Path | None) -> int:
    """Ends what the machines have on record. Returns the exit code."""
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.execv(python, [str(python), *sys.argv])
    sys.path[0] = str(ROOT)
    from depalma.deploy.cluster import Deployment, Options
    from depalma.errors import ConfigError

    words = ("-F", str(ssh_config.absolute())) if ssh_config else ()
    try:
        with Deployment(file, Options(ssh=words, patience_s=PATIENCE_S), print) as deployment:
            outcomes = deployment.down("kill")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    killed = [(outcome, report) for outcome in outcomes for report in outcome.reports if report.did]
    for outcome, report in killed:
        print(f"{outcome.machine}: {report.role} {report.id} ended {report.note}".rstrip())
    problems = [(o.machine, problem) for o in outcomes for problem in (o.problem, *(r.problem for r in o.reports))]
    for machine, problem in problems:
        if problem:
            print(f"{machine}: {problem}", file=sys.stderr)
    if not killed:
        print(f"nothing was left on {len(outcomes)} machines")
    return int(any(problem for _, problem in problems))


def is_ours(process: dict[str, object]) -> bool:
    """Returns whether the process lives and still is the program that cluster.json names."""
    folder = Path("/proc") / str(process["pid"])
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    argv = [os.fsencode(str(word)) for word in process["argv"]]  # type: ignore[attr-defined]
    # The first word may be a script whose interpreter now stands before it.
    return state != "Z" and argv[1:] == words[:-1][-len(argv[1:]) :]


def send(process: dict[str, object], number: signal.Signals) -> bool:
    """Returns whether there was somebody to send it to."""
    if not is_ours(process):
        return False
    try:
        os.kill(int(str(process["pid"])), number)
    except ProcessLookupError:
        return False
    return True


def finish(chosen: list[dict[str, object]]) -> int:
    """Waits for their end and kills those that take too long. Returns the exit code."""
    deadline = time.monotonic() + PATIENCE_S
    while any(is_ours(process) for process in chosen) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in chosen:
        if send(process, signal.SIGKILL):
            print(f"{process['role']} {process['id']} did not stop in {PATIENCE_S:.0f} s and got SIGKILL")
    deadline = time.monotonic() + 2
    while any(is_ours(process) for process in chosen) and time.monotonic() < deadline:
        time.sleep(0.05)
    return int(any(is_ours(process) for process in chosen))


if __name__ == "__main__":
    sys.exit(main())

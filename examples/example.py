#!/usr/bin/env python3
"""Counts the words of Python's own standard library on a local cluster, whose leader is killed in the middle.

Three masters and three agents start on loopback. The module `wordstats` goes into the code log; each source file is
one task. When a third of them is counted, the leader dies by SIGKILL. In the end the sum must equal the one that this
program makes by itself, every file counted once. Exit code 0 says that it does.

    examples/example.py                  the whole show
    examples/example.py --kill-agent     an agent dies too, with what it runs
    examples/example.py --files 200      on fewer files
"""

from __future__ import annotations

import argparse
import signal
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import wordstats
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from depalma import Client, LocalCluster

HERE = Path(__file__).resolve().parent
T = TypeVar("T")
console = Console()


@dataclass
class Story:
    """What happened, for the table at the end."""

    leader_before: str = ""
    leader_after: str = ""
    killed_agent: str = ""
    seconds: float = 0.0
    arrivals: list[float] = field(default_factory=list)  #: when this program heard of each result
    ends: list[float] = field(default_factory=list)  #: when each task ended on its host
    hosts: Counter[str] = field(default_factory=Counter)
    repeated: int = 0  #: tasks that needed more than one attempt
    command: str = ""


def main() -> int:
    """Runs the example. Returns 0 if the cluster's sum is right."""
    options = parse_arguments()
    files = source_files(options.files)
    story = Story()
    with folder_for(options.dir) as folder:
        with (
            LocalCluster(masters=3, agents=3, slots=1, directory=folder) as cluster,
            cluster.client() as client,
        ):
            here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
            say(f"a cluster of 3 masters and 3 agents runs in {here}")
            run_command(client, files, story)
            together = run_map(client, cluster, files, options, story)
        say("the cluster is stopped; counting again, alone")
        started = time.monotonic()
        alone = wordstats.total(wordstats.count(file) for file in with_progress(files, "alone", len(files)))
    show(story, together, alone, time.monotonic() - started)
    right = together == alone and together["files"] == len(files)
    say("both sums are equal, and each file was counted once" if right else "[red]the sums differ[/]")
    return 0 if right else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, metavar="N", help="take only N files, evenly chosen")
    parser.add_argument("--dir", type=Path, help="folder of the cluster; default: a temporary one")
    parser.add_argument("--no-kill", action="store_true", help="let the leader live")
    parser.add_argument("--kill-agent", action="store_true", help="kill an agent too, with what it runs")
    return parser.parse_args()


def source_files(limit: int | None) -> list[str]:
    """Returns the sources of the standard library that runs this program."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(str(path) for path in root.rglob("*.py") if "site-packages" not in path.parts)
    if limit and limit < len(files):
        files = [files[position * len(files) // limit] for position in range(limit)]
    return files


@contextmanager
def folder_for(chosen: Path | None) -> Iterator[Path]:
    """Yields the cluster's folder; a temporary one is removed afterwards."""
    if chosen:
        yield chosen.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="depalma-example-") as folder:
        yield Path(folder)


def run_command(client: Client, files: list[str], story: Story) -> None:
    """Runs one program on the cluster: `wc` on a few of the files."""
    job = client.command(["wc", "-l", *files[:: max(1, len(files) // 5)][:5]], name="wc")
    job.wait()
    story.command = job.logs().splitlines()[-1].strip()


def run_map(
    client: Client, cluster: LocalCluster, files: list[str], options: argparse.Namespace, story: Story
) -> wordstats.Stats:
    """Counts every file on the cluster while masters and agents die. Returns the sum."""
    version = client.add_code(HERE / "wordstats")
    say(f"wordstats is entry {version.index} of the code log ({version.digest[:12]}), on every host")
    story.leader_before = story.leader_after = leader_of(client)
    started = time.monotonic()
    job = client.map("wordstats:count", files, name="stdlib")
    parts: list[wordstats.Stats] = []
    for task in with_progress(job.as_completed(), "on the cluster", len(files)):
        story.arrivals.append(time.monotonic())
        parts.append(task.result())
        story.hosts[task.host] += 1
        if len(parts) == len(files) // 3 and not options.no_kill:
            kill(cluster, story.leader_before)
        if len(parts) == len(files) // 2 and options.kill_agent:
            story.killed_agent = story.hosts.most_common(1)[0][0]
            kill(cluster, story.killed_agent)
    story.seconds = time.monotonic() - started
    story.leader_after = leader_of(client)
    tasks = job.tasks()
    story.ends = sorted(task.finished_at for task in tasks if task.finished_at is not None)
    story.repeated = sum(task.attempt > 1 for task in tasks)
    return wordstats.total(parts)


def leader_of(client: Client) -> str:
    """Returns the id of the master that leads."""
    return next((master.id for master in client.masters() if master.role == "leader"), "nobody")


def kill(cluster: LocalCluster, name: str) -> None:
    """Ends a process of the cluster without a word."""
    pid = next(process.pid for process in cluster.processes if process.id == name)
    cluster.kill(name, signal.SIGKILL)
    say(f"[red]SIGKILL[/] to {name} (pid {pid})")


def with_progress(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yields the items while a bar shows how many there were."""
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total, description=title)


def longest_pause(times: list[float]) -> float:
    """Returns the longest time in which nothing happened, in seconds."""
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def show(story: Story, together: wordstats.Stats, alone: wordstats.Stats, seconds_alone: float) -> None:
    """Prints the tables."""
    sums = Table("standard library", "on the cluster", "alone", "", title="What was counted")
    for name in ("files", "lines", "tokens", "names", "unreadable"):
        sums.add_row(name, f"{together[name]:,}", f"{alone[name]:,}", "=" if together[name] == alone[name] else "≠")
    for word, times in Counter(alone["keywords"]).most_common(3):
        other = together["keywords"].get(word, 0)
        sums.add_row(f"keyword [i]{word}[/]", f"{other:,}", f"{times:,}", "=" if other == times else "≠")
    sums.add_row("seconds", f"{story.seconds:.1f}", f"{seconds_alone:.1f}", "")
    events = Table(show_header=False, title="What happened meanwhile")
    events.add_row("led before / after", f"{story.leader_before} / {story.leader_after}")
    events.add_row("longest time in which no task ended", f"{longest_pause(story.ends):.2f} s")
    events.add_row("longest time without a new result here", f"{longest_pause(story.arrivals):.2f} s")
    events.add_row("tasks by host", ", ".join(f"{host}: {count}" for host, count in sorted(story.hosts.items())))
    if story.killed_agent:
        events.add_row("killed agent", f"{story.killed_agent}; tasks that ran again: {story.repeated}")
    events.add_row("wc on five files", story.command)
    console.print(sums, events)


def say(words: str) -> None:
    console.print(f"[dim]•[/] {words}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())

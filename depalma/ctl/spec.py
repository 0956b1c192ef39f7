"""From the options of `submit`, `map` and `run` to the job specification that goes to the cluster."""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from depalma.ctl import after
from depalma.ctl.alternatives import parse_alternatives
from depalma.ctl.moments import MOMENT
from depalma.ctl.session import FORMATS, Session
from depalma.ctl.values import (
    ALL,
    ARRAY,
    DURATION,
    GPUS,
    SIZE,
    Array,
    Number,
    Whole,
    parse_counts,
    parse_env,
    parse_gang,
)
from depalma.model import INLINE_LIMIT_BYTES

F = TypeVar("F", bound=Callable[..., Any])

_COMMON = (
    click.option("--name", metavar="NAME", help="A name for people."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag to find it by; may be repeated."),
    click.option("--priority", type=int, metavar="N", help="Higher runs first (0)."),
    click.option("--group", metavar="GROUP", help="Only on hosts of this group."),
    click.option("--on-host", metavar="HOST", help="Only on this host."),
    click.option("--cpus", type=Number(0, min_open=True), metavar="N", help="CPUs a task needs (1)."),
    click.option(
        "--memory", type=SIZE, metavar="SIZE", help="Memory a task needs, such as 500M or 2G; beyond it it is ended."
    ),
    click.option(
        "--gpus", type=GPUS, metavar="N", help="GPUs that each task has to itself; 0.5: half of one that it shares."
    ),
    click.option(
        "--resource",
        "resources",
        multiple=True,
        metavar="NAME=N",
        callback=parse_counts,
        help="What a task needs of what its host has so many of, such as licences. May be repeated.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="RULE",
        help="Only on hosts with such a label: K=V, K!=V, 'K in A,B', K, 'K>N', 'K<N'. May be repeated.",
    ),
    click.option("--prefer", multiple=True, metavar="RULE", help="The same as a wish: such hosts come first."),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="TAG=N",
        callback=parse_counts,
        help="At most N tasks with this tag at once, in the whole cluster; the job has the tag. May be repeated.",
    ),
    click.option(
        "--or",
        "alternatives",
        multiple=True,
        metavar="NAME=VALUE,…",
        callback=parse_alternatives,
        help="What a task may need instead: cpus, memory, gpus, resources; no more than that. May be repeated.",
    ),
    click.option("--preempt", is_flag=True, help="Tasks of lower priority that may run again make room for it."),
    click.option("--pack", is_flag=True, help="Fill one host after the other, instead of spreading tasks."),
    click.option("--cpu-time", type=DURATION, metavar="TIME", help="CPU time a task may use: 90, 15m, 1h30m."),
    click.option("--max-processes", type=Whole(1), metavar="N", help="Processes a task may have at once."),
    click.option("--max-files", type=Whole(16), metavar="N", help="Files each of them may have open."),
    click.option("--max-output", type=SIZE, metavar="SIZE", help="What a task may write to stdout and stderr."),
    click.option("--scratch", type=SIZE, metavar="SIZE", help="Disk that a task's scratch folder may take."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="PATH[=NAME]",
        help="A file or folder to put into the scratch folder first. May be repeated.",
    ),
    click.option(
        "--output",
        "outputs",
        multiple=True,
        metavar="GLOB",
        help="Files of the scratch folder to keep: see result --output. May be repeated.",
    ),
    click.option("--stdin", metavar="FILE", help="What each task reads: a file here, or - for the stdin of this."),
    click.option("--retries", type=Whole(0), metavar="N", help="Further attempts after a task failed (0)."),
    click.option(
        "--backoff", type=DURATION, metavar="TIME", help="Before the next attempt; doubles, up to an hour (0)."
    ),
    click.option(
        "--retry-exit-code",
        "retry_exit_codes",
        multiple=True,
        type=Whole(1, 255),
        metavar="CODE",
        help="Try again only after this exit code (128+n: signal n). May be repeated.",
    ),
    click.option(
        "--timeout-retries",
        type=Whole(0),
        metavar="N",
        help="Further attempts after a timeout (as --retries).",
    ),
    click.option("--lost-retries", type=Whole(0), metavar="N", help="Further attempts after a lost host (no limit)."),
    click.option(
        "--at", "start_at", type=MOMENT, metavar="TIME", help="Not before: 2026-11-27T03:00, 03:00 (the next), +2h."
    ),
    click.option(
        "--start-within", type=DURATION, metavar="TIME", help="Cancel the job if nothing of it has started by then."
    ),
    click.option(
        "--task-start-within", type=DURATION, metavar="TIME", help="Cancel each task that no host has got by then."
    ),
    click.option(
        "--timeout", "time_limit", type=DURATION, metavar="TIME", help="Kill an attempt after this: 90, 15m, 1h30m."
    ),
    click.option("--grace", type=DURATION, metavar="TIME", help="Between SIGTERM and SIGKILL, when it is ended (5s)."),
    click.option("--env", multiple=True, metavar="K=V", help="A variable; a bare K copies yours. May be repeated."),
    click.option("--cwd", metavar="DIR", help="Folder to run in, on the host (default: a scratch folder)."),
    click.option("--user", metavar="USER", help="Whose job it is (your login name)."),
    click.option("--not-restartable", is_flag=True, help="If its host is lost, a task ends as lost and is not re-run."),
    click.option("--code-index", type=Whole(0), metavar="N", help="Run with this code index (the newest)."),
)
_FILES = (
    click.option("--stdout", metavar="FILE", help="A file on the host for stdout; %j job, %t task, %a attempt."),
    click.option("--stderr", metavar="FILE", help="The same for stderr."),
)
_HOLD = click.option("--hold", is_flag=True, help="Do not start it yet.")
_ARRAY = click.option("--array", type=ARRAY, metavar="A-B[%N]", help="One task an index; at most N at once.")
_GANG = click.option(
    "--gang",
    is_flag=False,
    flag_value=ALL,
    metavar="[N]",
    callback=parse_gang,
    help="N tasks start at once, or none of them; without N: all of the job.",
)
_MAX_RUNNING = click.option(
    "-j", "--max-running", type=Whole(1), metavar="N", help="At most N tasks at once (no limit)."
)


def spec_options(
    *, files: bool = False, hold: bool = False, array: bool = False, max_running: bool = False
) -> Callable[[F], F]:
    """Returns the decorator that adds the options that describe a job."""
    wanted = [*_COMMON, *after.OPTIONS, *_FILES] if files else [*_COMMON, *after.OPTIONS]
    wanted += [_HOLD] * hold + [_ARRAY, _GANG] * array + [_MAX_RUNNING, _GANG] * max_running

    def decorate(function: F) -> F:
        for option in reversed(wanted):
            function = option(function)
        return function

    return decorate


def build_spec(argv: Sequence[str], options: dict[str, Any], *, default_name: str) -> dict[str, Any]:
    """Returns the specification of a command job as the API takes it; only what was asked for is in it.

    Errors: click.UsageError.
    """
    try:
        env = parse_env(options.get("env") or ())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--env'") from error
    array: Array | None = options.get("array")
    cwd = options.get("cwd")
    spec = {
        "kind": "command",
        "argv": list(argv),
        "name": options.get("name") or default_name[:200],
        "user": options.get("user") or login_name(),
        "tags": list(options.get("tags") or ()),
        "priority": options.get("priority"),
        "group": options.get("group"),
        "on_host": options.get("on_host"),
        "cpus": options.get("cpus"),
        "memory_bytes": options.get("memory"),
        "retries": options.get("retries"),
        "timeout_s": options.get("time_limit"),
        "grace_s": options.get("grace"),
        "backoff_s": options.get("backoff"),
        "retry_exit_codes": list(options.get("retry_exit_codes") or ()),
        "timeout_retries": options.get("timeout_retries"),
        "lost_retries": options.get("lost_retries"),
        "start_at": options.get("start_at"),
        "start_within_s": options.get("start_within"),
        "task_start_within_s": options.get("task_start_within"),
        "env": env,
        "cpu_time_s": options.get("cpu_time"),
        "max_processes": options.get("max_processes"),
        "max_files": options.get("max_files"),
        "max_output_bytes": options.get("max_output"),
        "scratch_bytes": options.get("scratch"),
        "outputs": [checked_output(glob) for glob in options.get("outputs") or ()],
        "cwd": os.path.abspath(os.path.expanduser(cwd)) if cwd else None,
        "restartable": False if options.get("not_restartable") else None,
        "hold": options.get("hold") or None,
        "code_index": options.get("code_index"),
        "max_running": options.get("max_running"),
        "gpus": options.get("gpus"),
        "resources": options.get("resources") or None,
        "alternatives": list(options.get("alternatives") or ()),
        "labels": list(options.get("labels") or ()),
        "prefer": list(options.get("prefer") or ()),
        "limits": options.get("limits") or None,
        "preempt": options.get("preempt") or None,
        "pack": options.get("pack") or None,
        "gang": options.get("gang"),
        "stdout": _file(options.get("stdout"), cwd),
        "stderr": _file(options.get("stderr"), cwd),
    }
    if array is not None:
        spec |= {"count": array.tasks, "first_index": array.first, "max_running": array.max_running or None}
    return {name: value for name, value in spec.items() if value not in (None, [], {})}


def checked_output(text: str) -> str:
    """Returns the value of an --output that names files. Errors: click.BadParameter for a word that names a format."""
    if text in FORMATS:
        raise click.BadParameter(
            f"here it names files; the format is -o {text} (for a file of that name: [{text[0]}]{text[1:]})",
            param_hint="'--output'",
        )
    return text


def stage_files(session: Session, options: dict[str, Any], spec: dict[str, Any]) -> None:
    """Uploads what a job is given of files here, and names it in its specification. Errors: click.BadParameter."""
    stdin = _stdin(options.get("stdin"))  # before anything is sent
    if options["inputs"]:
        _stage_inputs(session, options["inputs"], spec)
    if stdin:
        spec["stdin"] = stored(session, stdin)


def _stdin(name: str | None) -> bytes:
    try:
        return b"" if name is None else sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{name}: {error.strerror}", param_hint="'--stdin'") from error


def stored(session: Session, data: bytes) -> dict[str, Any]:
    """Returns the bytes as the API takes them, after large ones were uploaded."""
    if len(data) <= INLINE_LIMIT_BYTES:
        return {"inline": base64.b64encode(data).decode(), "size_bytes": len(data)}
    digest = hashlib.sha256(data).hexdigest()
    session.put_blob(digest, data)
    return {"digest": digest, "size_bytes": len(data)}


def _stage_inputs(session: Session, paths: Sequence[str], spec: dict[str, Any]) -> None:
    import io

    from depalma import staging
    from depalma.archive import ArchiveError

    packed = io.BytesIO()
    try:
        digest, size_bytes = staging.pack(staging.input_members(paths), packed, staging.INPUT_BYTES)
    except (ArchiveError, OSError) as error:
        raise click.BadParameter(str(error), param_hint="'--input'") from error
    session.put_blob(digest, packed.getvalue())
    spec["inputs"] = {"digest": digest, "size_bytes": size_bytes}


def _file(name: str | None, cwd: str | None) -> str | None:
    """Returns the absolute name: on the host, the scratch folder it would be relative to is soon gone."""
    if not name:
        return None
    return os.path.abspath(os.path.join(os.path.expanduser(cwd or "."), os.path.expanduser(name)))


def login_name() -> str:
    """Returns the name of the user of this process, or its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())

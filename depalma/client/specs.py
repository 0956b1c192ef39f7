"""From what a user says to a JobSpec: options, arrays, sizes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from msgspec import Struct

from depalma.client import functions
from depalma.client.alternatives import alternatives_of
from depalma.client.functions import Function
from depalma.model import MAX_TASKS, Dependency, JobSpec

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B?)$", re.IGNORECASE)
_AFTER = re.compile(r"^([1-9][0-9]{0,17})(?::(ok|fail|any))?$")
_ARRAY = re.compile(r"^(\d+)-(\d+)(?:%(\d+))?$")


class JobOptions(TypedDict, total=False):
    """Options of every kind of job. Times in seconds."""

    name: str
    user: str
    priority: int  #: higher goes first
    tags: Sequence[str]
    group: str  #: only hosts of this group
    on_host: str  #: only this host
    env: Mapping[str, str]
    cpus: float
    memory: int | str  #: bytes, or like "2G": what a task needs, and may use
    cpu_time_s: float  #: of all processes of a task
    max_processes: int
    max_files: int  #: open at once in a process
    max_output: int | str  #: bytes, or like "10M", of stdout and stderr together
    scratch: int | str  #: bytes, or like "10G", in the scratch folder
    gpus: float  #: GPUs that each task has to itself; below 1, in hundredths: its part of one that it shares
    resources: Mapping[str, int]  #: of what its host has so many of, such as licences
    alternatives: Sequence[Mapping[str, Any]]  #: what a task may need instead, the best first: {"cpus": 16}
    labels: Sequence[str]  #: rules for the labels of its host: "disk=ssd", "ram_gb>64"
    prefer: Sequence[str]  #: the same, wished for
    limits: Mapping[str, int]  #: tag: at most so many tasks with it at once, in the whole cluster
    preempt: bool  #: tasks of lower priority that may run again make room for it
    pack: bool  #: fill one host after the other, instead of spreading tasks
    gang: int | str  #: so many tasks start at once or none of them; "all": all of the job
    isolate: bool  #: each task of a function in a process of its own
    inputs: Sequence[str | os.PathLike[str]]  #: files and folders to put into the scratch folder, or "PATH=NAME"
    stdin: str | os.PathLike[str] | bytes  #: what each task of a command reads: a file here, or the bytes themselves
    outputs: Sequence[str]  #: globs of files in the scratch folder to keep: `task.outputs()`
    max_running: int  #: at most this many tasks at once
    retries: int  #: further attempts after a failure
    backoff_s: float  #: before the next attempt; doubles each time, up to an hour
    retry_exit_codes: Sequence[int]  #: of a command: only after these (128+n: signal n); empty = any
    timeout_retries: int  #: further attempts after a timeout, if these count apart
    lost_retries: int  #: further attempts after a lost host (no limit)
    start_within_s: float  #: the job is cancelled if nothing of it has started by then
    task_start_within_s: float  #: a task that no host was given so long after it came is cancelled
    timeout_s: float
    grace_s: float  #: between SIGTERM and SIGKILL
    restartable: bool
    hold: bool
    code_index: int
    stdout: str
    stderr: str
    start_at: float | datetime  #: nothing starts before: seconds since the epoch, or a time (without zone: local)
    open: bool  #: tasks may be added (`job.add`) until it is closed (`job.close`)
    after: object  #: a job (id or handle), "42:fail", or several: what has to end first, and how (ok, fail, any)
    after_each: object  #: the same, task by task: each waits for that job's task of equal index


_OPTIONS = frozenset(JobOptions.__annotations__)
_SIZES = {"memory": "memory_bytes", "max_output": "max_output_bytes", "scratch": "scratch_bytes"}


def fields(options: Mapping[str, Any], also: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the options as fields of a JobSpec. Errors: TypeError for an unknown one, ValueError for a bad value.

    `also` are words that are allowed where these options stand, and were looked at already.
    """
    unknown = sorted(map(str, set(options) - _OPTIONS))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; allowed: {', '.join(sorted({*_OPTIONS, *also}))}")
    values = {name: value for name, value in options.items() if value is not None}
    for name, field in _SIZES.items():
        if name in values:
            values[field] = size_bytes(values.pop(name), name)
    for name in ("tags", "labels", "prefer", "outputs"):
        if name in values:
            values[name] = texts(name, values[name])
    for name in ("resources", "limits", "env"):
        if name in values:
            if not isinstance(values[name], Mapping):
                raise bad_option(name, values[name], "a mapping of names to values")
            values[name] = dict(values[name])
    if "alternatives" in values:
        values["alternatives"] = alternatives_of(values["alternatives"], size_bytes)
    if isinstance(values.get("gang"), str):
        if values["gang"] != "all":
            raise ValueError(f"gang: {values['gang']!r} given; allowed: a number of tasks, or 'all'")
        values["gang"] = -1
    if isinstance(values.get("start_at"), datetime):
        values["start_at"] = values["start_at"].timestamp()
    if "retry_exit_codes" in values:
        values["retry_exit_codes"] = several("retry_exit_codes", values["retry_exit_codes"], int)
    if "env" in values:
        values["env"] = {str(name): str(value) for name, value in values["env"].items()}
    after = (*dependencies("after", values.pop("after", ())), *dependencies("after_each", values.pop("after_each", ())))
    if after:
        values["after"] = after
    values.setdefault("user", login_name())
    for name, value in values.items():
        _sendable(name, value)
    return values


def _sendable(name: str, value: object) -> None:
    """Refuses what no message to the cluster can hold: it would be an error without the option's name."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise bad_option(name, value, "text that can be written as UTF-8") from None
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise bad_option(name, value, "a number of at most 64 bits")
    elif isinstance(value, Mapping):
        _sendable(name, (*value, *value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            _sendable(name, part)


def dependencies(option: str, given: object) -> Iterator[Dependency]:
    """Yields what `after` or `after_each` means: ids, `"42:fail"`, handles of jobs. Errors: ValueError."""
    several = given if isinstance(given, list | tuple | set | frozenset) else (given,)
    for one in several:
        if isinstance(one, Dependency):
            yield one
            continue
        text = str(one if isinstance(one, int | str) and not isinstance(one, bool) else getattr(one, "id", one))
        match = _AFTER.fullmatch(text)
        if not match:
            raise ValueError(
                f"{option}: {one!r} given; allowed: a job's id or handle, or like '42:ok', '42:fail', '42:any'"
            )
        yield Dependency(int(match[1]), match[2] or "ok", option == "after_each")  # type: ignore[arg-type]


def bad_option(name: str, given: object, allowed: str) -> ValueError:
    """Returns the error of an option's value: what was given, and what is allowed."""
    text = repr(given)
    return ValueError(f"{name}: {text if len(text) <= 80 else text[:77] + '...'} given; allowed: {allowed}")


def texts(name: str, given: Any) -> tuple[str, ...]:
    """Returns texts; a single one counts as a list of one, not as its letters. Errors: ValueError."""
    return (given,) if isinstance(given, str) else several(name, given, str)


_QUOTES = "in quotes, if one looks like something else"


def several(name: str, given: Any, kind: type) -> tuple[Any, ...]:
    """Returns a list, tuple or the like of texts, or of whole numbers. Errors: ValueError."""
    what = f"texts ({_QUOTES})" if kind is str else "whole numbers"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise bad_option(name, given, f"a list of {what}")
    values = tuple(given)
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise bad_option(name, value, what)
    return values


def _path_text(name: str, given: Any) -> str:
    try:
        text = os.fspath(given)
    except TypeError:
        text = b""
    if not isinstance(text, str):
        raise bad_option(name, given, "a text or a path")
    _sendable(name, text)
    return text


@lru_cache(maxsize=1)
def login_name() -> str:
    """Returns the name of the user of this process, as the operating system knows it."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for this user
        return str(os.getuid())


def packed_inputs(values: dict[str, Any]) -> bytes:
    """Takes `inputs` out of the options and returns them packed; nothing if there are none. Errors: ArchiveError."""
    given = values.pop("inputs", None)
    if not given:
        return b""
    from depalma import staging
    from depalma.archive import ArchiveError

    target = io.BytesIO()
    if isinstance(given, Mapping) or not isinstance(given, str | os.PathLike | Iterable):
        raise bad_option("inputs", given, "a list of paths, or of PATH=NAME")
    entries = [given] if isinstance(given, str | os.PathLike) else list(given)
    try:
        staging.pack(staging.input_members(entries), target, staging.INPUT_BYTES)
    except ArchiveError as error:
        raise ArchiveError(f"inputs: {error}") from error
    return target.getvalue()


def read_stdin(values: dict[str, Any]) -> bytes:
    """Takes `stdin` out of the options and returns the bytes; nothing if there is none. Errors: ValueError."""
    given = values.pop("stdin", None)
    if given is None or isinstance(given, bytes):
        return given or b""
    path = _path_text("stdin", given)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"stdin: {path}: {error.strerror}") from error


def size_bytes(size: int | str, option: str = "memory") -> int:
    """Returns a size in bytes: `2G`, `512M`, `1.5g`, `1000`. Units are powers of 1024. Errors: ValueError."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if not match:
        raise ValueError(f"{option}: {size!r} given; allowed: bytes, or a number with K, M, G or T")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


class Array(Struct, frozen=True):
    """Which indices an array job has, and how many may run at once (0 = no limit)."""

    first: int = 0
    count: int = 1
    max_running: int = 0


def array(text: int | str | None) -> Array:
    """Returns the array that is meant: None is one task, 1000 is 0 to 999, `"5-9%2"` is 5 to 9, two at once.

    Errors: ValueError.
    """
    if text is None:
        return Array()
    if isinstance(text, str) and text.isdigit():
        text = int(text)
    if isinstance(text, int) and not isinstance(text, bool):
        made = Array(count=text)
    else:
        match = _ARRAY.fullmatch(text) if isinstance(text, str) else None
        if not match:
            raise ValueError(f"array: {text!r} given; allowed: a count, or like 0-99 or 0-99%10")
        first, last, limit = int(match[1]), int(match[2]), int(match[3] or 0)
        made = Array(first=first, count=last - first + 1, max_running=limit)
    if not 1 <= made.count <= MAX_TASKS:
        raise ValueError(f"array: {text!r} has {made.count} tasks; allowed: 1 to {MAX_TASKS}")
    return made


class Work(Struct, frozen=True):
    """A job before it is sent: what goes beside the spec may be too large for it."""

    spec: JobSpec
    function: bytes = b""
    arguments: Sequence[bytes] | None = None
    inputs: bytes = b""
    stdin: bytes = b""


def command_work(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] = "",
    indices: int | str | None = None,
    arguments: Sequence[str] | None = None,
    options: Mapping[str, Any],
) -> Work:
    """Returns a command job: one task an index, or one an argument (which replaces `{}`). Errors: ValueError."""
    if indices is not None and arguments is not None:
        raise bad_option("array", indices, "no array beside arguments, which say themselves how many tasks there are")
    if isinstance(argv, str | bytes | Mapping) or not argv or not isinstance(argv, Iterable):
        raise bad_option("argv", argv, "a list of the program and its arguments")
    values = fields(options, ("array", "arguments", "command", "cwd"))
    inputs, stdin = packed_inputs(values), read_stdin(values)
    values.update(argv=tuple(_path_text("argv", part) for part in argv), cwd=_path_text("cwd", cwd))
    if arguments is not None:
        items = _encoded("arguments", arguments)
        return Work(JobSpec(kind="command", count=len(items), **values), arguments=items, inputs=inputs, stdin=stdin)
    chosen = array(indices)
    if chosen.max_running:
        values["max_running"] = chosen.max_running
    spec = JobSpec(kind="command", count=chosen.count, first_index=chosen.first, **values)
    return Work(spec, inputs=inputs, stdin=stdin)


def packed_items(kind: str, items: Iterable[Any]) -> list[bytes]:
    """Returns the bytes of tasks that are added to a job: one an argument of its command, or of its function.

    Errors: ValueError, pickling errors.
    """
    if kind == "command":
        return _encoded("items", items)
    return [functions.pack_call(None, (item,), {}) for item in items]


def _encoded(name: str, given: Iterable[str]) -> list[bytes]:
    words = several(name, given, str)
    _sendable(name, words)
    return [word.encode() for word in words]


def function_work(
    function: Function,
    arguments: Sequence[bytes],
    *,
    by_reference: bool = False,
    is_open: bool = False,
    options: Mapping[str, Any],
) -> Work:
    """Returns a function job with one task per packed call. Errors: ValueError, pickling errors."""
    if options.get("stdin") is not None:
        raise ValueError("stdin: given for a function; allowed: for commands")
    values = fields(options)
    inputs = packed_inputs(values)
    values.setdefault("name", functions.display_name(function))
    is_open = values.pop("open", False) or is_open
    values.update(count=len(arguments), open=is_open)
    if isinstance(function, str) or by_reference:
        # Calls that are added to an open job may carry pickled functions whatever the first one was.
        python = functions.python_version() if is_open else ""
        spec = JobSpec(kind="function", function=functions.reference(function), python=python, **values)
        return Work(spec, arguments=arguments, inputs=inputs)
    spec = JobSpec(kind="function", python=functions.python_version(), **values)
    return Work(spec, function=functions.dumps(function), arguments=arguments, inputs=inputs)

"""Job scripts: what `submit script.sh` reads from its first lines, and how a script reaches the host.

`#DEPALMA --option …` takes any option of `submit`. Of `#SBATCH` a subset is taken, so that simple Slurm scripts run
unchanged; an unknown directive is an error, never ignored. Directives stand before the first line that is not a
comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from depalma.model import INLINE_LIMIT_BYTES

#: Interpreters that take a script as an argument, and whether the word after it is `$0` (as for shells).
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
_DASH_C = re.compile(r"^(python[0-9.]*|pypy[0-9.]*)$")
_DASH_E = frozenset({"perl", "ruby", "node"})
#: So that scripts that use Slurm's names find them; on the first line, where it moves no line number.
_SLURM_NAMES = (
    'export SLURM_JOB_ID="$DEPALMA_JOB_ID" SLURM_JOBID="$DEPALMA_JOB_ID" SLURM_ARRAY_JOB_ID="$DEPALMA_JOB_ID"'
    ' SLURM_ARRAY_TASK_ID="$DEPALMA_TASK_INDEX" SLURM_CPUS_PER_TASK="$DEPALMA_CPUS"'
    ' SLURMD_NODENAME="$DEPALMA_HOST"; '
)


class ScriptError(ValueError):
    """The script cannot be submitted; the message names the line."""


class Directive(NamedTuple):
    """Arguments of `submit` that one line of the script asks for."""

    line: int
    arguments: list[str]


def directives(text: str) -> list[Directive]:
    """Returns what the script's directives ask for, as arguments of `submit`. Errors: ScriptError."""
    found = []
    for number, line in _leading_comments(text):
        try:
            if line.startswith("#DEPALMA"):
                words = shlex.split(line.removeprefix("#DEPALMA"), comments=True)
                found.append(Directive(number, words))
            elif line.startswith("#SBATCH"):
                words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
                found.append(Directive(number, _from_slurm(words)))
        except ValueError as error:
            raise ScriptError(f"line {number}: {error}") from error
    return found


def script_argv(text: str, name: str, arguments: Sequence[str]) -> list[str]:
    """Returns the command line that runs the script's text on any host. Errors: ScriptError."""
    first = text.split("\n", 1)[0]
    interpreter = shlex.split(first[2:]) if first.startswith("#!") else ["/bin/sh"]
    if not interpreter:
        raise ScriptError("line 1: no interpreter after #!")
    program = interpreter[1:] if PurePath(interpreter[0]).name == "env" else interpreter
    program = [word for word in program if not word.startswith("-")] or interpreter
    base = PurePath(program[0]).name
    if base in _SHELLS:
        argv = [*interpreter, "-c", _with_slurm_names(text), name, *arguments]
    elif _DASH_C.match(base):
        argv = [*interpreter, "-c", text, *arguments]
    elif base in _DASH_E:
        argv = [*interpreter, "-e", text, *(["--"] if arguments else []), *arguments]
    else:
        raise ScriptError(f"line 1: scripts for {base} cannot be sent; put it on the hosts and submit it as a command")
    size_bytes = len(text.encode())
    if size_bytes > INLINE_LIMIT_BYTES:
        raise ScriptError(
            f"is {size_bytes:,} bytes; a script may have {INLINE_LIMIT_BYTES:,}. "
            "Add it with `depalmactl code add` and submit a short command that runs it from $DEPALMA_CODE_DIR"
        )
    return argv


def _leading_comments(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            return
        yield number, line


def _with_slurm_names(text: str) -> str:
    uses_slurm = any(line.startswith("#SBATCH") for _, line in _leading_comments(text))
    return _SLURM_NAMES + text if uses_slurm else text


# ---------------------------------------------------------------- #SBATCH


def _minutes(text: str) -> str:
    """Slurm's --time: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS; the answer is in seconds."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, (*parts, 0)[:2]
        if len(parts) > 3:
            raise ValueError
        return str(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
    except ValueError:
        raise ValueError(f"--time={text}: not a time of Slurm (such as 30, 01:30:00 or 1-12)") from None


def _megabytes(text: str) -> str:
    return f"{text}M" if text.isdigit() else text


def _pattern(text: str) -> str:
    """Slurm's %j and %A are the job, %a is the index in the array (here %t)."""
    unknown = re.search(r"%(?![jAa]).?", text)
    if unknown:
        raise ValueError(f"{text}: {unknown.group()} is not supported; there are %j, %A and %a")
    return text.replace("%a", "%t").replace("%A", "%j")


def _one(text: str) -> list[str]:
    if text != "1":
        raise ValueError(f"only 1 is possible (a job's task is one process on one host), not {text}")
    return []


#: Slurm's option → the arguments of `submit` for its value.
_SLURM: dict[str, Callable[[str], list[str]]] = {
    "job-name": lambda value: ["--name", value],
    "time": lambda value: ["--timeout", _minutes(value)],
    "array": lambda value: ["--array", value],
    "cpus-per-task": lambda value: ["--cpus", value],
    "gpus": lambda value: ["--gpus", value],
    "mem": lambda value: ["--memory", _megabytes(value)],
    "nice": lambda value: ["--priority", str(-int(value))],
    "chdir": lambda value: ["--cwd", value],
    "input": lambda value: ["--stdin", value],
    "output": lambda value: ["--stdout", _pattern(value)],
    "error": lambda value: ["--stderr", _pattern(value)],
    "nodelist": lambda value: ["--on-host", value],
    "nodes": _one,
    "ntasks": _one,
}
_SLURM_FLAGS = {"hold": ["--hold"], "no-requeue": ["--not-restartable"], "requeue": []}
_SLURM_SHORT = {
    "J": "job-name", "t": "time", "a": "array", "c": "cpus-per-task", "D": "chdir", "w": "nodelist",
    "N": "nodes", "n": "ntasks", "H": "hold", "i": "input", "o": "output", "e": "error",
}  # fmt: skip


def _from_slurm(words: list[str]) -> list[str]:
    arguments: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        name, value = _slurm_name(word)
        if name in _SLURM_FLAGS and value is None:
            arguments += _SLURM_FLAGS[name]
            position += 1
            continue
        if name not in _SLURM:
            known = ", ".join(f"--{known}" for known in sorted([*_SLURM, *_SLURM_FLAGS]))
            raise ValueError(f"#SBATCH {word}: not supported; there are: {known}")
        if value is None:
            position += 1
            if position >= len(words):
                raise ValueError(f"#SBATCH {word}: a value is missing")
            value = words[position]
        try:
            arguments += _SLURM[name](value)
        except ValueError as error:
            raise ValueError(f"#SBATCH --{name}: {error}") from None
        position += 1
    return arguments


def _slurm_name(word: str) -> tuple[str, str | None]:
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        return name, value if equals else None
    if word.startswith("-") and len(word) > 1:
        name = _SLURM_SHORT.get(word[1], word)
        return name, word[2:] or None
    raise ValueError(f"{word}: not an option")

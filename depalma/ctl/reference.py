"""The reference page of `depalmactl`, made from the commands themselves (see bin/make_cli_docs.py)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import click

from depalma.ctl.main import COMMANDS, cli

_HEAD = """\
# The command line

Made by `bin/make_cli_docs.py` from the commands themselves; do not edit.

`depalmactl` is everything a person does. Data goes to stdout, narration to stderr (`-q` silences it).

## Which cluster

The first that is given counts: `--masters` or `--context`; `DEPALMA_MASTERS`; the context named by
`DEPALMA_CONTEXT`; the current context (`depalmactl context use`). The token comes from `--token-file`,
`DEPALMA_TOKEN`, `DEPALMA_TOKEN_FILE`, or the context. `depalmactl doctor` says which cluster is meant, and how it is.

## How jobs and tasks are named

`42` is a job, `42.7` its task 7, `40-45` a range of jobs, `last` the newest job.

## Formats

`-o table` (people; piped tables are plain and never cut), `wide` (more columns), `json` (exactly one value), `jsonl`
(one value a line), `yaml`, `name` (ids only, one a line). `DEPALMA_OUTPUT` sets the default. Times are seconds since
the epoch. With `-o json` an error is `{"error": {"code", "message", "exit_code"}}` on stderr.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | usage: an unknown option or command, a bad value, a missing file |
| 3 | no such job, task, host or code index |
| 4 | no leader, or no master can be reached |
| 5 | refused: token, permission, or the cluster rejected it |
| 124 | `wait`: the time was over |
| 125 | `run`, `wait`, `submit --wait`, `map --wait`: Depalma itself failed (what would be 1, 4 or 5 elsewhere) |
| 130 | Ctrl-C |
| other | `run`, `wait`, `submit --wait`, `map --wait`: the job's own code; 128+n when signal n ended it |

## Scripts

`depalmactl submit script.sh` sends the text of the script (at most 4 KiB; larger ones go through `code add`). It runs
with the interpreter of its first line: a shell, Python, Perl, Ruby or Node. Directives are read from the comments
before its first command. `#DEPALMA` takes any option of `submit`; of `#SBATCH` these are taken: `--job-name -J`,
`--time -t`, `--array -a` (`a-b%n`), `--cpus-per-task -c`, `--mem`, `--nice`, `--chdir -D`, `--input -i` (a file
here), `--output -o` and `--error -e` (with `%j %A %a`), `--nodelist -w`, `--nodes=1 -N`, `--ntasks=1 -n`,
`--hold -H`, `--requeue`, `--no-requeue`; a shell script with `#SBATCH` lines finds `SLURM_JOB_ID`,
`SLURM_ARRAY_TASK_ID` and their like set.
Anything else is an error that names the line. The command line wins over the environment, and that over the script.

## Environment

Every option has a twin: `DEPALMA_` and the command and option in capitals, such as `DEPALMA_TIMEOUT=30`,
`DEPALMA_SUBMIT_PRIORITY=5` or `DEPALMA_EVENTS_LAST=100`; of one that may be repeated, several with spaces between
(`DEPALMA_SUBMIT_TAG="a b"`). `NO_COLOR` is honoured. `DEPALMA_DEBUG=1` shows where an
internal error happened.
"""


def markdown() -> str:
    """Returns the whole page."""
    parts = [_HEAD, "## Global options", _options(cli)]
    for title, section in COMMANDS.items():
        parts.append(f"## {title}")
        for name in section:
            for path, command in _walk([name]):
                parts.append(f"### {' '.join(path)}")
                parts += _command(path, command)
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def leaves() -> dict[str, click.Command]:
    """Returns every command that does something, by its words: `jobs`, `code add`."""
    names = [name for section in COMMANDS.values() for name in section]
    return {
        " ".join(path): command
        for name in names
        for path, command in _walk([name])
        if not isinstance(command, click.Group)
    }


def _walk(path: Sequence[str]) -> Iterator[tuple[list[str], click.Command]]:
    """Yields a command and those below it."""
    command: click.Command | None = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    yield list(path), command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from _walk([*path, name])


def _command(path: Sequence[str], command: click.Command) -> list[str]:
    """Returns what the page says of a command. Click's own help is not used: its layout changes with its version."""
    arguments = [str(parameter.metavar) for parameter in command.params if isinstance(parameter, click.Argument)]
    kind = "COMMAND" if isinstance(command, click.Group) else "[OPTIONS]"
    usage = " ".join(["depalmactl", *path, kind, *arguments])
    examples: Sequence[str] = getattr(command, "examples", ())
    return [
        f"`{usage}`",
        inspect.cleandoc(command.help or ""),
        "" if isinstance(command, click.Group) else _options(command),
        _block(examples),
    ]


def _options(command: click.Command) -> str:
    """Returns the table of a command's own options; `-o`, `-q` and `-h` are everywhere."""
    rows = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or (command is not cli and parameter.name in ("output", "quiet")):
            continue
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        value = f" `{parameter.metavar}`" if parameter.metavar else ""
        default = f" Default: {parameter.default}." if parameter.show_default and parameter.default is not None else ""
        rows.append(f"| {names}{value} | {parameter.help or ''}{default} |")
    return "\n".join(["| option | what |", "|---|---|", *rows]) if rows else ""


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```console", *[f"$ {line}" for line in lines], "```"]) if lines else ""

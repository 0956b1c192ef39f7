"""`submit` and `map`: make jobs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from depalma import items
from depalma.ctl import failures
from depalma.ctl.after import put_after
from depalma.ctl.command import ARGUMENTS, command
from depalma.ctl.output import show_value
from depalma.ctl.script import ScriptError, directives, script_argv
from depalma.ctl.session import Session
from depalma.ctl.spec import build_spec, spec_options, stage_files, stored
from depalma.ctl.wording import count

PASS_THROUGH = {"ignore_unknown_options": False, "allow_interspersed_args": False}
#: What stands before arguments, and before names of files of arguments.
SEPARATORS = (":::", "::::")
#: Options whose values add up instead of replacing each other.
_REPEATED = (
    "tags", "env", "inputs", "outputs", "labels", "prefer", "after", "after_each", "retry_exit_codes", "resources",
    "alternatives", "limits",
)  # fmt: skip
_SHELL_CHARACTERS = re.compile(r"[\s|&;<>()$`\\\"'*?\[#~=%]")


@command(
    "submit",
    context_settings=PASS_THROUGH,
    examples=(
        "depalmactl submit --cwd . -- make -j2",
        "depalmactl submit --name sim --array 0-99%10 --cpus 2 -- ./simulate",
        "depalmactl submit train.sh --epochs 3      # reads #DEPALMA and #SBATCH lines",
        "id=$(depalmactl submit -q -- sleep 60)",
        "depalmactl submit --wait -- pytest && echo passed",
        "depalmactl submit --after 42 --after 43:any -- ./report",
        "depalmactl submit -f graph.yaml            # jobs that wait for each other, all or none",
    ),
)
@spec_options(files=True, hold=True, array=True)
@click.option("--wait", is_flag=True, help="Wait for the job and exit with its code.")
@click.option("--dry-run", is_flag=True, help="Only say where and when it would run.")
@click.option("-f", "--file", "graph", metavar="GRAPH", help="Jobs of a YAML file.")
@click.argument("words", nargs=-1, metavar="-- CMD ARG… | SCRIPT ARG…", type=click.UNPROCESSED)
@click.pass_context
def submit(
    ctx: click.Context, /, words: tuple[str, ...], wait: bool, dry_run: bool, graph: str | None, **options: Any
) -> None:
    """Submit a job and print its id.

    After `--`, or with more than a file's name, CMD runs as it stands (no shell). A single existing file is a
    script: its text is sent, its `#DEPALMA --option` lines count as options, and a subset of `#SBATCH` is read too.
    What stands on the command line wins over the script. With `-f` it is a YAML file of jobs that wait for each other.
    """
    session = ctx.find_object(Session)
    assert session is not None
    failures.passes_job_code = wait
    if graph is not None:
        from depalma.ctl.graph import submit_file

        submit_file(ctx, session, graph, words, wait=wait)
        return
    if not words:
        raise click.UsageError("Missing argument '-- CMD ARG… | SCRIPT ARG…'.", ctx)
    script = _script_of(ctx, words)
    if script is None:
        argv, name = list(words), Path(words[0]).name
    else:
        argv, options = _read_script(ctx, script, words[1:], options)
        name = script.name
    spec = build_spec(argv, options, default_name=name)
    put_after(session, spec, options)
    if dry_run:
        from depalma.ctl.trial import show_trial

        show_trial(session, spec)
        return
    stage_files(session, options, spec)
    job = post_job(session, spec)
    announce(session, job, options["array"].tasks if options.get("array") else 1, waits=wait)
    if wait:
        from depalma.ctl.wait import wait_and_exit

        wait_and_exit(session, [job], print_jobs=True)


@command(
    "map",
    context_settings=PASS_THROUGH,
    examples=(
        "depalmactl map 'gzip -k {}' ::: /data/*.log",
        "ls /data/*.png | depalmactl map --retries 2 'convert {} {}.jpg'",
        "depalmactl map 'convert {} {}.jpg' :::: names.txt",
        "depalmactl map -j 4 --wait -- ./fetch --url {} ::: http://a http://b",
        "depalmactl map 'echo $((2 * {}))' ::: $(seq 100)",
    ),
)
@spec_options(files=True, hold=True, max_running=True)
@click.option("--open", "is_open", is_flag=True, help="Leave it open for further tasks: see add, close.")
@click.option("--wait", is_flag=True, help="Wait for the job and exit with its code.")
@click.argument("words", nargs=-1, required=True, metavar="'CMD {}' [::: A B C | :::: FILE…]", type=click.UNPROCESSED)
@click.pass_context
def map_command(ctx: click.Context, /, words: tuple[str, ...], wait: bool, is_open: bool, **options: Any) -> None:
    """Submit one job with a task for each argument after `:::`, for each line of the files after `::::`, or of stdin.

    `{}` stands for the argument (at the end if it is nowhere). One word with spaces in it is a shell command, in
    which the argument is always one safely quoted word; several words run as they stand, without a shell.
    """
    session = ctx.find_object(Session)
    assert session is not None
    failures.passes_job_code = wait
    if options["stdin"] == "-" and separator(words) == len(words):
        raise click.UsageError("stdin has the arguments here, so --stdin - is of no use: give them after ':::'", ctx)
    command_words, arguments = _split(ctx, words)
    spec = build_spec(map_argv(command_words), options, default_name=command_words[0].split()[0])
    if is_open:
        spec["open"] = True
    spec |= {"count": len(arguments), "arguments": payload_of(session, arguments)}
    put_after(session, spec, options)
    stage_files(session, options, spec)
    job = post_job(session, spec)
    announce(session, job, len(arguments), waits=wait)
    if wait:
        from depalma.ctl.wait import wait_and_exit

        wait_and_exit(session, [job], print_jobs=True)


def post_job(session: Session, spec: dict[str, Any]) -> int:
    """Submits and returns the id."""
    job = int(session.post("/v1/jobs", spec)["id"])
    session.be_patient()
    return job


def announce(session: Session, job: int, tasks: int, *, waits: bool = False) -> None:
    """Prints the id on stdout; `--wait` with a program's format prints the finished job instead (one JSON value)."""
    if not (waits and session.structured):
        show_value(session, {"id": job, "tasks": tasks}, [], key="id")
        if not session.structured and session.output != "name":
            click.echo(job)
    if not waits and not session.structured:
        session.narrate(f"submitted job {job} ({count(tasks, 'task')}); see: depalmactl show {job}")


# ---------------------------------------------------------------- scripts


def _script_of(ctx: click.Context, words: tuple[str, ...]) -> Path | None:
    """Returns the script that is meant, or None for a command. Errors: click.UsageError."""
    arguments: list[str] = ctx.meta[ARGUMENTS]
    if len(arguments) > len(words) and arguments[-len(words) - 1] == "--":
        return None
    path = Path(words[0])
    if path.is_file():
        return path
    if path.suffix or "/" in words[0]:
        raise click.UsageError(f"no such script: {words[0]} (a command that is on the hosts goes after --)", ctx)
    raise click.UsageError(f"put -- before a command: depalmactl submit -- {' '.join(words)}", ctx)


def _read_script(
    ctx: click.Context, path: Path, arguments: Sequence[str], options: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        argv = script_argv(text, path.name, arguments)
        return argv, _merged(ctx, path, text, options)
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path}: not a text file (programs go after --)", ctx) from error
    except ScriptError as error:
        raise click.UsageError(f"{path}: {error}", ctx) from error


def _merged(ctx: click.Context, path: Path, text: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the script's directives, under those of the command line and the environment (as in Slurm).

    Of the directives the later one wins. What adds up does so in this order, too: the last of several values counts.
    """
    script: dict[str, Any] = {}
    for directive in directives(text):
        try:
            inner = submit.make_context("submit", [*directive.arguments, "--", "-"], parent=ctx.parent)
        except click.UsageError as error:
            message = error.format_message().rstrip(".")
            raise click.UsageError(f"{path}: line {directive.line}: {message}", ctx) from error
        params = inner.params
        if params["words"] != ("-",) or params["wait"] or params["dry_run"] or params["graph"]:
            raise click.UsageError(f"{path}: line {directive.line}: only options that describe the job", ctx)
        for name, value in inner.params.items():
            if name in options and inner.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                script[name] = _added(name, script[name], value) if name in script else value
    return options | {
        name: _added(name, value, options[name]) if _given(ctx, name) else value for name, value in script.items()
    }


def _added(name: str, first: Any, then: Any) -> Any:
    """Returns what two of the same option mean: the later one, or both of those that may be repeated."""
    if name not in _REPEATED:
        return then
    return {**first, **then} if isinstance(first, dict) else (*first, *then)


def _given(ctx: click.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)


# ---------------------------------------------------------------- map


def _split(ctx: click.Context, words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    at = separator(words)
    if not at:
        raise click.UsageError(f"no command before '{words[0]}'", ctx)
    return list(words[:at]), arguments_of(ctx, words[at:])


def separator(words: Sequence[str]) -> int:
    """Returns where the arguments begin, with `:::` or `::::`; the number of words if they come on stdin."""
    return next((at for at, word in enumerate(words) if word in SEPARATORS), len(words))


def arguments_of(ctx: click.Context, words: Sequence[str]) -> list[str]:
    """Returns the words after `:::`, the lines of the files after `::::`, or those of stdin.

    Errors: click.UsageError when there are none.
    """
    if words and words[0] == SEPARATORS[0]:
        arguments = list(words[1:])
    elif words:
        try:
            arguments = [line for name in words[1:] for line in _lines(Path(name).read_bytes())]
        except OSError as error:
            raise click.UsageError(f"{error.filename}: {error.strerror}", ctx) from error
    elif sys.stdin.isatty():
        raise click.UsageError("no arguments: give them after ':::', or one a line on stdin", ctx)
    else:
        arguments = _lines(sys.stdin.buffer.read())
    if not arguments:
        raise click.UsageError("nothing to map over: no argument came, so nothing was submitted", ctx)
    return arguments


def _lines(data: bytes) -> list[str]:
    """Returns the lines, whatever is in them: of all that ends a line somewhere, here only LF and CR LF do."""
    lines = data.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def map_argv(words: Sequence[str]) -> list[str]:
    """Returns the command line in which each `{}` becomes a task's argument on the host."""
    if len(words) == 1 and _SHELL_CHARACTERS.search(words[0]):
        return ["/bin/sh", "-c", _shell_text(words[0]), "sh", "{}"]
    return list(words) if any("{}" in word for word in words) else [*words, "{}"]


def _shell_text(text: str) -> str:
    """Returns the shell command with `$1`, quoted as its place needs, for each `{}`."""
    parts: list[str] = []
    quote = ""
    position = 0
    seen = False
    while position < len(text):
        character = text[position]
        if text.startswith("{}", position):
            parts.append({"": '"$1"', '"': "$1", "'": "'\"$1\"'"}[quote])
            position += 2
            seen = True
            continue
        if character == "\\" and quote != "'":
            parts.append(text[position : position + 2])
            position += 2
            continue
        if character in "'\"":
            quote = "" if quote == character else quote or character
        parts.append(character)
        position += 1
    return "".join(parts) + ("" if seen else ' "$1"')


def payload_of(session: Session, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the packed arguments as the API takes them; many are uploaded first."""
    return stored(session, items.pack([argument.encode("utf-8", "surrogateescape") for argument in arguments]))

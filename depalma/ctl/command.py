"""Click classes of `depalmactl`: commands found by name only when used, examples in every help, one way to fail."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from depalma.ctl import failures
from depalma.ctl.session import FORMATS, Session

Sections = Mapping[str, Mapping[str, tuple[str, str]]]
#: Where a command finds its arguments as they were typed (click itself forgets whether there was a `--`).
ARGUMENTS = "depalma.arguments"


class Command(click.Command):
    """A command whose help shows examples and which takes -o and -q after its name too."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        taken = {option for parameter in self.params for option in parameter.opts}
        for option in _shared_options():
            # Where --output means files, -o alone is the format.
            option.opts = [name for name in option.opts if name not in taken]
            if option.opts:
                self.params.append(option)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the parameters; each option knows its twin in the environment, which is named after the option.

        Click would name it after the variable that the value has in Python, and nobody knows that name.
        """
        parameters = super().get_params(ctx)
        for option in parameters:
            if isinstance(option, click.Option) and option.allow_from_autoenv and option.expose_value:
                name = next((name for name in option.opts if name.startswith("--")), None)
                if name and ctx.auto_envvar_prefix:
                    option.envvar = f"{ctx.auto_envvar_prefix}_{name[2:].replace('-', '_').upper()}"
        return parameters

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self.examples)


class SubGroup(click.Group):
    """A group of commands such as `code`; mistyped names get a suggestion."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
            formatter.write_dl([(name, _first_sentence(found)) for name, found in commands.items() if found])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(_no_such_command(args[0], self.list_commands(ctx)), ctx) from error

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self.examples)


class LazyGroup(SubGroup):
    """Imports a command's module when the command is asked for."""

    def __init__(self, *args: Any, sections: Sections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in self.sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in self.sections.values():
            if cmd_name in section:
                place, short_help = section[cmd_name]
                module, attribute = place.split(":")
                command = getattr(import_module(module), attribute)
                assert isinstance(command, click.Command)
                command.short_help = short_help
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, short_help) for name, (_, short_help) in section.items()])


class Root(LazyGroup):
    """`depalmactl` itself: turns every way to fail into one clear line and an exit code."""

    def main(self, args: Sequence[str] | None = None, *main_args: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        failures.passes_job_code = False
        _open_streams()
        try:
            code = super().main(arguments, *main_args, **extra)
        except BrokenPipeError:
            code = 0  # the reader of our output went away (`| head`)
        except (KeyboardInterrupt, click.Abort):
            code = 130
        except Exception as error:
            code = failures.report(error, as_json=_wants_json(arguments))
        _give_up_what_cannot_be_written()
        sys.exit(code if isinstance(code, int) else 0)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(
            formatter,
            (
                "depalmactl dev --detach",
                "depalmactl run -- echo hello",
                "depalmactl map --cwd . 'gzip -k {}' ::: *.log",
                "depalmactl jobs",
            ),
        )


def _open_streams() -> None:
    """Takes what the caller has closed (`<&- >&-`) for /dev/null, and escapes what the locale has no character for.

    UTF-8 has one for everything that the cluster holds, and instead of ASCII click takes UTF-8.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, it lives as long as we do
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and _lacks_characters(stream.encoding):
            stream.reconfigure(errors="backslashreplace")


def _give_up_what_cannot_be_written() -> None:
    """Points stdout elsewhere if nobody takes what is left: the interpreter's own flush at exit would complain and make
    the exit code 120. Commands flush what they print, so that this has been an error already."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lacks_characters(encoding: str) -> bool:
    return codecs.lookup(encoding).name not in ("utf-8", "ascii")


def command(name: str, *, examples: Sequence[str], **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Returns the decorator that makes a `Command`."""
    return click.command(name, cls=settings.pop("cls", Command), examples=examples, **settings)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Writes the section `Examples`, one command a line, unwrapped so that each can be copied."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")


def _first_sentence(command: click.Command) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _shared_options() -> list[click.Option]:
    # The environment is read by the global options only: DEPALMA_OUTPUT, not DEPALMA_JOBS_OUTPUT.
    return [
        click.Option(
            ["-o", "--output", "output_format"],
            type=click.Choice(FORMATS),
            metavar="FORMAT",
            expose_value=False,
            allow_from_autoenv=False,
            callback=_set_output,
            help=f"How to print data: {', '.join(FORMATS)}.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=_set_quiet,
            help="No narration on stderr.",
        ),
    ]


def _set_output(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    session = ctx.find_object(Session)
    if value is not None and session is not None:
        session.output = value


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    session = ctx.find_object(Session)
    if value and session is not None:
        session.quiet = True


def _no_such_command(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return f"no such command: {name} ({hint})"


def _wants_json(arguments: Sequence[str]) -> bool:
    """Returns whether errors are to be JSON; works before (and without) parsing, for errors of the parser itself."""
    wanted = os.environ.get("DEPALMA_OUTPUT", "")
    previous = ""
    for argument in arguments:
        if argument == "--":
            break
        if previous in ("-o", "--output"):
            wanted = argument
        elif argument.startswith("--output="):
            wanted = argument.removeprefix("--output=")
        elif argument.startswith("-o") and not argument.startswith("--") and len(argument) > 2:
            wanted = argument[2:]
        previous = argument
    return wanted in ("json", "jsonl")

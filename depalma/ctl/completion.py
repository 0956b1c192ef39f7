"""`completion`: Tab in the shell, for commands, options and job ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from depalma.ctl.command import command
from depalma.ctl.session import Session
from depalma.errors import DepalmaError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")
#: Tab never waits longer than this for the cluster.
_PATIENCE_S = 0.4


@command(
    "completion",
    examples=(
        'eval "$(depalmactl completion bash)"          # in ~/.bashrc',
        'eval "$(depalmactl completion zsh)"           # in ~/.zshrc',
        "depalmactl completion fish > ~/.config/fish/completions/depalmactl.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    from depalma.ctl.output import show_value

    session = ctx.find_object(Session)
    made = get_completion_class(shell)
    assert session is not None
    assert made is not None
    script = made(ctx.find_root().command, {}, "depalmactl", "_DEPALMACTL_COMPLETE")
    # bash's generator runs bash to learn its version; its text alone is what is wanted here.
    source = script.source_template % script.source_vars()
    if session.structured:
        show_value(session, {"shell": shell, "script": source}, [], key="shell")
    else:
        click.echo(source)


def job_ids(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Returns the live and recent jobs whose id begins so; none when the cluster does not answer at once."""
    from click.shell_completion import CompletionItem

    session = _session_of(ctx)
    try:
        rows = session.get("/v1/jobs", limit=50, consistency="stale")["jobs"]
    except DepalmaError:
        return []
    items = [CompletionItem(str(row["id"]), help=f"{row['state']} {row['name']}") for row in rows]
    return [item for item in (CompletionItem("last"), *items) if str(item.value).startswith(incomplete)]


def _session_of(ctx: click.Context) -> Session:
    """While completing, the root's callback does not run; its parameters are there all the same."""
    given = ctx.find_root().params
    masters = given.get("masters")
    return Session(
        context=given.get("context"),
        masters=tuple(masters.split(",")) if masters else (),
        token_file=given.get("token_file"),
        timeout_s=_PATIENCE_S,
    )

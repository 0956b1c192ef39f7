"""The entry point of `depalmactl`: the list of commands and the global options.

Only click is imported here. Each command's module is imported when that command runs, so that a trivial command
pays for nothing it does not use.
"""

from __future__ import annotations

import os
from typing import NoReturn

import click

from depalma import __version__
from depalma.ctl.command import LazyGroup, Root
from depalma.ctl.session import FORMATS, Session
from depalma.ctl.values import Number

#: Section → command → (where it is, its line in the overview). The line is also the command's short help.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Run work": {
        "submit": ("depalma.ctl.submit:submit", "Submit a command or a script as a job"),
        "map": ("depalma.ctl.submit:map_command", "Submit a job with one task an argument"),
        "cron": ("depalma.ctl.cron:cron", "Jobs at times of day: add, ls, show, rm"),
        "run": ("depalma.ctl.run:run", "Submit a command, stream its output, exit with its code"),
    },
    "Watch and steer jobs": {
        "jobs": ("depalma.ctl.jobs:jobs", "List jobs"),
        "show": ("depalma.ctl.jobs:show", "Show a job or a task"),
        "wait": ("depalma.ctl.wait:wait", "Wait until jobs are over; exit with the job's code"),
        "logs": ("depalma.ctl.logs:logs", "Print what tasks wrote"),
        "result": ("depalma.ctl.result:result", "Print what a function returned"),
        "explain": ("depalma.ctl.jobs:explain", "Say why a job waits, or why it ended as it did"),
        "cancel": ("depalma.ctl.jobs:cancel", "Cancel jobs"),
        "add": ("depalma.ctl.opened:add", "Add tasks to an open job"),
        "close": ("depalma.ctl.opened:close", "Say that an open job gets no more tasks"),
        "hold": ("depalma.ctl.steer:hold", "Start no further task of jobs"),
        "release": ("depalma.ctl.steer:release", "Let held jobs go"),
        "suspend": ("depalma.ctl.steer:suspend", "Have jobs stand still"),
        "resume": ("depalma.ctl.steer:resume", "Let suspended jobs go on"),
        "retry": ("depalma.ctl.steer:retry", "Run the failed tasks of jobs again"),
        "set": ("depalma.ctl.steer:set_command", "Change priority, name or tags of jobs"),
        "exec": ("depalma.ctl.exec:exec_command", "Run a command, or a shell, in a running task"),
        "ps": ("depalma.ctl.hosts:ps", "List the processes of tasks, as the hosts see them"),
    },
    "Look at the cluster": {
        "accounting": ("depalma.ctl.accounting:accounting", "Export what jobs used, by job, user, tag, host or day"),
        "top": ("depalma.ctl.top:top", "Live view of the whole cluster"),
        "events": ("depalma.ctl.events:events", "Print what happened, one line an event"),
        "webhook": ("depalma.ctl.webhooks:webhook", "Who is told what happens: add, ls, show, set, replay, test"),
        "load": ("depalma.ctl.load:load", "Show the load of hosts, now or over the last hour"),
        "host": ("depalma.ctl.hostlist:host", "Hosts: ls, show, add, remove, drain, undrain, set, pause, unpause"),
        "group": ("depalma.ctl.hostlist:group", "Groups of hosts: ls, set, add, remove"),
        "order": ("depalma.ctl.order:order", "Whose turn it is: limits, quotas, shares of users, ageing"),
        "master": ("depalma.ctl.masters:master", "Masters: ls, add, remove, transfer"),
        "code": ("depalma.ctl.code:code", "The code log: add, ls, show, status"),
    },
    "Set up": {
        "dev": ("depalma.ctl.dev:dev", "Start a local cluster of real processes"),
        "cluster": ("depalma.ctl.cluster:cluster", "A cluster of several machines: init, up, down, status"),
        "snapshot": ("depalma.ctl.snapshot:snapshot", "The whole state in a file: save, inspect, restore"),
        "context": ("depalma.ctl.context:context", "Which cluster to talk to: add, use, ls, rm"),
        "config": ("depalma.ctl.config:config", "The cluster file: check"),
        "doctor": ("depalma.ctl.doctor:doctor", "Check that everything is in order"),
        "completion": ("depalma.ctl.completion:completion", "Print the completion script for a shell"),
        "version": ("depalma.ctl.version:version", "Print the version"),
    },
}


@click.group(
    "depalmactl",
    cls=Root,
    sections=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "DEPALMA"},
)
@click.version_option(__version__, prog_name="depalmactl", message="%(prog)s %(version)s")
# The environment's twins of these (DEPALMA_CONTEXT, DEPALMA_MASTERS, DEPALMA_TOKEN_FILE, DEPALMA_TOKEN, DEPALMA_CA) are
# read where the cluster is resolved, so that an option always wins over all of them.
@click.option("--context", metavar="NAME", help="Use this context, not the current one.", allow_from_autoenv=False)
@click.option("--masters", metavar="URL,URL,…", help="Talk to these masters.", allow_from_autoenv=False)
@click.option("--token-file", metavar="FILE", help="Read the access token from here.", allow_from_autoenv=False)
@click.option("--ca", metavar="FILE", help="The cluster's authority (ca.crt), for https.", allow_from_autoenv=False)
@click.option(
    "-o",
    "--output",
    type=click.Choice(FORMATS),
    default="table",
    help="How to print: table, wide, json, jsonl, yaml, name.",
    metavar="FORMAT",
)
@click.option("-q", "--quiet", is_flag=True, help="No narration on stderr.")
@click.option("--no-color", is_flag=True, help="No colours (NO_COLOR in the environment does the same).")
@click.option(
    "--timeout",
    type=Number(min=0.05),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try to reach a leader.",
)
@click.pass_context
def cli(
    ctx: click.Context,
    context: str | None,
    masters: str | None,
    token_file: str | None,
    ca: str | None,
    output: str,
    quiet: bool,
    no_color: bool,
    timeout: float,
) -> None:
    """Everything a person does with a Depalma cluster.

    Data goes to stdout, narration to stderr. With nothing given, the current context says which cluster.
    """
    ctx.obj = Session(
        context=context,
        masters=tuple(url.strip() for url in masters.split(",") if url.strip()) if masters else (),
        token_file=token_file,
        ca=ca,
        output=output,
        quiet=quiet,
        color=not (no_color or os.environ.get("NO_COLOR")),
        timeout_s=timeout,
    )
    ctx.call_on_close(ctx.obj.close)


def main() -> NoReturn:
    """Runs `depalmactl` with the arguments of this process."""
    cli.main(prog_name="depalmactl")
    raise AssertionError("Root.main exits")


__all__ = ["COMMANDS", "LazyGroup", "cli", "main"]

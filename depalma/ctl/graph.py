"""`submit -f`: a YAML file of jobs that wait for each other."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from depalma.client.graphs import GraphError, specs_of
from depalma.client.specs import Work
from depalma.client.verbs import stored
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count
from depalma.errors import ConfigError


def submit_file(ctx: click.Context, session: Session, path: str, words: tuple[str, ...], *, wait: bool) -> None:
    """Submits the jobs of the file, all or none, and prints their ids in its order."""
    given = [
        name for name in ctx.params
        if name not in ("graph", "wait") and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]  # fmt: skip
    if words or given:
        raise click.UsageError("with -f everything about the jobs stands in the file: no command, no other option", ctx)
    works = _read(ctx, Path(path))
    names = list(works)
    specs = [msgspec.to_builtins(session.run(stored(work))) for work in works.values()]
    ids: list[int] = session.post("/v1/graphs", {"jobs": specs})["ids"]
    if not (wait and session.structured):
        made = [{"name": name, "id": job} for name, job in zip(names, ids, strict=True)]
        show_value(session, {"jobs": made}, [], key="jobs")
        if not session.structured:
            click.echo("\n".join(map(str, ids)))
    if not session.structured:
        listed = ", ".join(f"{name} {job}" for name, job in zip(names, ids, strict=True))
        session.narrate(f"submitted {count(len(ids), 'job')}: {listed}")
    if wait:
        session.be_patient()
        from depalma.ctl.wait import wait_and_exit

        wait_and_exit(session, ids, print_jobs=True)


def _read(ctx: click.Context, path: Path) -> dict[str, Work]:
    from depalma import yamltext

    try:
        return specs_of(yamltext.load(path))
    except GraphError as error:
        raise click.UsageError(f"{path}: {error}", ctx) from error
    except FileNotFoundError as error:
        raise click.UsageError(f"{path}: {error.strerror}", ctx) from error
    except ConfigError as error:
        raise click.UsageError(str(error), ctx) from error

"""`submit -f`: a YAML file of jobs that wait for each other."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import click

from depalma.client.graphs import GraphError, specs_of
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
    names, specs = _read(ctx, Path(path))
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
        from depalma.ctl.wait import wait_and_exit

        wait_and_exit(session, ids, print_jobs=True)


def _read(ctx: click.Context, path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    import msgspec

    from depalma import yamltext

    try:
        works = specs_of(yamltext.load(path))
    except GraphError as error:
        raise click.UsageError(f"{path}: {error}", ctx) from error
    except FileNotFoundError as error:
        raise click.UsageError(f"{path}: {error.strerror}", ctx) from error
    except ConfigError as error:
        raise click.UsageError(str(error), ctx) from error
    specs = []
    for work in works.values():
        spec = msgspec.to_builtins(work.spec)
        if work.arguments is not None:
            from depalma import items

            packed = items.pack(list(work.arguments))
            spec["arguments"] = {"inline": base64.b64encode(packed).decode(), "size_bytes": len(packed)}
        specs.append(spec)
    return list(works), specs

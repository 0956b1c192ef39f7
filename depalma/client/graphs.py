"""Jobs that wait for each other: put together here, submitted in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from depalma.client import functions, specs, verbs
from depalma.client.functions import Function
from depalma.client.job import JobHandle
from depalma.client.specs import JobOptions, Work
from depalma.errors import DepalmaError
from depalma.model import Dependency

if TYPE_CHECKING:
    from depalma.client.aio import AsyncClient, AsyncJobHandle
    from depalma.client.client import Client

_WHENS = ("ok", "fail", "any")


class GraphError(DepalmaError, ValueError):
    """A graph that cannot be submitted, with what is wrong."""


class Named:
    """The jobs of one submission. In `after` and `after_each` a name of the graph (`"prepare"`, `"train:any"`) stands
    for the job; names that come later count, too."""

    def __init__(self) -> None:
        self._works: dict[str, tuple[Work, list[tuple[str, str, bool]]]] = {}

    def command(
        self,
        name: str,
        /,
        argv: Sequence[str],
        *,
        cwd: str = "",
        array: int | str | None = None,
        arguments: Sequence[str] | None = None,
        **options: Unpack[JobOptions],
    ) -> str:
        """Adds a command job, see `Client.command`; returns its name."""
        own, options_left = _split(name, dict(options))
        work = specs.command_work(argv, cwd=cwd, indices=array, arguments=arguments, options=options_left)
        return self._add(name, work, own)

    def map(self, name: str, /, fn: Function, items: Iterable[Any], **options: Unpack[JobOptions]) -> str:
        """Adds a job with one call an item, see `Client.map`; returns its name."""
        own, options_left = _split(name, dict(options))
        calls = [functions.pack_call(None, (item,), {}) for item in items]
        return self._add(name, specs.function_work(fn, calls, options=options_left), own)

    def _add(self, name: str, work: Work, own: list[tuple[str, str, bool]]) -> str:
        if name in self._works:
            raise GraphError(f"{name}: there are two jobs of this name")
        self._works[name] = work, own
        return name


class Graph(Named):
    """A graph of a `Client`."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def submit(self) -> dict[str, JobHandle]:
        """Submits all jobs, or none; returns a handle for each name.

        Errors: GraphError for a name that is not there; Rejected, which names the cycle if there is one.
        """
        works = resolved(self._works)
        ids = self._client._run(verbs.submit_graph(list(works.values())))
        return {
            name: JobHandle(self._client, job, count=count_of(work), first=work.spec.first_index)
            for (name, work), job in zip(works.items(), ids, strict=True)
        }


class AsyncGraph(Named):
    """A graph of an `AsyncClient`."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__()
        self._client = client

    async def submit(self) -> dict[str, AsyncJobHandle]:
        """Submits all jobs, or none; returns a handle for each name. Errors: as `Graph.submit`."""
        from depalma.client.aio import AsyncJobHandle

        works = resolved(self._works)
        ids = await self._client._run(verbs.submit_graph(list(works.values())))
        return {
            name: AsyncJobHandle(self._client, job, count=count_of(work), first=work.spec.first_index)
            for (name, work), job in zip(works.items(), ids, strict=True)
        }


def count_of(work: Work) -> int | None:
    """Returns how many tasks the job has; None if more may be added."""
    return None if work.spec.open else work.spec.count


def specs_of(document: object) -> dict[str, Work]:
    """Returns the jobs of a YAML document, by name: `jobs: {NAME: {command: …, after: …, OPTION: …}}`.

    `command` is a list, or a line for the shell; other keys are `cwd`, `array`, `arguments` and the options of
    `Client.command`. Errors: GraphError that names the job and the key.
    """
    if not isinstance(document, dict) or set(document) != {"jobs"} or not isinstance(document["jobs"], dict):
        keys = ", ".join(map(repr, document)) if isinstance(document, dict) else type(document).__name__
        raise GraphError(f"{keys or 'nothing'} given; allowed: one key, jobs, with a job under each name")
    if not document["jobs"]:
        raise GraphError("jobs: none given; allowed: one or more")
    works: dict[str, tuple[Work, list[tuple[str, str, bool]]]] = {}
    for name, entry in document["jobs"].items():
        if not isinstance(name, str) or not isinstance(entry, dict):
            raise GraphError(f"{name!r}: allowed: a name, and under it a mapping with command")
        values = dict(entry)
        command = values.pop("command", None)
        if isinstance(command, str):
            command = ["/bin/sh", "-c", command]
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise GraphError(f"{name}: command: {command!r} given; allowed: a list of words, or a line for the shell")
        own, options = _split(name, values)
        places = {key: options.pop(key, None) for key in ("array", "arguments")}
        cwd = options.pop("cwd", "")
        try:
            work = specs.command_work(
                command, cwd=cwd, indices=places["array"], arguments=places["arguments"], options=options
            )
            msgspec.convert(msgspec.to_builtins(work.spec), type=type(work.spec))
        except msgspec.ValidationError as error:
            what, _, place = str(error).partition(" - at `$.")
            field = place.rstrip("`")
            given = f"; {entry[field]!r} given" if field in entry else ""
            raise GraphError(f"{name}: {field}: {what[:1].lower()}{what[1:]}{given}") from error
        except (TypeError, ValueError, DepalmaError) as error:
            raise GraphError(f"{name}: {error}") from error
        works[name] = work, own
    return resolved(works)


def _split(name: str, options: dict[str, Any]) -> tuple[list[tuple[str, str, bool]], dict[str, Any]]:
    """Returns what the job waits for in the graph (name, when, each), and the options without that."""
    own: list[tuple[str, str, bool]] = []
    for option in ("after", "after_each"):
        given = options.pop(option, ())
        others = []
        for one in given if isinstance(given, list | tuple | set | frozenset) else (given,):
            text, _, when = one.rpartition(":") if isinstance(one, str) and ":" in one else (one, "", "ok")
            if isinstance(text, str) and not text.isdigit():
                if when not in _WHENS:
                    raise GraphError(
                        f"{name}: {option}: {one!r} given; allowed: a name, or NAME:ok, NAME:fail, NAME:any"
                    )
                own.append((text, when, option == "after_each"))
            else:
                others.append(one)
        if others:
            options[option] = others
    options.setdefault("name", name)
    return own, options


def resolved(works: Mapping[str, tuple[Work, list[tuple[str, str, bool]]]]) -> dict[str, Work]:
    """Returns the works with names of the graph replaced by their places. Errors: GraphError."""
    places = {name: -1 - place for place, name in enumerate(works)}
    made = {}
    for name, (work, own) in works.items():
        missing = next((other for other, _, _ in own if other not in places), None)
        if missing is not None:
            raise GraphError(f"{name}: after: there is no {missing!r} in the graph; allowed: {', '.join(places)}")
        after = tuple(Dependency(places[other], when, each) for other, when, each in own)  # type: ignore[arg-type]
        spec = msgspec.structs.replace(work.spec, after=(*work.spec.after, *after))
        made[name] = msgspec.structs.replace(work, spec=spec)
    return made

"""Webhooks, and what each has yet to be told. [pure]

A webhook is a target with a filter. What `apply` makes happen and the filter lets through gets the target's next id
(1, 2, 3, … without gaps) and waits in its outbox: one entry a command, which shares the record of the event log. The
latest `keep` ids stay, delivered ones too, so that they can be delivered again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from depalma.model import EventView
from depalma.state.event_log import EventRecord, from_place
from depalma.state.jobs import Job

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState

K = TypeVar("K")

#: Events about webhooks go to none: two targets that fail would tell each other so for ever.
OWN_KINDS = "webhook."


class Webhook(Struct, array_like=True, gc=False):
    """A target, as it is stored. Fields are only ever added at the end, with a default."""

    name: str
    url: str
    kinds: tuple[str, ...]
    jobs: tuple[int, ...]
    tags: tuple[str, ...]
    users: tuple[str, ...]
    secret: str
    keep: int
    made_at: float
    by: str
    epoch: int  #: the version of the state that last said where to go on; names what deliveries believe in
    last: int = 0  #: id of the newest entry
    delivered: int = 0  #: id of the last one that was delivered; the next one comes after it
    error: str = ""  #: why the next one could not be delivered
    failing_since: float | None = None

    def wants(self, job: Job) -> bool:
        """Returns whether it is told of this job, if of any."""
        spec = job.spec
        return (
            (not self.jobs or job.id in self.jobs)
            and (not self.users or spec.user in self.users)
            and (not self.tags or any(tag in self.tags for tag in spec.tags))
        )


class Outgoing(Struct, frozen=True, array_like=True, gc=False):
    """Events of one command that go to one target."""

    first: int  #: id of the first of them
    record: EventRecord
    numbers: tuple[int, ...] = ()  #: of the events, where the filter left some of the command's out


class Outbox:
    """What a target was told lately, and is to be told."""

    __slots__ = ("count", "entries")

    def __init__(self) -> None:
        self.entries: deque[Outgoing] = deque()
        self.count = 0  #: ids in it

    def put(self, entry: Outgoing, keep: int) -> None:
        """Appends, and drops what is too old (whole entries, so it may keep a few more)."""
        self.entries.append(entry)
        self.count += entry.record.count
        self.trim(keep)

    def trim(self, keep: int) -> None:
        """Drops what goes beyond the bound."""
        entries = self.entries
        while len(entries) > 1 and self.count - entries[0].record.count >= keep:
            self.count -= entries.popleft().record.count

    def after(self, last_id: int, limit: int) -> list[tuple[int, EventView]]:
        """Returns up to `limit` ids above `last_id` that are kept, with their events."""
        start = max(0, bisect_right(self.entries, last_id + 1, key=lambda entry: entry.first) - 1)
        opened = (each for entry in from_place(self.entries, start) for each in _open(entry, last_id))
        return list(islice(opened, limit))


def _open(entry: Outgoing, last_id: int) -> Iterator[tuple[int, EventView]]:
    for place in range(max(0, last_id + 1 - entry.first), entry.record.count):
        number = entry.numbers[place] if entry.numbers else entry.record.first + place
        yield entry.first + place, entry.record.event(place, number)


class _Routes:
    """Who may want events of one kind. Each target stands at what is rarest in its filter, so that the many that want
    something else cost nothing."""

    __slots__ = ("by_job", "by_tag", "by_user", "filtered", "unfiltered")

    def __init__(self, webhooks: Iterable[Webhook]) -> None:
        self.unfiltered: list[str] = []
        self.by_job: dict[int, list[str]] = {}
        self.by_tag: dict[str, list[str]] = {}
        self.by_user: dict[str, list[str]] = {}
        for webhook in webhooks:
            name = webhook.name
            if webhook.jobs:
                _file(self.by_job, webhook.jobs, name)
            elif webhook.tags:
                _file(self.by_tag, webhook.tags, name)
            elif webhook.users:
                _file(self.by_user, webhook.users, name)
            else:
                self.unfiltered.append(name)
        self.filtered = bool(self.by_job or self.by_tag or self.by_user)

    def candidates(self, job: Job) -> list[str]:
        """Returns those that may want to hear of the job, but for the unfiltered ones; each once."""
        found: list[str] = []
        if self.by_job:
            found += self.by_job.get(job.id, ())
        if self.by_user:
            found += self.by_user.get(job.spec.user, ())
        if self.by_tag:
            for tag in job.spec.tags:
                found += self.by_tag.get(tag, ())
        return found if len(found) < 2 else list(dict.fromkeys(found))


def _file(index: dict[K, list[str]], keys: Iterable[K], name: str) -> None:
    for key in keys:
        index.setdefault(key, []).append(name)


class Webhooks:
    """All targets, in the order in which they were made."""

    __slots__ = ("_routes", "by_name", "outboxes")

    def __init__(self) -> None:
        self.by_name: dict[str, Webhook] = {}
        self.outboxes: dict[str, Outbox] = {}
        self._routes: dict[str, _Routes] = {}  #: derived, by kind of event

    def add(self, webhook: Webhook) -> None:
        """Takes a target."""
        self.by_name[webhook.name] = webhook
        self.outboxes[webhook.name] = Outbox()
        self._routes.clear()

    def remove(self, name: str) -> None:
        """Drops a target and its outbox."""
        del self.by_name[name], self.outboxes[name]
        self._routes.clear()

    def changed(self) -> None:
        """What the targets want is another now."""
        self._routes.clear()

    def routes(self, kind: str) -> _Routes:
        """Returns who may want events of the kind."""
        found = self._routes.get(kind)
        if found is None:
            wanting = [each for each in self.by_name.values() if any(matches(pattern, kind) for pattern in each.kinds)]
            found = self._routes[kind] = _Routes(wanting)
        return found

    def oldest(self, name: str) -> int:
        """Returns the oldest id that is kept; the next one when there is none."""
        entries = self.outboxes[name].entries
        return entries[0].first if entries else self.by_name[name].last + 1

    def undelivered(self, name: str) -> int:
        """Returns how many ids are kept and wait to be delivered."""
        webhook, outbox = self.by_name[name], self.outboxes[name]
        if not outbox.entries or webhook.delivered < outbox.entries[0].first:
            return outbox.count
        # Between two kept ids there is a gap only if the cluster was restored; then the newer ones are few.
        span = webhook.last - webhook.delivered
        return span if span <= outbox.count else len(outbox.after(webhook.delivered, outbox.count))

    def all_entries(self) -> Iterator[tuple[str, Outgoing]]:
        """Yields every entry that is kept, with the name of its target."""
        for name, outbox in self.outboxes.items():
            for entry in outbox.entries:
                yield name, entry

    def put(self, name: str, record: EventRecord, numbers: tuple[int, ...] = ()) -> None:
        """Gives all events of a record to a target."""
        webhook = self.by_name[name]
        self.outboxes[name].put(Outgoing(webhook.last + 1, record, numbers), webhook.keep)
        webhook.last += record.count

    def jump(self, by: int, epoch: int) -> None:
        """Skips ids: those that another life of the cluster may have given out do not come again."""
        for webhook in self.by_name.values():
            webhook.last += by
            webhook.epoch = epoch


def matches(pattern: str, kind: str) -> bool:
    """Returns whether events of the kind are meant by `job.finished`, `job.*` or `*`."""
    if kind.startswith(OWN_KINDS):
        return False
    return pattern in ("*", kind) or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))


def collect(state: ClusterState) -> None:
    """Puts what has just happened into the outboxes of those who want it."""
    fresh = state.events.fresh
    if not fresh:
        return
    state.events.fresh = []
    for record in fresh:
        routes = state.webhooks.routes(record.kind)
        for name in routes.unfiltered:
            _put(state, name, record)
        if not routes.filtered:
            continue
        if len(record.refs) > 1:
            _put_some(state, routes, record)
        else:
            for name in _wanting(state, routes, record.refs[0][0] if record.refs else record.job):
                _put(state, name, record)


def _put_some(state: ClusterState, routes: _Routes, record: EventRecord) -> None:
    """Of the tasks of a record each target gets those that it wants."""
    wanting: dict[int, Sequence[str]] = {}
    places: dict[str, list[int]] = {}
    for place, (job, _, _) in enumerate(record.refs):
        names = wanting.get(job)
        if names is None:
            names = wanting[job] = _wanting(state, routes, job)
        for name in names:
            places.setdefault(name, []).append(place)
    for name, chosen in places.items():
        if len(chosen) == len(record.refs):
            _put(state, name, record)
        else:
            _put(state, name, record.only(chosen), tuple(record.first + place for place in chosen))


def _wanting(state: ClusterState, routes: _Routes, job_id: int) -> Sequence[str]:
    job = state.jobs.get(job_id)
    if job is None:
        return ()
    found = routes.candidates(job)
    if not found:
        return ()
    by_name = state.webhooks.by_name
    return [name for name in found if by_name[name].wants(job)]


def _put(state: ClusterState, name: str, record: EventRecord, numbers: tuple[int, ...] = ()) -> None:
    state.webhooks.put(name, record, numbers)
    state.changes.webhooks.add(name)

"""What is asked of finished and live jobs alike, and how it reads in SQL. [pure]"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

from msgspec import Struct

from depalma.state.jobs import Job

_WILD = re.compile(r"[*?\[]")


class Wanted(Struct, frozen=True, kw_only=True):
    """Which jobs are looked for; None and nothing mean any. Times are seconds since the epoch."""

    states: frozenset[str] = frozenset()
    tag: str | None = None
    user: str | None = None
    name: str | None = None  #: as it is, or with `*`, `?`, `[…]`
    ended_since: float | None = None  #: ended then or later; one that lives has not ended yet, so it counts
    submitted_before: float | None = None
    ended_before: float | None = None  #: ended before; one that lives does not count

    def predicate(self) -> Callable[[Job], bool]:
        """Returns the test for jobs of the state."""
        states, tag, user, name = self.states, self.tag, self.user, self.name
        since, submitted, before = self.ended_since, self.submitted_before, self.ended_before
        pattern = re.compile(translate(name)) if name is not None and _WILD.search(name) else None

        def fits(job: Job) -> bool:
            spec, ended = job.spec, job.finished_at
            return (
                (tag is None or tag in spec.tags)
                and (user is None or user == spec.user)
                and (name is None or name == spec.name or (pattern is not None and bool(pattern.match(spec.name))))
                and (since is None or ended is None or ended >= since)
                and (submitted is None or job.submitted_at < submitted)
                and (before is None or (ended is not None and ended < before))
                and (not states or job.state() in states)
            )

        return fits


class Condition(Struct, frozen=True):
    """A part of a WHERE clause about the table `jobs`, its values, and the index that finds it (empty: none does)."""

    sql: str
    values: tuple[object, ...]
    index: str = ""


def conditions(wanted: Wanted) -> list[Condition]:
    """Returns what is wanted as conditions; the tag is left out, it has a table of its own."""
    found = []
    if wanted.user is not None:
        found.append(Condition("user = ?", (wanted.user,), "jobs_user"))
    if wanted.name is not None:
        found.append(_name(wanted.name))
    if wanted.states:
        marks = ", ".join("?" * len(wanted.states))
        found.append(Condition(f"state IN ({marks})", tuple(sorted(wanted.states)), "jobs_state"))
    if wanted.ended_since is not None or wanted.ended_before is not None:
        low = wanted.ended_since if wanted.ended_since is not None else 0.0
        high = wanted.ended_before if wanted.ended_before is not None else 1e18
        found.append(Condition("finished >= ? AND finished < ?", (low, high), "jobs_finished"))
    if wanted.submitted_before is not None:
        found.append(Condition("submitted < ?", (wanted.submitted_before,)))
    return found


def _name(name: str) -> Condition:
    wild = _WILD.search(name)
    if wild is None:
        return Condition("name = ?", (name,), "jobs_name")
    # SQLite says [^…] where the shell, and fnmatch, say [!…].
    pattern = name.replace("[!", "[^")
    start = name[: wild.start()]
    if not start or start[-1] in "\ud7ff\U0010ffff":  # these have no next character
        return Condition("(name = ? OR name GLOB ?)", (name, pattern))
    return Condition(
        "(name >= ? AND name < ? AND (name = ? OR name GLOB ?))",
        (start, start[:-1] + chr(ord(start[-1]) + 1), name, pattern),
        "jobs_name",
    )

"""How many tasks of a tag, a user or a group may be on hosts at once: semaphores of the whole cluster. [pure]

What is on hosts is counted in the replicated state and every assignment is checked against it, so a limit holds over
any fail-over. A job may bring limits of its own for tags (`JobSpec.limits`): for its tasks the lower one counts.
The limit of the user `*` is that of every user who has none of his own.
"""

from __future__ import annotations

from collections.abc import Container

from depalma.model import MAX_TASKS
from depalma.state.jobs import Job
from depalma.state.shares import Account, Shares

KINDS = ("tag", "user", "group")
EVERYBODY = "*"

#: A limit that a job is under: kind (tag or group), name, and the job's own number (0 = none).
Gate = tuple[str, str, int]


class Limits:
    """The limits that were set, and what is counted (derived)."""

    def __init__(self) -> None:
        self.tags: dict[str, int] = {}
        self.users: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self._kinds = {"tag": self.tags, "user": self.users, "group": self.groups}
        self.tasks: dict[tuple[str, str], int] = {}  #: tasks on hosts by tag and group

    def of_kind(self, kind: str) -> dict[str, int]:
        """Returns the limits of a kind. Errors: KeyError."""
        return self._kinds[kind]

    @property
    def are_set(self) -> bool:
        """Returns whether there is any limit but those that jobs bring."""
        return bool(self.users or self.tags or self.groups)

    def gates(self, job: Job, quotas: Container[tuple[str, str]] = ()) -> tuple[Gate, ...]:
        """Returns the limits that the job is under, those of users left out. What has one of the `quotas` counts."""
        spec = job.spec
        if not spec.limits and not self.tags and not self.groups and not quotas:
            return ()
        own = spec.limits or {}
        gates = [
            ("tag", tag, own.get(tag, 0))
            for tag in tags_of(job)
            if tag in self.tags or tag in own or ("tag", tag) in quotas
        ]
        if spec.group in self.groups or ("group", spec.group) in quotas:
            gates.append(("group", spec.group, 0))
        return tuple(sorted(gates))

    def bound(self, gate: Gate) -> int:
        """Returns how many tasks a gate lets be on hosts at once."""
        kind, name, own = gate
        standing = self._kinds[kind].get(name, MAX_TASKS)
        return min(own, standing) if own else standing

    def live(self, kind: str, name: str, shares: Shares) -> int:
        """Returns how many tasks are under a limit now; of everybody's, the most that one user has."""
        if kind != "user":
            return self.tasks.get((kind, name), 0)
        if name == EVERYBODY:
            return max((each.tasks for each in shares.accounts.values() if each.name not in self.users), default=0)
        account = shares.accounts.get(name)
        return account.tasks if account is not None else 0

    def room(self, gate: Gate) -> int:
        """Returns how many more tasks a gate lets through now."""
        return self.bound(gate) - self.tasks.get(gate[:2], 0)

    def bound_of_user(self, name: str) -> int:
        """Returns how many tasks of a user may be on hosts at once."""
        return self.users.get(name, self.users.get(EVERYBODY, MAX_TASKS))

    def room_of_user(self, account: Account) -> int:
        """Returns how many more tasks of the user may start now."""
        return self.bound_of_user(account.name) - account.tasks if self.users else MAX_TASKS

    def room_of(self, job: Job, account: Account) -> int:
        """Returns how many more tasks of the job all its limits let through now."""
        room = self.room_of_user(account)
        for gate in self.gates(job):
            room = min(room, self.room(gate))
        return room

    def count(self, job: Job, tasks: int) -> None:
        """Notes that so many more tasks of the job are on hosts."""
        spec = job.spec
        if not (spec.tags or spec.limits or spec.group):
            return
        for key in counted(job):
            count = self.tasks.get(key, 0) + tasks
            if count:
                self.tasks[key] = count
            else:
                del self.tasks[key]


def counted(job: Job) -> list[tuple[str, str]]:
    """Returns the tags and the group that its tasks are counted under, as (kind, name)."""
    spec = job.spec
    keys = [("tag", tag) for tag in tags_of(job)] if spec.tags or spec.limits else []
    if spec.group:
        keys.append(("group", spec.group))
    return keys


def tags_of(job: Job) -> tuple[str, ...]:
    """Returns the tags that its tasks are counted under: those that it limits, too."""
    spec = job.spec
    if not spec.limits:
        return spec.tags if len(spec.tags) < 2 else tuple(dict.fromkeys(spec.tags))
    return tuple(dict.fromkeys((*spec.tags, *spec.limits)))

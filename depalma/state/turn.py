"""What stands before a job in the order, and which limits it is under, in words. [pure]"""

from __future__ import annotations

from collections.abc import Iterator

from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.limits import EVERYBODY
from depalma.state.quotas import amount, figure, holders_of, in_units, in_words
from depalma.state.shapes import shown

#: Users that are named one by one.
_MAX_USERS = 10


def turn_lines(state: ClusterState, job: Job) -> list[str]:
    """Returns what stands before a job that is ready."""
    higher = sum(
        len(line.jobs)
        for priority, level in state.ready.levels.items()
        if priority > job.spec.priority
        for stand in level.stands.values()
        for _, line in stand.heads
    )
    account = state.shares.account(job.spec.user)
    older = sum(
        line.jobs.rank(job.id) for line in state.ready.lines_of(account) if line.lane.priority == job.spec.priority
    )
    before = higher + older
    words = [f"{higher} of higher priority"] * bool(higher) + [f"{older} of the same user"] * bool(older)
    lines = [f"jobs with queued tasks before it: {before} ({', '.join(words)})" if before else "first in the queue"]
    rivals = _rivals(state, job)
    if rivals:
        names = ", ".join(rivals[:_MAX_USERS]) + (f", … {len(rivals)} in all" if len(rivals) > _MAX_USERS else "")
        lines[0] = lines[0] if before else f"first in the queue of {job.spec.user or 'its user'}"
        lines.append(f"users who have used less of their share, and come first: {names}")
    return lines


def _rivals(state: ClusterState, job: Job) -> list[str]:
    """Returns the users with ready jobs of the same priority who come first."""
    account = state.shares.account(job.spec.user)
    level = state.ready.levels.get(job.spec.priority)
    stands = level.stands.values() if level is not None else ()
    others = [
        stand.account for stand in stands if (stand.account.key, stand.account.number) < (account.key, account.number)
    ]
    return [each.name for each in sorted(others, key=lambda each: (each.key, each.number))]


def limit_reasons(state: ClusterState, job: Job) -> Iterator[str]:
    """Yields the limits that keep the job's next task from starting now."""
    limits = state.limits
    account = state.shares.accounts.get(job.spec.user)
    least = job.shape.gang or 1
    of_gang = f"; a gang of {least} starts at once" if least > 1 else ""
    if account is not None and limits.room_of_user(account) < least:
        whose = f"user {account.name}" if account.name in limits.users else f"each user ({EVERYBODY})"
        yield f"limit of {whose}: {limits.bound_of_user(account.name)} at once, {account.tasks} are on hosts{of_gang}"
    for gate in limits.gates(job):
        if limits.room(gate) < least:
            kind, name, _ = gate
            live = limits.tasks.get((kind, name), 0)
            yield f"limit of {kind} {name}: {limits.bound(gate)} at once, {live} are on hosts{of_gang}"
    for holder in holders_of(job) if state.quotas else ():
        for name, most in state.quotas.of(holder).items():
            need = min(amount(way, name) for way in job.shape.ways) * least
            used = state.quotas.used.get(holder, {}).get(name, 0)
            if need and used + need > in_units(name, most):
                whose = f"quota of {holder[0]} {holder[1]}: at most {in_words(name, in_units(name, most))} at once"
                who = f"a gang of {least}" if least > 1 else "a task"
                yield f"{whose}, {figure(shown(name, used))} are in use, {who} needs {figure(shown(name, need))}"

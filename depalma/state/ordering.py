"""Commands about whose turn it is: limits, shares, ageing. [pure]"""

from __future__ import annotations

from depalma.model import MAX_TASKS
from depalma.state.checks import bad_field, bad_range
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.limits import KINDS
from depalma.state.order_commands import SetLimit, SetOrder, SetShare

MAX_NAME = 200
MAX_LIMITS = 10_000
MAX_SHARES = 100_000


def set_limit(state: ClusterState, command: SetLimit) -> Applied | Rejected:
    """Sets or removes a limit; what is on hosts stays there, also when that is more."""
    if known := state.answers.find("set_limit", command.request):
        return Applied(known.value, state.version)
    kind, name, limit = command.kind, command.name, command.limit
    if kind not in KINDS:
        return bad_field("kind", kind, ", ".join(KINDS))
    if wrong := _bad_name(name):
        return wrong
    if limit is not None and (wrong := bad_range("limit", limit, 0, MAX_TASKS)):
        return wrong
    limits = state.limits.of_kind(kind)
    before = limits.get(name)
    if limit is None and before is None:
        return Rejected("unknown_limit", f"there is no limit of {kind} {name}")
    if limit is not None and before is None and len(limits) >= MAX_LIMITS:
        return bad_field("name", name, f"at most {MAX_LIMITS} limits of a kind")
    if limit is None:
        del limits[name]
    else:
        limits[name] = limit
    if (before is None or limit is None) and kind != "user":
        # Whether there is a limit says in which lane a job waits; how high it is does not.
        concerned = [
            job for job in state.jobs.values()
            if job.ready and (name == job.spec.group if kind == "group" else name in job.spec.tags)
        ]  # fmt: skip
        state.ready.relane(concerned, command.at)
    state.events.add("limit.changed", command.at, detail={"kind": kind, "name": name, "limit": limit})
    state.answers.keep("set_limit", command.request, None, command.at)
    return Applied(None, state.version)


def set_share(state: ClusterState, command: SetShare) -> Applied | Rejected:
    """Gives a user another weight."""
    if known := state.answers.find("set_share", command.request):
        return Applied(known.value, state.version)
    if wrong := _bad_name(command.user) or bad_range("weight", command.weight, 1e-3, 1e6):
        return wrong
    if command.user not in state.shares.accounts and len(state.shares.accounts) >= MAX_SHARES:
        return bad_field("user", command.user, f"at most {MAX_SHARES} users")
    account = state.shares.account(command.user)
    state.shares.accrue(account, command.at)
    account.weight = command.weight
    state.ready.used(account)
    state.events.add("share.changed", command.at, detail={"user": command.user, "weight": command.weight})
    state.answers.keep("set_share", command.request, None, command.at)
    return Applied(None, state.version)


def set_order(state: ClusterState, command: SetOrder) -> Applied | Rejected:
    """Changes how fast usage is forgotten, and after how long a priority that gets nothing gets a task."""
    if known := state.answers.find("set_order", command.request):
        return Applied(known.value, state.version)
    half_life_s, age_s = command.half_life_s, command.age_s
    if half_life_s is not None and (wrong := bad_range("half_life_s", half_life_s, 60, 3_660 * 86_400)):
        return wrong
    if age_s is not None and age_s != 0 and (wrong := bad_range("age_s", age_s, 1, 3_660 * 86_400)):
        return wrong
    if half_life_s is not None:
        for account in state.shares.accounts.values():
            state.shares.accrue(account, command.at)
        state.shares.rebase(command.at, half_life_s)
    if age_s is not None:
        state.age_s = age_s
    detail = {"half_life_s": state.shares.half_life_s, "age_s": state.age_s}
    state.events.add("order.changed", command.at, detail=dict(detail))
    state.answers.keep("set_order", command.request, None, command.at)
    return Applied(None, state.version)


def _bad_name(name: str) -> Rejected | None:
    if 0 < len(name) <= MAX_NAME and name.isprintable():
        return None
    return bad_field("name", name, f"1 to {MAX_NAME} printable characters")

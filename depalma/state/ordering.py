"""Commands about whose turn it is: limits, shares, ageing. [pure]"""

from __future__ import annotations

from depalma.model import MAX_TASKS
from depalma.state.checks import MAX_RESOURCES, bad_field, bad_range, bad_resources
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.limits import KINDS
from depalma.state.order_commands import SetLimit, SetOrder, SetQuota, SetShare
from depalma.state.quotas import SLOTS, holders_of
from depalma.state.shapes import GPUS, MEMORY
from depalma.state.texts import is_plain

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


def set_quota(state: ClusterState, command: SetQuota) -> Applied | Rejected:
    """Sets or removes a quota, all of it; what is on hosts stays there, also when that is more."""
    if known := state.answers.find("set_quota", command.request):
        return Applied(known.value, state.version)
    kind, name, most = command.kind, command.name, command.most
    if kind not in KINDS:
        return bad_field("kind", kind, ", ".join(KINDS))
    wrong = _bad_name(name) or (_bad_amounts(most) if most is not None else None)
    if wrong:
        return wrong
    quotas, holder = state.quotas, (kind, name)
    if most is None and holder not in quotas.most:
        return Rejected("unknown_quota", f"there is no quota of {kind} {name}")
    if holder not in quotas.most and len(quotas.most) >= MAX_LIMITS:
        return bad_field("name", name, f"at most {MAX_LIMITS} quotas")
    if most is None:
        del quotas.most[holder]
    else:
        quotas.most[holder] = dict(sorted(most.items()))
    quotas.recount(state.jobs.values())
    if kind != "user":
        # Whether there is a quota says in which lane a job waits; how high it is does not.
        state.ready.relane([job for job in state.jobs.values() if job.ready and holder in holders_of(job)], command.at)
    detail: Detail = {"kind": kind, "name": name, **(most or {"removed": True})}
    state.events.add("quota.changed", command.at, detail=detail)
    state.answers.keep("set_quota", command.request, None, command.at)
    return Applied(None, state.version)


def _bad_amounts(most: dict[str, float]) -> Rejected | None:
    if not 0 < len(most) <= MAX_RESOURCES:
        return bad_field("quota", f"{len(most)} numbers", f"1 to {MAX_RESOURCES} numbers of what is counted")
    for name, number in most.items():
        if name not in (SLOTS, GPUS, MEMORY) and bad_resources({name: 0}):
            return bad_field("quota", name, f"{SLOTS}, {GPUS}, {MEMORY}, or the name of a resource of hosts")
        if wrong := bad_range(f"quota.{name}", number, 0, 1 << 60):
            return wrong
    return None


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
    if 0 < len(name) <= MAX_NAME and is_plain(name):
        return None
    return bad_field("name", name, f"1 to {MAX_NAME} printable characters")

"""What jobs and hosts ask for and have, and commands about the order, by chance: for tests of the state. [pure]"""

from __future__ import annotations

from random import Random
from typing import Any

from depalma.alternatives import Alternative
from depalma.state import commands as c
from depalma.state import order_commands

#: What makes a spec one that is refused (a task too large for every host is not).
BAD_SPECS: tuple[dict[str, Any], ...] = (
    {"count": -1}, {"count": 0, "arguments": None}, {"first_index": -1}, {"argv": ()},
    {"cpus": 0.0}, {"cpus": float("nan")}, {"cpus": 7.0}, {"priority": 10**9}, {"code_index": 50},
    {"kind": "function"}, {"kind": "function", "argv": (), "function": "pkg:f"}, {"tags": ("",)}, {"group": "a b"},
    {"max_running": -1}, {"retries": 10**6}, {"env": {"a=b": "c"}}, {"timeout_s": float("inf")},
    {"alternatives": (Alternative(cpus=0),)}, {"alternatives": (Alternative(gpus=1.5),)},
    {"alternatives": (Alternative(),) * 9}, {"gpus": -1}, {"gpus": 1.5}, {"gpus": 0.005}, {"gpus": float("nan")},
    {"labels": ("a>b",)}, {"resources": {"gpus": 1}}, {"limits": {"t": 0}}, {"limits": {"": 1}},
)  # fmt: skip


def some_needs(rng: Random) -> dict[str, Any]:
    """Returns fields of a spec; seldom much, or hardly anything would run."""
    fields: dict[str, Any] = {
        "cpus": rng.choice([1.0, 1.0, 0.5, 2.0]),
        "priority": rng.choice([0, 0, 5, -5]),
        "group": rng.choice(["", "", "", "g"]),
        "on_host": rng.choice(["", "", "", "h2"]),
        "user": rng.choice(["", "ann", "bob"]),
        "tags": rng.choice([(), (), ("t",), ("t", "u")]),
        "limits": rng.choice([None, None, None, None, None, None, {"t": 2}, {"v": 1}]),
    }
    if rng.random() < 0.15:
        fields |= {
            "memory_bytes": rng.choice([0, 0, 3 << 30]),
            "gpus": rng.choice([0, 0, 0, 1, 2, 0.5, 0.3, 0.9]),
            "resources": rng.choice([None, None, {"licence": 1}, {"licence": 2, "tape": 1}]),
            "labels": rng.choice([(), (), ("os=x",), ("a", "os!=y")]),
            "prefer": rng.choice([(), ("a=b",)]),
            "preempt": rng.random() < 0.2,
            "pack": rng.random() < 0.2,
            "timeout_s": rng.choice([0.0, 0.0, 10.0, 100.0]),
        }
        if rng.random() < 0.5:
            fields["alternatives"] = tuple(
                Alternative(
                    cpus=rng.choice([1.0, 0.5, 2.0]),
                    gpus=rng.choice([0, 0.5]),
                    memory_bytes=rng.choice([0, 1 << 30]),
                    resources=rng.choice([None, {"tape": 1}]),
                )
                for _ in range(rng.choice([1, 1, 2]))
            )
    return fields


def some_resources(rng: Random) -> dict[str, int]:
    """Returns what a host is said to have."""
    return dict(
        rng.choice([{}, {}, {"licence": 2}, {"licence": 1, "tape": 1}, {"licence": 0}, {"a b": 1}, {"tape": -1}])
    )


def order_command(rng: Random, request: str, now: float) -> c.AnyCommand:
    """Returns a command about limits, shares or ageing."""
    match rng.choice(["limit", "limit", "share", "order", "quota"]):
        case "quota":
            kind, name = rng.choice([("tag", "t"), ("user", "*"), ("user", "ann"), ("group", "g"), ("host", "x")])
            wanted: list[dict[str, float]] = [
                {"slots": 3},
                {"slots": 0.5, "gpus": 1},
                {"gpus": 1.5},
                {"licence": 1},
                {"gpus": -1},
                {},
                {"a b": 1},
            ]
            return order_commands.SetQuota(request, kind, name, rng.choice([None, None, None, *wanted]), now)
        case "limit":
            kind, name = rng.choice(
                [("tag", "t"), ("tag", "u"), ("user", "*"), ("user", "ann"), ("group", "g"), ("host", "x")]
            )
            return order_commands.SetLimit(
                request, kind, name, rng.choice([None, None, None, rng.choice([0, 1, 2, 5, -1])]), now
            )
        case "share":
            weight = rng.choice([0.5, 1.0, 3.0, 0.0, float("nan")])
            return order_commands.SetShare(request, rng.choice(["ann", "bob", "eve", ""]), weight, now)
    return order_commands.SetOrder(
        request, now, rng.choice([None, 60.0, 3600.0, 1.0]), rng.choice([None, 0.0, 100.0, 0.5])
    )

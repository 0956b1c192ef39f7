"""Who the masters are: noted with what changed, kept by snapshots, forgotten when a state begins another cluster."""

from __future__ import annotations

import json
from typing import Any

from depalma.model import MasterAddress
from depalma.state import commands as c
from depalma.state.events import events_after

M1, M2, M3 = (MasterAddress(f"m{n}", f"10.0.0.{n}", 7070, 7071) for n in (1, 2, 3))


def told(bench: Any, after: int = 0) -> list[tuple[str, object, object]]:
    events = events_after(bench.state, after)
    return [(event.kind, event.detail["master"], event.detail["url"]) for event in events]


def test_the_first_leader_records_them(bench: Any) -> None:
    bench.ok(c.ChangeMasters("", (M1, M2), bench.tick()))

    assert list(bench.state.masters.values()) == [M1, M2]
    assert bench.state.changes.masters
    assert told(bench) == [
        ("master.added", "m1", "http://10.0.0.1:7070"),
        ("master.added", "m2", "http://10.0.0.2:7070"),
    ]


def test_each_change_is_an_event(bench: Any) -> None:
    bench.ok(c.ChangeMasters("", (M1, M2), bench.tick()))
    moved = MasterAddress("m2", "10.0.0.9", 7070, 7071)
    bench.ok(c.ChangeMasters("", (M2, M3), bench.tick(), "ann"))
    bench.ok(c.ChangeMasters("", (moved, M3), bench.tick(), "ann"))

    assert told(bench, 2) == [
        ("master.added", "m3", "http://10.0.0.3:7070"),
        ("master.removed", "m1", "http://10.0.0.1:7070"),
        ("master.moved", "m2", "http://10.0.0.9:7070"),
    ]
    assert {event.detail["by"] for event in events_after(bench.state, 2)} == {"ann"}


def test_a_request_is_remembered(bench: Any) -> None:
    """The leader asks for it before it proposes a retry: the members have changed already."""
    bench.ok(c.ChangeMasters("key", (M1,), bench.tick()))

    assert bench.state.answers.find("change_masters", "key") is not None
    assert bench.state.answers.find("change_masters", "other") is None


def test_snapshots_keep_them(bench: Any) -> None:
    bench.ok(c.ChangeMasters("", (M1, M2, M3), bench.tick()))
    bench.check_snapshot()

    assert list(bench.twin.state.masters.values()) == [M1, M2, M3]


def test_another_cluster_has_its_own(bench: Any) -> None:
    bench.ok(c.ChangeMasters("", (M1, M2, M3), bench.tick()))
    for machine in (bench.machine, bench.twin):
        machine.begin_anew("restored")

    assert bench.state.masters == {}


def test_the_address_names_the_api() -> None:
    assert json.dumps(M1.url) == '"http://10.0.0.1:7070"'

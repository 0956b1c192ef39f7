"""A decision can be made again from the file that `depalmactl snapshot save` wrote."""

from __future__ import annotations

from pathlib import Path

from depalma.consensus import recovery
from depalma.consensus.snapshot_format import Header
from depalma.dispatcher import HostRoom, plan
from depalma.model import HostFacts, JobSpec
from depalma.state import commands as c
from depalma.state.machine import Machine
from depalma.testing.replay import all_connected, replay

FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.1")


def test_the_same_decisions_come_out(tmp_path: Path) -> None:
    """With shares, limits and what was connected then; and again the same."""
    machine = Machine()
    for name in ("h1", "h2"):
        machine.apply(c.encode(c.AddHost("", name, (), {}, 0, 2, 0, 1.0)), 1)
        machine.apply(c.encode(c.HostUp(name, f"{name}-1", FACTS, 1.0)), 1)
    machine.apply(c.encode(c.SetLimit("", "tag", "db", 1, 1.0)), 1)
    for user in ("ann", "bob"):
        spec = JobSpec(kind="command", argv=("x",), count=2, user=user, tags=("db",) if user == "ann" else ())
        machine.apply(c.encode(c.SubmitJob("", spec, 2.0)), 1)
    file = tmp_path / "saved.snap"
    recovery.write_file(file, Header(7, 1, 9, "lab"), machine.snapshot())

    live = plan(machine.state, all_connected(machine.state), {}, 3.0, 0, 2_000)
    assert {each.host: len(each.tasks) for each in live} == {"h1": 2, "h2": 1}
    assert replay(file, 3.0) == replay(file, 3.0) == live
    (alone,) = replay(file, 3.0, hosts={"h2": HostRoom("h2-1", 2)})
    assert (alone.host, alone.tasks) == ("h2", ((1, 0, 1), (2, 0, 1)))
    assert alone.reason.startswith("2 of 2 slots were free")

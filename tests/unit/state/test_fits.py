"""Which hosts fit which lanes, known as bits: always what `misfit` says, and looked at again only where it changed."""

from __future__ import annotations

from math import inf

import pytest

from depalma.dispatcher import HostRoom, plan
from depalma.model import HostFacts
from depalma.state import commands as c
from depalma.state import fits as module
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine
from depalma.state.placement import misfit

FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.1")


class Cluster:
    """Hosts and jobs, and how often a shape was compared with a host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine()
        self.compared = 0

        def counted(*arguments: object) -> str:
            self.compared += 1
            return misfit(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "misfit", counted)

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    def do(self, *commands: c.AnyCommand) -> None:
        for command in commands:
            outcome = self.machine.apply(c.encode(command), 1)
            assert isinstance(outcome, c.Applied), outcome
            self.machine.drain_changes()  # as a master does after each batch

    def host(self, name: str, **labels: str) -> None:
        self.do(c.AddHost("", name, (), labels, 0, 2, 0, 1.0), c.HostUp(name, f"{name}-1", FACTS, 1.0))

    def submit(self, **spec: object) -> int:
        self.do(c.SubmitJob("", c.JobSpec(kind="command", argv=("true",), **spec), 2.0))  # type: ignore[arg-type]
        return self.state.next_job - 1

    def fitting(self, job: int) -> set[str]:
        """Returns the hosts that are known to fit; they are those that fit."""
        state, lane = self.state, self.state.jobs[job].line.lane
        state.fits.begin(state.hosts)
        bits = state.fits.of(lane, state.hosts)
        known = {name for name, number in state.fits.numbers.items() if bits >> number & 1}
        assert bits.bit_count() == len(known), "a bit of nobody"
        assert known == {name for name, host in state.hosts.items() if not misfit(lane.shape, host, inf)}
        return known

    def plan(self) -> list[c.AssignTasks]:
        rooms = {host.name: HostRoom(host.incarnation, 2) for host in self.state.hosts.values()}
        return plan(self.state, rooms, {}, 3.0, 1, 100)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_a_round_does_not_compare_lanes_with_hosts_again(cluster: Cluster) -> None:
    """Thirty jobs that fit none of fifty free hosts cost a comparison each, once; a change costs its host's only."""
    for number in range(50):
        cluster.host(f"h{number}", rack=f"r{number}")
    for number in range(30):
        cluster.submit(labels=(f"disk=d{number}",))
    assert cluster.plan() == []
    assert cluster.compared == 50 + 30 * 50, "each rule once, and whether hosts take work"

    cluster.compared = 0
    for _ in range(5):
        assert cluster.plan() == []
    cluster.submit(labels=("disk=d7",), priority=9)
    assert cluster.plan() == []
    assert cluster.compared == 0, "nothing of the hosts has changed"

    cluster.do(c.SetHost("", "h3", 4.0, labels={"disk": "d7"}))
    (command,) = cluster.plan()
    assert (command.host, [ref[0] for ref in command.tasks]) == ("h3", [31, 8])
    assert cluster.compared == 1 + 30, "only the host that is another one now"


def test_what_fits_follows_the_hosts(cluster: Cluster) -> None:
    """Whatever becomes of them; a bit that is free goes to the next that comes."""
    cluster.host("h1", disk="ssd")
    cluster.host("h2")
    ssd, any_host = cluster.submit(labels=("disk=ssd",)), cluster.submit()
    group, named = cluster.submit(group="g"), cluster.submit(on_host="h2")
    large = cluster.submit(memory_bytes=16 << 30)
    assert [cluster.fitting(job) for job in (ssd, any_host, group, named, large)] == [
        {"h1"}, {"h1", "h2"}, set(), {"h2"}, set(),
    ]  # fmt: skip
    cluster.do(c.DrainHost("", "h1", None, 4.0))
    assert (cluster.fitting(ssd), cluster.fitting(any_host)) == (set(), {"h2"})
    cluster.do(c.RemoveHost("", "h1", False, 5.0))
    cluster.host("h3", disk="ssd")
    assert cluster.state.fits.numbers.keys() == {"h2", "h3"}
    assert max(cluster.state.fits.numbers.values()) == 1
    assert (cluster.fitting(ssd), cluster.fitting(any_host)) == ({"h3"}, {"h2", "h3"})
    cluster.do(c.SetGroup("", "g", ("h3",), 6.0))
    assert cluster.fitting(group) == {"h3"}
    cluster.do(c.HostUp("h2", "h2-2", c.HostFacts(2, 2, 32 << 30, 0, "0.1.0", "3.11", ""), 7.0))
    assert cluster.fitting(large) == {"h2"}
    cluster.do(c.HostLost("h2", "h2-2", "silent", 8.0))
    assert (cluster.fitting(large), cluster.fitting(named)) == (set(), set())


def test_a_host_that_goes_with_its_last_task_fits_nothing_any_more(cluster: Cluster) -> None:
    """It is taken off the list by a report, which is no command about hosts."""
    cluster.host("h1")
    cluster.submit()
    (command,) = cluster.plan()
    cluster.do(command, c.RemoveHost("", "h1", True, 4.0))
    waiting = cluster.submit()
    assert cluster.fitting(waiting) == set()
    cluster.do(c.FinishTasks("h1", "h1-1", (c.Report(*command.tasks[0], "succeeded", 0),), 5.0))
    assert "h1" not in cluster.state.hosts
    cluster.host("h9")
    assert cluster.fitting(waiting) == {"h9"}


def test_who_has_not_looked_for_long_looks_at_everything(cluster: Cluster) -> None:
    """What changed is remembered for so long only."""
    cluster.host("h1")
    cluster.host("h2")
    early = cluster.submit(labels=("disk=ssd",))
    assert cluster.fitting(early) == set()
    cluster.do(c.SetHost("", "h1", 3.0, labels={"disk": "ssd"}))
    hosts = cluster.state.hosts
    for _ in range(3 * module._KEEP):
        cluster.state.fits.note(("h2",), hosts)
    assert cluster.fitting(early) == {"h1"}
    assert len(cluster.state.fits._log) <= 2 * module._KEEP

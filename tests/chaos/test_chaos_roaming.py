"""A machine that is carried from one network to another while it works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from depalma.testing.chaos.cluster import ChaosCluster
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.shell import run
from depalma.testing.chaos.waiting import wait_until

#: The agent finds out that its line is dead and reaches the leader again in about half of this.
LEASE_S = 6.0
WORK = "echo began >>witness; while ! test -e release; do sleep 0.05; done"


def without_fixed_address(file: Path) -> None:
    """A laptop has no address in the cluster file."""
    config = msgspec.yaml.decode(file.read_bytes())
    for host in config["hosts"]:
        del host["host"]
    file.write_bytes(msgspec.yaml.encode(config))


def test_a_host_with_a_new_address_comes_back_as_itself(needs: Callable[..., None], tmp_path: Path) -> None:
    """Same life, nothing lost, nothing started again; it is shown where it is now."""
    needs()
    with Network(["m1", "m2", "m3", "h1"]) as net:
        cluster = ChaosCluster(net, tmp_path / "cluster", masters=3, agents=1, settings={"lease_s": LEASE_S})
        without_fixed_address(cluster.config)
        cluster.start()
        try:
            cluster.wait_ready()
            with cluster.client() as client:
                job = client.command(["sh", "-c", WORK], cwd=tmp_path)
                wait_until(lambda: (tmp_path / "witness").exists(), within_s=20, what="the task has begun")
                assert client.host("h1").address == net.address("h1")

                space, old, new = net.namespace("h1"), f"{net.address('h1')}/24", "10.77.0.77"
                run("ip", "-n", space, "addr", "del", old, "dev", "eth0")
                run("ip", "-n", space, "addr", "add", f"{new}/24", "dev", "eth0")

                wait_until(lambda: client.host("h1").address == new, within_s=20, what="heard from its new address")
                assert client.host("h1").running == 1
                (tmp_path / "release").touch()
                assert job.wait(30).state == "succeeded"
                ups = [event.detail for event in client.events() if event.kind == "host.up"]
                assert [up["address"] for up in ups] == [net.address("h1"), new]
                assert (ups[0]["incarnation"], ups[1]["lost"]) == (ups[1]["incarnation"], 0)
                assert not [event for event in client.events() if event.kind == "host.lost"]
            assert (tmp_path / "witness").read_text() == "began\n"
        finally:
            forced = cluster.stop()
        assert forced == []

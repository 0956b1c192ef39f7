"""Who is taken as a host's agent while another one is connected: nobody, until that one has stopped for certain."""

from __future__ import annotations

import time

import pytest
from aiohttp import web
from msgspec.structs import replace

from depalma import protocol
from depalma.config import ClusterConfig, Settings
from depalma.leader.leases import Leases
from depalma.leader.rates import Rates
from depalma.leader.session import AgentSession, Goodbye
from depalma.leader.sessions import Sessions
from depalma.protocol import Hello
from depalma.state import commands as c
from depalma.state.machine import Machine
from tests.unit.leader.test_dispatching import FACTS, Reign

HELLO = Hello(protocol.PROTOCOL_VERSION, "h1", "i2", FACTS, 0, (), ())


async def test_a_second_agent_waits_for_the_lease_that_the_first_one_was_given() -> None:
    """By the clock of that one, which may be slow; and whatever the cluster file of this leader says now."""
    config = ClusterConfig(masters=(), hosts=(), settings=Settings(lease_s=4.0, lease_margin=0.25))
    reign = Reign(Machine(), None, config, Rates(time.monotonic))  # type: ignore[arg-type]
    now_s = [100.0]
    reign.clock = lambda: now_s[0]
    leases = Leases(config.settings.lease_times)
    sessions = Sessions(reign, leases)  # type: ignore[arg-type]
    await reign.execute(c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0))
    await reign.execute(c.HostUp("h1", "i1", replace(FACTS, lease_s=20.0), 1.0))
    sessions.by_host["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    leases.heard("h1", now_s[0])

    for silent_s in (0.0, 4.5, 20.5, 24.9):
        now_s[0] = 100.0 + silent_s
        with pytest.raises(Goodbye, match="another agent"):
            await sessions._take_up(HELLO)
        assert reign.state.hosts["h1"].incarnation == "i1"
    now_s[0] = 125.1
    await sessions._take_up(HELLO)
    assert reign.state.hosts["h1"].incarnation == "i2"


async def test_one_that_is_lost_is_not_waited_for() -> None:
    """Its supervisor has said that nothing of it lives; its connection may hang for long."""
    config = ClusterConfig(masters=(), hosts=())
    reign = Reign(Machine(), None, config, Rates(time.monotonic))  # type: ignore[arg-type]
    leases = Leases(config.settings.lease_times)
    sessions = Sessions(reign, leases)  # type: ignore[arg-type]
    await reign.execute(c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0))
    await reign.execute(c.HostUp("h1", "i1", FACTS, 1.0))
    sessions.by_host["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    leases.heard("h1", time.monotonic())
    await sessions.gone("h1", "i1", "killed")
    await sessions._take_up(HELLO)
    assert reign.state.hosts["h1"].incarnation == "i2"

"""Who is taken as a host's agent while another one is connected: nobody, until that one has stopped for certain."""

from __future__ import annotations

import asyncio
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


async def one_is_up(now_s: list[float], *, connected: bool) -> tuple[Reign, Sessions]:
    """Returns a leader that has just heard agent i1 of host h1, with a lease of 20 s (its own config says 4)."""
    config = ClusterConfig(masters=(), hosts=(), settings=Settings(lease_s=4.0, lease_margin=0.25))
    reign = Reign(Machine(), None, config, Rates(time.monotonic))  # type: ignore[arg-type]
    reign.clock = lambda: now_s[0]
    leases = Leases(config.settings.lease_times)
    sessions = Sessions(reign, leases)  # type: ignore[arg-type]
    await reign.execute(c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0))
    await reign.execute(c.HostUp("h1", "i1", replace(FACTS, lease_s=20.0), 1.0))
    if connected:
        sessions.by_host["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    leases.heard("h1", now_s[0])
    return reign, sessions


@pytest.mark.parametrize(
    ("connected", "over"),
    [(True, None), (True, ()), (False, ()), (False, ("i0",))],
    ids=["connected", "connected, newer agent", "not connected any more", "of another machine"],
)
async def test_a_second_agent_waits_for_the_lease_that_the_first_one_was_given(
    connected: bool, over: tuple[str, ...] | None
) -> None:
    """By the clock of that one, which may be slow; and whatever the cluster file of this leader says now."""
    now_s = [100.0]
    reign, sessions = await one_is_up(now_s, connected=connected)
    hello = replace(HELLO, over=over)

    for silent_s in (0.0, 4.5, 20.5, 24.9):
        now_s[0] = 100.0 + silent_s
        with pytest.raises(Goodbye, match=rf"another agent of host 'h1' .* its tasks for {25 - silent_s:.1f} s yet"):
            await sessions._admission.take_up(hello)
        assert reign.state.hosts["h1"].incarnation == "i1"
    now_s[0] = 125.1
    await sessions._admission.take_up(hello)
    assert reign.state.hosts["h1"].incarnation == "i2"


async def test_who_knows_that_the_first_one_is_over_does_not_wait() -> None:
    """It has its folder, its lock, and has killed what was left."""
    reign, sessions = await one_is_up([100.0], connected=False)
    await sessions._admission.take_up(replace(HELLO, over=("i0", "i1")))
    assert reign.state.hosts["h1"].incarnation == "i2"


async def test_a_copy_of_a_machine_is_not_believed_while_the_original_is_heard() -> None:
    now_s = [100.0]
    reign, sessions = await one_is_up(now_s, connected=True)
    copy = replace(HELLO, over=("i1",))
    with pytest.raises(Goodbye, match="is connected"):
        await sessions._admission.take_up(copy)
    now_s[0] += reign.config.settings.lease_times.suspect_s + 0.1  # a dead machine's connection may hang for long
    await sessions._admission.take_up(copy)
    assert reign.state.hosts["h1"].incarnation == "i2"


async def test_two_that_come_in_the_same_moment() -> None:
    """The second would end what the first has just begun to run."""
    reign, sessions = await one_is_up([100.0], connected=False)
    await sessions.gone("h1", "i1", "killed")
    both = [sessions._admission.take_up(replace(HELLO, incarnation=name, over=())) for name in ("i2", "i3")]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert first is None
    assert isinstance(second, Goodbye)
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
    await sessions._admission.take_up(HELLO)
    assert reign.state.hosts["h1"].incarnation == "i2"

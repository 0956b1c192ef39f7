"""The faults, by their ids in docs/chaos.md."""

from depalma.testing.chaos.scenarios import (
    agents,
    codesync,
    crash,
    disk,
    hostile,
    mixed,
    network,
    poison,
    recovery,
    simulated,
    stream,
    upgrade,
    weather,
)
from depalma.testing.chaos.scenarios.registry import SCENARIOS, Scenario

__all__ = [
    "SCENARIOS",
    "Scenario",
    "agents",
    "codesync",
    "crash",
    "disk",
    "hostile",
    "mixed",
    "network",
    "poison",
    "recovery",
    "simulated",
    "stream",
    "upgrade",
    "weather",
]

"""Taking away what runs that were killed have left: processes, namespaces, mounts with their loop devices, groups."""

from __future__ import annotations

from depalma.testing.chaos import mounts, network, slow


def sweep() -> None:
    """Processes first: they may hold the rest."""
    network.sweep()
    mounts.sweep()
    slow.sweep()

"""Depalma distributes jobs over a cluster of workstations, with a master that cannot be lost.

Public names are imported on first use, so that `import depalma` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depalma.client.aio import AsyncClient
    from depalma.client.client import Client
    from depalma.client.executor import Executor
    from depalma.errors import (
        DepalmaError,
        HostMismatch,
        JobCancelled,
        JobFailed,
        JobLost,
        JobTimeout,
        NoLeader,
        Rejected,
    )
    from depalma.local import LocalCluster

__version__ = "0.1.0"

_HOME = {
    "AsyncClient": "depalma.client.aio",
    "Client": "depalma.client.client",
    "Executor": "depalma.client.executor",
    "LocalCluster": "depalma.local",
    **dict.fromkeys(
        (
            "DepalmaError",
            "HostMismatch",
            "JobCancelled",
            "JobFailed",
            "JobLost",
            "JobTimeout",
            "NoLeader",
            "Rejected",
        ),
        "depalma.errors",
    ),
}

__all__ = [  # noqa: RUF022 - the order users meet them in
    "Client", "AsyncClient", "Executor", "LocalCluster",
    "DepalmaError", "NoLeader", "Rejected", "JobFailed", "JobLost", "JobCancelled", "JobTimeout", "HostMismatch",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'depalma' has no attribute {name!r}")

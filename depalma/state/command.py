"""The base of all replicated commands, in a module of its own so that their families can be, too. [pure]"""

from __future__ import annotations

from msgspec import Struct


class Command(Struct, frozen=True, array_like=True, gc=False):
    """Base of all commands."""

"""Why nothing was done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from depalma.consensus import ConsensusError, DirectoryInUse
from depalma.errors import DepalmaError


class Damaged(DepalmaError):
    """A file is not what was written. The message says where."""


class Occupied(DepalmaError):
    """A directory holds a state already, or a master runs on it."""


@contextmanager
def told() -> Iterator[None]:
    """Turns the errors of the consensus, whose words are for people already, into ours."""
    try:
        yield
    except DirectoryInUse as error:
        raise Occupied(f"{error}. Nothing was changed") from error
    except ConsensusError as error:
        raise DepalmaError(str(error)) from error

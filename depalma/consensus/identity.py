"""Whose directory it is: a replica that opened another one's would forget what it acknowledged."""

from __future__ import annotations

import msgspec

from depalma.consensus.disk import Disk
from depalma.consensus.errors import JournalDamaged, WrongDirectory

NAME = "identity"
_TEMPORARY = "identity.tmp"


class Identity(msgspec.Struct, frozen=True):
    """The owner of a directory."""

    member: str
    cluster: str = ""
    #: it was begun to join a cluster: as long as nothing came from there, it takes no part in any
    joining: bool = False

    def __str__(self) -> str:
        return f"{self.member} of cluster {self.cluster!r}"


def claim(disk: Disk, identity: Identity) -> Identity:
    """Return what the directory says if it is this replica's, or nobody's yet: then it is from now on, durably.

    Raises WrongDirectory, JournalDamaged if that cannot be read, OSError.
    """
    if NAME in disk.names():
        found = _read(disk)
        if (found.member, found.cluster) != (identity.member, identity.cluster):
            raise WrongDirectory(disk.path(NAME), str(found), str(identity))
        return found
    file = disk.create(_TEMPORARY)
    try:
        file.write(msgspec.json.encode(identity) + b"\n")
        file.sync()
    finally:
        file.close()
    disk.rename(_TEMPORARY, NAME)
    disk.sync_dir()
    return identity


def _read(disk: Disk) -> Identity:
    try:
        return msgspec.json.decode(disk.read(NAME), type=Identity)
    except msgspec.MsgspecError as error:
        raise JournalDamaged(disk.path(NAME), f"it does not say whose directory it is: {error}") from error

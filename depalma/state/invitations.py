"""One invitation, as it is kept and stored. [pure]"""

from __future__ import annotations

from msgspec import Struct, structs


class Invitation(Struct, frozen=True, array_like=True, gc=False):
    """A right to join, that works once. Fields are only ever added at the end, with a default."""

    secret_hash: str  #: SHA-256 of the secret, in hex
    host: str
    expires_at: float
    by: str = ""
    used_by: str = ""  #: the id of the joining that used it

    def used(self, request: str) -> Invitation:
        """Returns it as used."""
        return structs.replace(self, used_by=request)

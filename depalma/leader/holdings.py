"""What large files each host has fetched. Soft: a new leader learns it anew, and a host may have dropped some."""

from __future__ import annotations

from collections.abc import Iterable

#: Files that are remembered a host; the latest ones.
_MOST = 1_000


class Holdings:
    """Digests by host, as keys, in the order in which they came."""

    def __init__(self) -> None:
        self.by_host: dict[str, dict[str, None]] = {}

    def note(self, host: str, digests: Iterable[str]) -> None:
        """Notes that a host was told to fetch these."""
        for digest in digests:
            held = self.by_host.setdefault(host, {})
            held.pop(digest, None)  # it is the latest now
            held[digest] = None
            if len(held) > _MOST:
                del held[next(iter(held))]

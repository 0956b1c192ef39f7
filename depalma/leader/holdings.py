"""What large files each host has fetched. Soft: a new leader learns it anew, and a host may have dropped some."""

from __future__ import annotations

from collections.abc import Collection, Iterable

#: Files that are remembered a host; the latest ones.
_MOST = 1_000


class Holdings:
    """Digests by host, as keys, in the order in which they came."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[str, None]] = {}

    def of(self, host: str) -> Collection[str]:
        """Returns what a host holds. It shows what is noted later, too, as rooms are kept."""
        return self._held(host).keys()

    def note(self, host: str, digests: Iterable[str]) -> None:
        """Notes that a host was told to fetch these."""
        for digest in digests:
            held = self._held(host)
            held.pop(digest, None)  # it is the latest now
            held[digest] = None
            if len(held) > _MOST:
                del held[next(iter(held))]

    def _held(self, host: str) -> dict[str, None]:
        return self._by_host.setdefault(host, {})

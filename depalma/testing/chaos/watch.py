"""A thread that asks all masters how they are, all the time: equal states at equal indexes, and who led when."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from depalma.testing.chaos.cluster import ChaosCluster

EVERY_S = 0.15


@dataclass(frozen=True, slots=True)
class Fork:
    """Two masters that applied the same number of commands and do not have the same state."""

    applied_index: int
    hashes: tuple[tuple[str, str], ...]


class Watch:
    """Use it as a context; it keeps what it saw."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-watch")
        self._hashes: dict[int, dict[str, str]] = {}
        #: term → the master that was seen to lead in it, and when first
        self.leaders: dict[int, tuple[str, float]] = {}
        self.forks: list[Fork] = []
        self.double_leaders: list[str] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether it looks."""
        return self._thread.is_alive()

    def changes(self, since_s: float, until_s: float = float("inf")) -> int:
        """Returns how many new leaders were seen in that time."""
        return sum(since_s <= at <= until_s for _, at in self.leaders.values())

    def look(self) -> None:
        """One round."""
        for view in self._cluster.statuses():
            seen = self._hashes.setdefault(view.applied_index, {})
            seen[view.id] = view.state_hash
            if len(set(seen.values())) > 1:
                self.forks.append(Fork(view.applied_index, tuple(sorted(seen.items()))))
            if view.role == "leader":
                who = self.leaders.setdefault(view.term, (view.id, time.monotonic()))[0]
                if who != view.id:
                    self.double_leaders.append(f"term {view.term}: {who} and {view.id}")

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            self.look()

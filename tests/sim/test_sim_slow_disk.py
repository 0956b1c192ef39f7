"""Disks on which a sync takes its time: everything that a replica says comes later, and stale words are common."""

from __future__ import annotations

from typing import Any

import pytest

from depalma.consensus.core import Core
from depalma.testing.cluster import SimCluster
from depalma.testing.ledger import Ledger


class SlowDisk(Core):
    """While it syncs the replica stands still: it reads nothing, and says nothing of what waits for the sync."""

    sync_s = (0.0, 0.0)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._waiting: list[tuple[str, bytes]] = []
        self._say = options["send"]
        self._now = options["clock"].monotonic
        self._chance = options["random"]
        self._syncs_until = 0.0
        options["send"] = lambda peer, frame: self._waiting.append((peer, frame))
        super().__init__(*args, **options)

    def tick(self) -> bool:
        if self._now() < self._syncs_until:
            return False
        self._speak()
        before = self.journal.syncs
        again = super().tick()
        if self.journal.syncs > before and self.sync_s[1]:
            self._syncs_until = self._now() + self._chance.uniform(*self.sync_s)
        else:
            self._speak()
        return again

    def _speak(self) -> None:
        waiting, self._waiting = self._waiting, []
        for peer, frame in waiting:
            self._say(peer, frame)


class SlowCluster(SimCluster[Ledger]):
    """Its disks are quick at first."""

    core_class = SlowDisk


@pytest.mark.parametrize("sync_s", [(0.01, 0.04), (0.03, 0.1), (0.08, 0.2)])
def test_a_leader_is_not_deposed_by_an_older_question(
    monkeypatch: pytest.MonkeyPatch, sync_s: tuple[float, float]
) -> None:
    """A replica that has asked for support and then votes for another does not stand on the late answers.

    It would depose the leader that it has just helped to elect: two of five fail-overs took three elections.
    """
    for seed in range(60):
        monkeypatch.setattr(SlowDisk, "sync_s", (0.0, 0.0))
        cluster = SlowCluster(Ledger, seed=seed)
        cluster.start()
        leader = cluster.wait_for_leader()
        for number in range(10):
            cluster.propose(leader, b"%d" % number)
            cluster.run_for(0.02)
        monkeypatch.setattr(SlowDisk, "sync_s", sync_s)
        cluster.run_for(0.5)
        leader = cluster.wait_for_leader()
        core = cluster.nodes[leader].core
        assert core is not None
        term = core.term
        cluster.crash(leader, power=False)

        elected = cluster.nodes[cluster.wait_for_leader()].core

        assert elected is not None
        assert elected.term <= term + 2, f"seed {seed}: {cluster.describe()}"

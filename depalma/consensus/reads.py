"""Linearizable reads: one round of messages for all readers that wait (ReadIndex; Raft thesis, 6.4)."""

from __future__ import annotations

from depalma.consensus.engine import Engine
from depalma.consensus.owners import Callback


class Reads:
    """The readers of one replica while it leads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: readers not yet part of a round, those of the round under way, and those that wait for applying
        self._waiting: list[Callback] = []
        self._round: tuple[int, int, list[Callback]] | None = None
        self._confirmed: list[tuple[int, list[Callback]]] = []

    @property
    def wait_for_a_round(self) -> bool:
        """Whether a round could begin at once."""
        return bool(self._waiting) and self._round is None and self._engine.established

    def ask(self, callback: Callback) -> None:
        """A reader comes."""
        self._waiting.append(callback)

    def start_round(self) -> None:
        """A majority that answers this round knew no later leader when it was sent."""
        if self.wait_for_a_round:
            self._round = (self._engine.begin_round(), self._engine.commit_index, self._waiting)
            self._waiting = []

    def finished(self) -> list[Callback]:
        """The readers for whom everything that was committed when they asked is applied now."""
        if self._round is not None and self._engine.answered_round >= self._round[0]:
            self._confirmed.append(self._round[1:])
            self._round = None
        done: list[Callback] = []
        while self._confirmed and self._confirmed[0][0] <= self._engine.applied:
            done += self._confirmed.pop(0)[1]
        return done

    def give_up(self) -> list[Callback]:
        """All readers: none of them will be answered."""
        readers = [*self._waiting, *(self._round[2] if self._round else [])]
        for _, callbacks in self._confirmed:
            readers += callbacks
        self._waiting, self._round, self._confirmed = [], None, []
        return readers

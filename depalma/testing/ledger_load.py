"""Clients of a cluster of ledgers: as many commands as it takes, and every read judged at once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from depalma.testing.cluster import Answer, SimCluster, Violation
from depalma.testing.ledger import Ledger


class LedgerLoad:
    """Proposes and reads, mostly at the leader, sometimes at one who takes itself for it, sometimes at anybody."""

    def __init__(self, cluster: SimCluster[Ledger], random: Random) -> None:
        self.cluster = cluster
        self.random = random
        self.reads = 0
        self._padding = bytes(random.choice([0, 0, 300, 3_000]))
        self._asked = 0
        #: command → its number, as the cluster answered
        self._acknowledged: dict[bytes, int] = {}
        self._highest = 0
        self._raging = True

    @property
    def acknowledged(self) -> int:
        """How many commands were answered."""
        return len(self._acknowledged)

    @property
    def unknown(self) -> int:
        """How many were not."""
        return self._asked - len(self._acknowledged)

    def begin(self) -> None:
        """Start."""
        self._ask()

    def end(self) -> None:
        """Ask nothing more."""
        self._raging = False

    def finished(self) -> bool:
        """Whether everything that was begun has come to its end."""
        return True

    def probe(self, leader: str) -> Answer:
        """One more command."""
        return self._propose(leader)

    def judge(self) -> None:
        """Raise Violation unless each member has what was acknowledged, at its number, and nothing twice (I1, I10)."""
        for name in self.cluster.members():
            machine = self.cluster.nodes[name].machine
            assert machine is not None
            held = machine.entries
            lost = [command for command, number in self._acknowledged.items() if held[number - 1 : number] != [command]]
            if lost:
                text = f"{len(lost)} of {self.acknowledged} acknowledged commands, first {lost[0][:20]!r}"
                raise Violation(f"{name} has lost {text}")
            if len(set(held)) != len(held):
                raise Violation("a command was applied twice")

    def _ask(self) -> None:
        if not self._raging:
            return
        name = self._whom()
        for _ in range(self.random.randrange(1, 5)):
            self._propose(name)
        if self.random.random() < 0.4:
            self._read(self._whom())
        self.cluster.timeline.after(self.random.expovariate(25), self._ask)

    def _whom(self) -> str:
        chance = self.random.random()
        leader = self.cluster.leader()
        if chance < 0.6 and leader is not None:
            return leader
        believers = [name for name, node in self.cluster.nodes.items() if node.core and node.core.leads_term]
        return self.random.choice(believers if believers and chance < 0.85 else self.cluster.names)

    def change_members(self, name: str, wanted: tuple[str, ...]) -> None:
        """Ask a replica for other members; the command that says so is one like any other."""
        self._ask_for(lambda command: self.cluster.change_members(name, wanted, command))

    def _propose(self, name: str) -> Answer:
        return self._ask_for(lambda command: self.cluster.propose(name, command))

    def _ask_for(self, ask: Callable[[bytes], Answer]) -> Answer:
        command = b"%d " % self._asked + self._padding
        self._asked += 1
        answer = ask(command)
        answer.listen(lambda: self._on_answer(command, answer))
        return answer

    def _on_answer(self, command: bytes, answer: Answer) -> None:
        if answer.error is None:
            assert isinstance(answer.value, int)
            self._acknowledged[command] = answer.value
            self._highest = max(self._highest, answer.value)

    def _read(self, name: str) -> None:
        must_show = self._highest
        answer = self.cluster.read(name, lambda ledger: len(ledger.entries))
        answer.listen(lambda: self._on_read(name, answer, must_show))

    def _on_read(self, name: str, answer: Answer, must_show: int) -> None:
        if answer.error is None:
            assert isinstance(answer.value, int)
            self.reads += 1
            if answer.value < must_show:
                raise Violation(f"a read on {name} shows {answer.value} commands after {must_show} were answered")

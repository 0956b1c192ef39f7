"""Misfortune for a simulated cluster, all from one seed: machines, disks, networks and clocks fail and are repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from depalma.consensus.errors import MembershipRefused
from depalma.testing.cluster import SimCluster
from depalma.testing.damage import Operator, flip_bit
from depalma.testing.network import Weather


class Storm:
    """Rages from `begin` to `end`. `faults` counts what was done, by kind."""

    def __init__(
        self,
        cluster: SimCluster[Any],
        random: Random,
        change_members: Callable[[str, tuple[str, ...]], None] | None = None,
    ) -> None:
        self.cluster = cluster
        self._ask_for_members = change_members
        self.random = random
        self.faults: Counter[str] = Counter()
        self.operator = Operator(cluster, hasty=random.random() < 0.5)
        self.raging = True
        #: misfortunes a second
        self._rate = 1.0
        self._kinds: list[Callable[[], None]] = []
        cluster.on_crash = self._restart_later

    def begin(self) -> None:
        """Start. Each run has its own few kinds of misfortune, so that none drowns the others."""
        every = [
            self._crash_one,
            self._crash_leader,
            self._crash_all,
            self._cut_power_soon,
            self._disk_fails,
            self._disk_is_full,
            self._flip_bit,
            self._partition,
            self._cut_one_way,
            self._swing_voter,
            self._change_sides,
            self._close_connection,
            self._bad_weather,
            self._freeze,
            self._freeze_leader,
            self._clock_jumps,
            self._hand_over,
            self.cluster.network.heal,
        ]
        if self._ask_for_members is not None:
            every += [self._change_members] * 3
        self._kinds = self.random.sample(every, self.random.randrange(1, len(every) + 1))
        self._rate = self.random.choice([0.7, 2.0, 6.0])
        self.operator.start()
        self._misfortune()

    def end(self) -> None:
        """No more faults: everything is repaired. What is damaged is for the operator."""
        self.raging = False
        self.cluster.network.heal()
        self.cluster.network.weather = Weather(late=0.0)
        for name, node in self.cluster.nodes.items():
            node.disk.repair()
            self.cluster.thaw(name)
            self._restart(name)

    @property
    def repaired(self) -> bool:
        """Whether nothing is left for the operator to do (while members change, nothing is: no disk is damaged)."""
        return self._ask_for_members is not None or not self.operator.busy

    def _misfortune(self) -> None:
        if not self.raging:
            return
        self.random.choice(self._kinds)()
        self.cluster.timeline.after(self.random.expovariate(self._rate), self._misfortune)

    def _some(self) -> str:
        return self.random.choice(self.cluster.names)

    def _leader(self) -> str:
        return self.cluster.leader() or self._some()

    # -- machines ------------------------------------------------------------------------------------------------

    def _restart_later(self, name: str) -> None:
        delay = self.random.choice([0.001, self.random.uniform(0.01, 0.2), self.random.uniform(0.1, 1.5)])
        if self.random.random() < 0.02:
            delay = self.random.uniform(3.0, 10.0)
        self.cluster.timeline.after(delay, partial(self._restart, name))

    def _restart(self, name: str) -> None:
        """As a supervisor does it: one that says that its files are damaged is left to the operator."""
        if not self.cluster.nodes[name].found_damage:
            self.cluster.restart(name)

    def _crash(self, name: str, *, power: bool, silently: bool | None = None) -> None:
        if self.cluster.nodes[name].up:
            self.faults["power lost" if power else "process killed"] += 1
            self.cluster.crash(name, power=power, silently=silently)

    def _crash_one(self) -> None:
        self._crash(self._some(), power=self.random.random() < 0.7)

    def _crash_leader(self) -> None:
        self._crash(self._leader(), power=True)

    def _crash_all(self) -> None:
        for name in self.cluster.names:
            self._crash(name, power=True)

    def _freeze(self) -> None:
        self._stand_still(self._some())

    def _freeze_leader(self) -> None:
        self._stand_still(self._leader())

    def _stand_still(self, name: str) -> None:
        """SIGSTOP, while which the clock goes on, or a suspend, while which it stands (as CLOCK_MONOTONIC does)."""
        node = self.cluster.nodes[name]
        if node.frozen or not node.up:
            return
        suspended = self.random.random() < 0.5
        self.faults["suspended" if suspended else "stopped by SIGSTOP"] += 1
        lasts_s = self.random.choice([self.random.uniform(0.05, 0.4), self.random.uniform(0.4, 2.0), 5.0])
        began, life = self.cluster.clock.monotonic(), node.life
        self.cluster.freeze(name)

        def go_on() -> None:
            if node.life == life and node.frozen:
                if suspended:
                    node.clock.leave_out(self.cluster.clock.monotonic() - began)
                self.cluster.thaw(name)

        self.cluster.timeline.after(lasts_s, go_on)

    def _clock_jumps(self) -> None:
        self.faults["clock jumped forward"] += 1
        self.cluster.nodes[self._some()].clock.jump(self.random.choice([0.1, 0.5, self.random.uniform(0.5, 30.0)]))

    # -- members -------------------------------------------------------------------------------------------------

    def _change_members(self) -> None:
        """One joins or leaves: whoever, at whoever leads."""
        leader = self.cluster.leader()
        if leader is None or self._ask_for_members is None:
            return
        members, name = self.cluster.members(), self._some()
        wanted = tuple(one for one in members if one != name) if name in members else (*members, name)
        if wanted:
            self.faults["members changed"] += 1
            self._ask_for_members(leader, wanted)
            self.cluster.timeline.after(self.random.uniform(0.1, 3.0), lambda: self._give_up_change(leader))

    def _give_up_change(self, name: str) -> None:
        node = self.cluster.nodes[name]
        if node.core is not None and not node.frozen:
            node.core.give_up_change(MembershipRefused("not_ready", "given up"))

    def _hand_over(self) -> None:
        leader = self.cluster.leader()
        if leader is not None:
            self.faults["leadership handed over"] += 1
            self.cluster.hand_over(leader, self.random.choice([None, self._some()]))

    # -- disks ---------------------------------------------------------------------------------------------------

    def _cut_power_soon(self) -> None:
        """In the middle of one of the next disk operations."""
        self._cut_power_in(self._some(), self.random.choice([1, 2, self.random.randrange(1, 60)]), kills=0.4)

    def _cut_power_in(self, name: str, operations: int, *, kills: float = 0.0) -> None:
        if not self.raging:
            return
        disk = self.cluster.nodes[name].disk
        disk.power_cut_in = self.random.randrange(operations)
        disk.kills_only = self.random.random() < kills
        self.faults["killed while writing" if disk.kills_only else "power lost while writing"] += 1

    def _disk_fails(self) -> None:
        operation = self.random.choice(["sync", "sync", "write", "read"])
        self.faults[f"EIO from {operation}"] += 1
        self.cluster.nodes[self._some()].disk.failing.add(operation)

    def _disk_is_full(self) -> None:
        self.faults["ENOSPC"] += 1
        disk = self.cluster.nodes[self._some()].disk
        disk.capacity_bytes = sum(disk.size(file) for file in disk.names()) + self.random.randrange(200)

    def _flip_bit(self) -> None:
        """In a file of a replica that is down; of one replica at a time, for the others must make it whole again."""
        name = self._some()
        if self.operator.busy or self._ask_for_members is not None:
            return  # while members change, nobody says of whom an operator has to look whether they are equal
        self._crash(name, power=True)
        if kind := flip_bit(self.cluster, name, self.random):
            self.faults[kind] += 1

    # -- network -------------------------------------------------------------------------------------------------

    def _heal_later(self, low_s: float, high_s: float) -> None:
        self.cluster.timeline.after(self.random.uniform(low_s, high_s), self.cluster.network.heal)

    def _partition(self) -> None:
        self.faults["partition"] += 1
        names = self.random.sample(self.cluster.names, len(self.cluster.names))
        cut = self.random.randrange(1, len(names) // 2 + 1)
        self.cluster.network.partition(names[:cut], names[cut:])
        self._heal_later(0.1, 4.0)

    def _cut_one_way(self) -> None:
        self.faults["cut one way"] += 1
        self.cluster.network.block(*self.random.sample(self.cluster.names, 2))

    def _swing_voter(self) -> None:
        """Two sides do not see each other; the one on whom both depend dies again and again."""
        self.faults["swing voter"] += 1
        voter, *others = self.random.sample(self.cluster.names, len(self.cluster.names))
        half = len(others) // 2
        self._split(others[:half], others[half:], restart=False)
        self._crash_leader()
        for _ in range(self.random.randrange(1, 6)):
            action = self.random.choice([self._bounce, self._dies_writing, self._dies_writing])
            self.cluster.timeline.after(self.random.uniform(0.0, 0.4), partial(action, voter))
        self._heal_later(0.5, 2.0)

    def _change_sides(self) -> None:
        """A majority elects without the leader; one of it dies over its next write, and returns on the other side."""
        self.faults["side changed"] += 1
        leader = self._leader()
        voter, *others = self.random.sample([name for name in self.cluster.names if name != leader], self._size - 1)
        half = len(others) // 2
        with_leader, against = [leader, *others[:half]], others[half:]
        self._split(with_leader, [voter, *against])
        self.cluster.timeline.after(self.random.uniform(0.0, 0.1), partial(self._dies_writing, voter))
        self.cluster.timeline.after(self.random.uniform(0.1, 0.6), lambda: self._split(against, [*with_leader, voter]))
        self._heal_later(1.0, 2.0)

    @property
    def _size(self) -> int:
        return len(self.cluster.names)

    def _split(self, one_side: list[str], other_side: list[str], *, restart: bool = True) -> None:
        """Cut, with all connections between the sides closed; everybody else is up."""
        if not self.raging:
            return
        if restart:
            self.cluster.network.heal()
        self.cluster.network.partition(one_side, other_side)
        for name in one_side:
            for other in other_side:
                self.cluster.network.close(name, other)
        if restart:
            for name in self.cluster.names:
                self._restart(name)

    def _dies_writing(self, name: str) -> None:
        self._cut_power_in(name, 3)

    def _bounce(self, name: str) -> None:
        if self.raging:
            self._crash(name, power=True, silently=False)
            self._restart(name)

    def _close_connection(self) -> None:
        self.faults["connection closed"] += 1
        self.cluster.network.close(*self.random.sample(self.cluster.names, 2))

    def _bad_weather(self) -> None:
        self.faults["bad weather"] += 1
        slow = self.random.choice([0.002, 0.01, 0.08])
        self.cluster.network.weather = Weather(
            delay_s=(0.0002, slow), loss=self.random.choice([0.0, 0.0, 0.02, 0.2]), late=self.random.random()
        )

"""F10 to F12: networks that are half broken, come and go, or are slow and lose packets."""

from __future__ import annotations

import time
from collections.abc import Callable

from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until
from depalma.testing.chaos.wire import slow_wire

#: writes are acknowledged again so soon after each cut
RESUME_S = 5.0


@scenario("F10", "one-way cuts, and a cut that only two of three feel", short={"cut_s": 4.0}, whole={"cut_s": 30.0})
def cut_one_way(trial: Trial, cut_s: float) -> None:
    """Half of a connection is the worst of connections: packets arrive and answers do not."""
    trial.begin()
    began_s = time.monotonic()
    cuts: dict[str, Callable[[str, list[str]], None]] = {
        "nobody hears the leader": lambda leader, others: trial.network.block([leader], *others),
        "the leader hears nobody": lambda leader, others: trial.network.block(others, leader),
        "one follower hears no leader": lambda leader, others: trial.network.block([leader], others[0]),
        "the leader does not hear one follower": lambda leader, others: trial.network.block([others[0]], leader),
        "leader and one follower are cut, both see the third": lambda leader, others: trial.network.cut(
            leader, [others[0]]
        ),
        "both followers are cut, both see the leader": lambda leader, others: trial.network.cut(others[0], [others[1]]),
    }
    for what, cut in cuts.items():
        leader = trial.cluster.leader()
        others = [name for name in trial.cluster.masters if name != leader]
        trial.random.shuffle(others)
        cut_at_s = time.monotonic()
        cut(leader, others)
        trial.note(f"{what} ({leader} leads, {others[0]}):")
        trial.acknowledged_again(time.monotonic(), RESUME_S)
        trial.run_for(cut_s - (time.monotonic() - cut_at_s))
        changes = trial.watch.changes(cut_at_s)
        trial.expect("leader changes in one cut", changes, max(2.0, 3 * cut_s / 60), "")
        trial.acknowledged_again(time.monotonic(), 1.0)
        trial.network.heal()
        wait_until(trial.cluster.no_one_missing, within_s=15, what="all masters follow or lead after the heal")
    minutes = (time.monotonic() - began_s) / 60
    # A short run has two cuts that need a new leader within half a minute.
    trial.expect("leader changes a minute", trial.watch.changes(began_s) / minutes, max(3.0, 4 / minutes), "")


@scenario("F11", "links that come and go each second", short={"seconds": 10, "converged_s": 15.0},
          whole={"seconds": 60, "converged_s": 15.0})  # fmt: skip
def flap(trial: Trial, seconds: int, converged_s: float) -> None:
    """Each second one master's cable is pulled or plugged in, mostly but not only one at a time."""
    trial.begin()
    down: set[str] = set()
    for _ in range(seconds):
        name = trial.random.choice(trial.cluster.masters)
        trial.network.link(name, up=name in down)
        down ^= {name}
        trial.run_for(1.0)
    for name in down:
        trial.network.link(name, up=True)
    healed_s = time.monotonic()
    trial.acknowledged_again(healed_s, converged_s)
    wait_until(trial.cluster.no_one_missing, within_s=60, what="all masters after the last link came up")
    trial.expect("all masters back after the last link came up", time.monotonic() - healed_s, converged_s)


@scenario("F12", "100 ms late, 10 % lost", short={"seconds": 25}, whole={"seconds": 300}, quick=False,
          load={"clients": 48, "deadline_s": 20.0, "pause_s": 0.15},
          settings={"election_s": [2.0, 4.0], "lease_s": 10.0, "heartbeat_s": 1.0})  # fmt: skip
def bad_line(trial: Trial, seconds: int) -> None:
    """Every packet is 100 ms late and one of ten is lost: a round trip takes 0.2 s, or 0.4, or 1.2.

    Elections are set for such a line, as docs/configuration.md says. The floor of traffic holds before the fault.
    """
    trial.begin()
    began_s = time.monotonic()
    with slow_wire(trial.network, delay_ms=100, loss_percent=10, seed=trial.report.seed):
        trial.run_for(seconds)
        ended_s = time.monotonic()
        submits = [one for one in trial.history.operations if one.kind == "submit" and began_s <= one.invoked_s]
        judged = [one for one in submits if one.invoked_s < ended_s - 10]
        late = sum(one.returned_s - one.invoked_s > 10 for one in judged)
        about = f"{late} of {len(judged)} submits"
        trial.expect("submits not acknowledged within 10 s", 100 * late / max(1, len(judged)), 1.0, "%", about=about)
        trial.expect("leader changes", trial.watch.changes(began_s, ended_s), 2, "")
    wait_until(trial.cluster.no_one_missing, within_s=30, what="all masters on a good line again")

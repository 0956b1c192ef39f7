"""F3 to F8: disks that lose power, fail, fill up, lie, and are slow."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from depalma.testing.chaos import checks, failpoints
from depalma.testing.chaos.damage import DAMAGES, Damage, judge_flips
from depalma.testing.chaos.failpoints import POINTS
from depalma.testing.chaos.mounts import power_cut
from depalma.testing.chaos.scenarios.crash import rejoined
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.slow import slowed
from depalma.testing.chaos.strace import first_failure, injected
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import TooLate, wait_until

#: writes go on so soon after one master has failed
RESUME_S = 3.0


# ---------------------------------------------------------------- F3


@scenario("F3", "power cut of one master, then of all", short={"times": 1}, whole={"times": 10},
          needs=("mount", "losetup", "mkfs.ext4"), agents=1, settings={"snapshot_every_entries": 60})  # fmt: skip
def cut_power(trial: Trial, times: int) -> None:
    """What was not synced is gone. Nobody writes back for 30 s, so that is everything that was not synced."""
    for name in trial.cluster.masters:
        trial.mounts.disk(trial.cluster.folder(name), _image(trial, name))
    trial.begin()
    starts = []
    for _ in range(times):
        for names in ([trial.random.choice(trial.cluster.masters)], trial.cluster.masters):
            trial.run_for(trial.random.uniform(1.0, 2.5))
            lose_power(trial, names)
            began_s = time.monotonic()
            trial.cluster.start(*names)
            trial.cluster.leader(within_s=20.0)
            starts.append(max(rejoined(trial, name) for name in names) + time.monotonic() - began_s)
    trial.expect("start after a power cut", max(starts), 5.0)


def lose_power(trial: Trial, names: Sequence[str]) -> None:
    """All these machines lose power at one moment; their disks hold what had reached them."""
    trial.cluster.signal(signal.SIGSTOP, *names)  # so that nothing is acknowledged between the copies
    for name in names:
        power_cut(_image(trial, name), _image(trial, name, ".cut"))
    trial.cluster.kill(*names)
    for name in names:
        folder = trial.cluster.folder(name)
        trial.mounts.unmount(folder)
        _image(trial, name, ".cut").rename(_image(trial, name))
        trial.mounts.disk(folder, _image(trial, name))


def _image(trial: Trial, name: str, suffix: str = "") -> Path:
    return trial.directory / f"{name}.img{suffix}"


# ---------------------------------------------------------------- F4


@scenario("F4", "SIGKILL at each point of the disk's work", short={"points": 6, "times": 1},
          whole={"points": len(POINTS), "times": 5}, agents=1, settings={"snapshot_every_entries": 60},
          sizes={"segment_bytes": 48 * 1024, "keep_entries": 20})  # fmt: skip
def die_at_failpoints(trial: Trial, points: int, times: int) -> None:
    """A master kills itself exactly there, and comes back."""
    trial.begin()
    chosen = trial.random.sample(sorted(POINTS), points)
    missed: list[str] = []
    rejoins = []
    for name in chosen * times:
        victim = trial.random.choice(trial.cluster.masters)
        if not _reach(trial, victim, name):
            missed.append(name)
        failpoints.disarm(trial.cluster.raft_folder(victim))
        trial.cluster.start(victim)
        rejoins.append(rejoined(trial, victim))
        wait_until(trial.cluster.no_one_missing, within_s=10, what="all masters answer")
    trial.note(f"places: {', '.join(sorted(chosen))}")
    died = points * times - len(missed)
    trial.require(not missed, f"only {died} of {points * times} failpoints were reached, not: {', '.join(missed)}")
    trial.expect_many("deaths at the place, each followed by a restart", died, points * times)
    trial.expect("rejoined", max(rejoins), 5.0)


def _reach(trial: Trial, victim: str, name: str) -> bool:
    """Lets the victim die at the point; returns whether it did. It does not run afterwards."""
    cluster, folder = trial.cluster, trial.cluster.raft_folder(victim)
    # Each child that writes a snapshot counts for itself, and most write and sync once.
    often = POINTS[name].operation in ("write", "sync") and name.startswith("append")
    count = trial.random.randrange(1, 6) if often else 1
    match POINTS[name].reached_by:
        case "load":
            failpoints.arm(folder, name, count)
        case "election":
            failpoints.arm(folder, name)
            leader = cluster.leader()
            if leader != victim:
                cluster.signal(signal.SIGSTOP, leader)
                _dead(trial, victim, 5.0)
                cluster.signal(signal.SIGCONT, leader)
            else:
                _disturb(trial, victim)
        case "restart":
            failpoints.arm(folder, "append-half", count)
            _dead(trial, victim, 20.0)
            failpoints.arm(folder, name)
            cluster.start(victim)
        case "install":
            cluster.kill(victim)
            _leave_behind(trial, victim)
            failpoints.arm(folder, name)
            cluster.start(victim)
    reached = _dead(trial, victim, 30.0)
    if not reached:
        cluster.kill(victim)
    return reached


def _dead(trial: Trial, name: str, within_s: float) -> bool:
    try:
        wait_until(lambda: not trial.cluster.running(name), within_s=within_s, what=f"{name} dies")
    except TooLate:
        return False
    return True


def _disturb(trial: Trial, leader: str) -> None:
    """The leader is cut off and comes back: it votes in the term that the others have reached, or the next."""
    trial.network.cut(leader, trial.cluster.masters)
    others = [name for name in trial.cluster.masters if name != leader]
    newer = trial.cluster.leader(among=others)
    trial.network.heal()
    if not _dead(trial, leader, 1.0):
        trial.cluster.signal(signal.SIGSTOP, newer)
        _dead(trial, leader, 5.0)
        trial.cluster.signal(signal.SIGCONT, newer)


def _leave_behind(trial: Trial, name: str) -> None:
    """Returns when the others no longer hold the entries that the stopped master would need."""
    others = [other for other in trial.cluster.masters if other != name]
    held = {other: _oldest_segment(trial, other) for other in others}
    wait_until(
        lambda: all(_oldest_segment(trial, other) > held[other] + 1 for other in others),
        within_s=30.0,
        what="the others drop old segments",
        every_s=0.05,
    )


def _oldest_segment(trial: Trial, name: str) -> int:
    names = sorted(path.name for path in trial.cluster.raft_folder(name).glob("journal-*.seg"))
    return int(names[0].split("-")[1].split(".")[0]) if names else 0


# ---------------------------------------------------------------- F5, F6


@scenario("F5", "fsync fails (EIO), on a follower and on the leader", short={"times": 1}, whole={"times": 5},
          needs=("strace",))  # fmt: skip
def fail_syncs(trial: Trial, times: int) -> None:
    """A master that cannot sync says so and stops, before it has acknowledged anything more."""
    trial.begin()
    for i in range(2 * times):
        leader = trial.cluster.leader()
        victim = leader if i % 2 else trial.random.choice(trial.cluster.followers())
        failed_s = time.monotonic()
        log = trial.directory / f"strace-{i}"
        with injected(trial.cluster.pid(victim), "error=EIO", log):
            stops_with_a_message(trial, victim, failed_s, errno_word="Input/output error")
        _acknowledges_nothing(trial, victim, first_failure(log), failed_s + 20.0)
        if victim == leader:
            trial.failover(failed_s, not_by=victim)
        else:
            trial.acknowledged_again(failed_s, RESUME_S)
        trial.cluster.start(victim)
        rejoined(trial, victim)
    trial.expect_failovers(p99_s=RESUME_S)


def _acknowledges_nothing(trial: Trial, name: str, failed_s: float, until_s: float) -> None:
    """Requires that a master whose sync has failed acknowledged no write that was asked afterwards."""
    told = [
        one
        for one in checks.acknowledged(list(trial.history.operations))
        if one.master == name and failed_s < one.invoked_s < until_s
    ]
    wrong = f"{name} acknowledged {len(told)} writes after its sync had failed, first {next(iter(told), None)}"
    trial.none_of("writes acknowledged after a failed sync", len(told), wrong)
    trial.require(failed_s < until_s, f"no sync of {name} failed")


def stops_with_a_message(trial: Trial, name: str, since_s: float, *, errno_word: str) -> None:
    """Requires that a master ends by itself with code 1 and words that name the file and the next step."""
    wait_until(lambda: not trial.cluster.running(name), within_s=20, what=f"{name} stops after {errno_word}")
    trial.expect("stopped after the error", time.monotonic() - since_s, 2.0, about=f"{name}, {errno_word}")
    code = trial.cluster.daemons[name].exit_code
    trial.require(code == 1, f"{name} ended with {code} after {errno_word}, not with 1")
    words = trial.cluster.daemons[name].last_lines(40)
    named = str(trial.cluster.raft_folder(name)) in words
    trial.require(errno_word in words and named, f"{name} does not say what failed and where:\n{words}")
    trial.require("Traceback" not in words, f"{name} hides its message in a traceback:\n{words}")


@scenario("F6", "the disk of a master is full", short={"times": 1}, whole={"times": 3}, needs=("mount",))
def fill_disk(trial: Trial, times: int) -> None:
    """A small file system runs full; the others go on; with space it comes back."""
    victims = trial.random.sample(trial.cluster.masters, 2)
    for name in victims:
        trial.mounts.tmpfs(trial.cluster.folder(name), 24 << 20)
    trial.begin()
    for victim in victims * times:
        before = _rate(trial, 3.0)
        filled_s = time.monotonic()
        filler = trial.cluster.folder(victim) / "filler"
        fill(filler)
        stops_with_a_message(trial, victim, filled_s, errno_word="No space left on device")
        trial.acknowledged_again(filled_s, RESUME_S)
        trial.run_for(1.0)
        during = _rate(trial, 5.0)
        about = f"{before:.0f} operations a second before, {during:.0f} with the disk of {victim} full"
        trial.expect("operations before, over those with a full disk", before / during, 1 / 0.9, "", about=about)
        filler.unlink()
        trial.cluster.start(victim)
        trial.expect("rejoined after space returned", rejoined(trial, victim), 30.0, about=victim)


def fill(filler: Path) -> None:
    """Takes all the space that is left."""
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


def _rate(trial: Trial, seconds: float) -> float:
    began_s = time.monotonic()
    trial.run_for(seconds)
    return trial.load.rate(began_s)


# ---------------------------------------------------------------- F7


@scenario("F7", "flipped bits, torn tails, zeroed pages", short={"flips": 60, "damages": 3},
          whole={"flips": 200, "damages": 12}, settings={"snapshot_every_entries": 120})  # fmt: skip
def damage_files(trial: Trial, flips: int, damages: int) -> None:
    """A master is killed, its files are damaged, and it is started again: it never goes on with what is not true."""
    trial.begin()
    trial.run_for(3.0)
    kinds = list(DAMAGES.values())
    for i in range(damages):
        victim = trial.random.choice(trial.cluster.followers())
        trial.cluster.kill(victim)
        if i == 0:
            judge_flips(trial, trial.cluster.raft_folder(victim), flips)
        _damage(trial, victim, kinds[i % len(kinds)])
        trial.run_for(0.5)


def _damage(trial: Trial, victim: str, damage: Damage) -> None:
    folder = trial.cluster.raft_folder(victim)
    what = damage.do(folder, trial.random)
    trial.cluster.start(victim)
    began_s = time.monotonic()
    if damage.torn:
        rejoined(trial, victim)
        cut = "unfinished write" in trial.cluster.daemons[victim].last_lines(200)
        trial.require(cut, f"{what}: {victim} does not say that it cut the journal")
        return
    wait_until(lambda: not trial.cluster.running(victim), within_s=10, what=f"{victim} refuses to start: {what}")
    code, words = trial.cluster.daemons[victim].exit_code, trial.cluster.daemons[victim].last_lines(5)
    trial.require(code == 1, f"{what}: {victim} ended with {code}")
    trial.require(str(folder) in words and "damaged" in words, f"{what}: {victim} does not name the file:\n{words}")
    folder.rename(folder.with_name(f"raft.damaged-{time.monotonic_ns()}"))
    trial.cluster.start(victim)
    rejoined(trial, victim)
    trial.expect("rebuilt from the others", time.monotonic() - began_s, 30.0, about=f"{victim}, {damage.name}")


# ---------------------------------------------------------------- F8


@scenario("F8", "a slow disk on the leader, then a master with 10 % of a CPU", short={"seconds": 8.0},
          whole={"seconds": 60.0}, needs=("strace",), load={"clients": 16})  # fmt: skip
def slow_down(trial: Trial, seconds: float) -> None:
    """Each sync of the leader takes half a second longer; later one master gets a tenth of a core."""
    trial.begin()
    for what in ("disk", "cpu"):
        leader = trial.cluster.leader()
        began_s = time.monotonic()
        if what == "disk":
            with injected(trial.cluster.pid(leader), "delay_enter=500000", trial.directory / "strace-slow"):
                trial.run_for(seconds)
        else:
            with slowed(trial.cluster.pid(trial.random.choice(trial.cluster.masters)), 0.1):
                trial.run_for(seconds)
        ended_s = time.monotonic()
        changes = trial.watch.changes(began_s, ended_s)
        trial.expect(f"leader changes with a slow {what}", changes, 2, "")
        trial.expect(f"submit p99 with a slow {what}", trial.latency("submit", began_s, ended_s, 99), 3.0)
        trial.run_for(2.0)

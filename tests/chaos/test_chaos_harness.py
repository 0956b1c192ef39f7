"""The harness itself: it does what it says to networks, and leaves nothing behind, whatever happens in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from depalma.testing.chaos import network
from depalma.testing.chaos.failpoints import POINTS
from depalma.testing.chaos.marks import is_left_over, is_own, mark
from depalma.testing.chaos.mounts import Mounts, mounted_below, power_cut
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.scenarios.disk import lose_power
from depalma.testing.chaos.shell import ToolFailed, run
from depalma.testing.chaos.strace import injected
from depalma.testing.chaos.sweep import sweep
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until
from depalma.testing.chaos.wire import slow_wire

pytestmark = [pytest.mark.chaos_short, pytest.mark.timeout(120)]


def reaches(net: Network, source: str, target: str) -> bool:
    """Whether packets pass both ways."""
    done = subprocess.run(
        net.inside(source, sys.executable, "-c", _KNOCK, net.address(target)), capture_output=True, check=False
    )
    return done.returncode == 0


#: A TCP connection to a port where nobody listens: "refused" is an answer, silence is none.
_KNOCK = textwrap.dedent("""
    import socket, sys
    try:
        socket.create_connection((sys.argv[1], 9), timeout=0.3)
    except ConnectionRefusedError:
        sys.exit(0)
    except OSError:
        sys.exit(1)
""")


def links_outside() -> str:
    return run("ip", "-o", "link", "show")


def test_hosts_reach_each_other_until_they_are_cut_and_again_when_healed(needs: Callable[..., None]) -> None:
    needs()
    with Network(["a", "b", "c"]) as net:
        assert reaches(net, "a", "b")

        net.cut("a", ["b"])
        assert not reaches(net, "a", "b")
        assert not reaches(net, "b", "a")
        assert reaches(net, "a", "c")

        net.heal()
        assert reaches(net, "a", "b")

        net.link("a", up=False)
        assert not reaches(net, "c", "a")
        net.link("a", up=True)
        assert reaches(net, "c", "a")


@pytest.mark.parametrize("how", ["deafen", "silence"])
def test_a_host_that_is_cut_off_by_its_own_rules_is_healed_alone(needs: Callable[..., None], how: str) -> None:
    needs()
    with Network(["a", "b", "c"]) as net:
        net.cut("b", ["c"])
        getattr(net, how)("a", ["b"])
        assert not reaches(net, "a", "b")
        assert reaches(net, "a", "c")

        net.heal("a")
        assert reaches(net, "a", "b")
        assert not reaches(net, "b", "c")


def test_a_block_is_one_way(needs: Callable[..., None]) -> None:
    """A TCP conversation dies of it in both directions, packets do not."""
    needs()
    with Network(["a", "b"]) as net:
        net.block(["a"], "b")
        opened = "import socket; s = socket.socket(type=socket.SOCK_DGRAM)"
        receive = f"{opened}; s.settimeout(0.5); s.bind(('', 7)); print('up', flush=True); s.recv(9)"
        for source, target, arrives in (("a", "b", False), ("b", "a", True)):
            listener = subprocess.Popen(
                net.inside(target, sys.executable, "-c", receive), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert listener.stdout is not None
            listener.stdout.readline()
            send = f"{opened}; s.sendto(b'x', ('{net.address(target)}', 7))"
            subprocess.run(net.inside(source, sys.executable, "-c", send), check=True)
            assert (listener.wait() == 0) is arrives
            listener.stdout.close()


def fail_inside(net: Network, sleepers: list[subprocess.Popen[bytes]]) -> None:
    with net:
        sleepers.append(subprocess.Popen(net.inside("a", "sleep", "600"), start_new_session=True))
        run("ip", "no-such-command")


def test_nothing_of_a_network_is_seen_outside_and_nothing_stays(needs: Callable[..., None]) -> None:
    needs()
    links, home = links_outside(), os.readlink("/proc/thread-self/ns/net")
    with Network(["a", "b"]) as net:
        assert os.readlink("/proc/thread-self/ns/net") != home
        assert run("nsenter", f"--net=/proc/{os.getppid()}/ns/net", "ip", "-o", "link", "show") == links
    sleepers: list[subprocess.Popen[bytes]] = []

    with pytest.raises(ToolFailed):
        fail_inside(net, sleepers)

    assert os.readlink("/proc/thread-self/ns/net") == home
    assert links_outside() == links
    assert network.leftovers() == []
    assert sleepers[0].wait(timeout=60) in (-signal.SIGKILL, 0)  # 0: whoever removed the namespace has reaped it


def test_a_run_that_is_told_to_stop_leaves_nothing(needs: Callable[..., None], tmp_path: Path) -> None:
    needs()
    argv = [sys.executable, "-m", "depalma.testing.chaos.runner", "F1", "--short", "--dir", str(tmp_path)]
    runner = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("*/m1/raft/journal*")), within_s=60, what="a master that runs")

    its_mark = mark(runner.pid)
    runner.terminate()

    assert runner.wait(timeout=60) == 128 + signal.SIGTERM
    assert not list(Path("/run/netns").glob(f"{its_mark}*"))


def processes_of(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if str(folder) in words:
            found.append(words)
    return found


def test_a_run_that_is_killed_is_swept_away_by_the_next(needs: Callable[..., None], tmp_path: Path) -> None:
    """Masters, agents, tracers and switches; namespaces; mounts and their loop devices; groups of the scheduler."""
    needs("mount", "losetup", "mkfs.ext4")
    argv = [sys.executable, "-m", "depalma.testing.chaos.runner", "F3", "--short", "--dir", str(tmp_path)]
    runner = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("*/m1/raft/journal*")), within_s=60, what="a master that runs")
    its_mark = mark(runner.pid)
    group = Path(f"/sys/fs/cgroup/cpu/{its_mark}1")
    if group.parent.is_dir() and os.access(group.parent, os.W_OK):
        group.mkdir()
    runner.kill()
    runner.wait()
    assert mounted_below(tmp_path)
    assert processes_of(tmp_path)

    sweep()

    assert not list(Path("/run/netns").glob(f"{its_mark}*"))
    assert mounted_below(tmp_path) == []
    wait_until(lambda: processes_of(tmp_path), lambda left: not left, within_s=60, what="no process is left")
    wait_until(
        lambda: run("losetup", "--list", "--noheadings", "--output", "BACK-FILE"),
        lambda text: str(tmp_path) not in text,
        within_s=60,
        what="no loop device is left",
    )
    assert not group.exists()


def test_a_pid_that_is_used_again_does_not_hide_what_was_left() -> None:
    own = mark()
    pid, started = own.removeprefix("dpc-").rstrip("-").split("-")
    gone = subprocess.Popen(["sleep", "60"])
    gone_mark = mark(gone.pid)
    gone.kill()
    gone.wait()

    assert is_own(f"{own}m1")
    assert not is_left_over(f"{own}m1")
    assert is_left_over(f"dpc-{pid}-{int(started) - 1}-m1"), "another process had this pid before us"
    assert is_left_over(f"{gone_mark}m1")
    assert is_left_over(f"dpc-{gone.pid}-m1"), "of an earlier release"
    assert not is_left_over(f"dpc-{pid}-m1")
    assert not is_left_over("somebody-elses")


def test_what_a_killed_run_left_is_swept_away(needs: Callable[..., None]) -> None:
    needs()
    program = textwrap.dedent("""
        import os, signal, subprocess
        from depalma.testing.chaos.network import Network
        net = Network(["a"])
        net.__enter__()
        child = subprocess.Popen(net.inside("a", "sleep", "600"), start_new_session=True, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert network.leftovers()

    network.sweep()

    assert network.leftovers() == []
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_a_run_without_load_is_void_and_leaves_nothing(needs: Callable[..., None], tmp_path: Path) -> None:
    needs()
    with Trial("X", "too quiet", tmp_path / "x", seed=1, agents=0, floor=1e9) as trial:
        trial.cluster.start()
        trial.cluster.wait_ready()
        trial.load.start()
        trial.wait_for_traffic(within_s=0.1)

    assert trial.report.verdict == "void"
    assert "operations a second" in trial.report.void
    assert network.leftovers() == []
    assert not any(trial.cluster.running(name) for name in trial.cluster.masters)


def test_a_lost_write_is_found(needs: Callable[..., None], tmp_path: Path) -> None:
    """All masters lose their disks: everything that was acknowledged is gone, and the run says so and keeps proof."""
    needs()
    with Trial("X", "amnesia", tmp_path / "x", seed=1, agents=0) as trial:
        trial.begin()
        trial.cluster.kill(*trial.cluster.masters)
        for name in trial.cluster.masters:
            run("rm", "-r", str(trial.cluster.raft_folder(name)))
        trial.cluster.start(*trial.cluster.masters)
        trial.cluster.leader(within_s=60.0)

    assert trial.report.verdict == "BROKEN"
    assert trial.report.lost > 50
    assert any(line.startswith("I7") for line in trial.report.violations)
    assert (tmp_path / "x" / "history.jsonl").stat().st_size > 0
    assert (tmp_path / "x" / "log" / "m1.log").exists()


def echoes(net: Network, name: str, times: int) -> list[float]:
    """Seconds for a byte and its echo, over one connection to a server on that host."""
    with subprocess.Popen(net.inside(name, sys.executable, "-c", _ECHO), stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with socket.create_connection((net.address(name), 9), timeout=20) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            took = []
            for _ in range(times):
                began_s = time.monotonic()
                peer.sendall(b"x")
                peer.recv(1)
                took.append(time.monotonic() - began_s)
        server.kill()
    return took


_ECHO = """
import socket
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("", 9)); server.listen(); print("up", flush=True)
peer, _ = server.accept()
while data := peer.recv(100): peer.sendall(data)
"""


def test_a_slow_wire_is_as_late_as_asked_and_loses_packets(needs: Callable[..., None]) -> None:
    needs()
    with Network(["a", "b"]) as net:
        assert min(echoes(net, "a", 5)) < 0.02
        with slow_wire(net, delay_ms=30, loss_percent=0, seed=1):
            assert 0.06 <= min(echoes(net, "a", 5)) < 0.09
            assert reaches(net, "a", "b")
        with slow_wire(net, delay_ms=1, loss_percent=30, seed=2):
            assert max(echoes(net, "b", 12)) > 0.1  # a lost packet is sent again after 0.2 s at the earliest
        assert min(echoes(net, "b", 5)) < 0.02


def test_a_power_cut_keeps_what_was_synced_and_nothing_else(needs: Callable[..., None], tmp_path: Path) -> None:
    needs("mount", "losetup", "mkfs.ext4")
    folder, image, cut = tmp_path / "disk", tmp_path / "image", tmp_path / "cut"
    mounts = Mounts(tmp_path)
    try:
        mounts.disk(folder, image, size_mib=16)
        for name, synced in (("synced", True), ("not-synced", False)):
            descriptor = os.open(folder / name, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b"x" * 10_000)
            if synced:
                os.fsync(descriptor)
            os.close(descriptor)
        with (folder / "synced").open("ab") as file:
            file.write(b"y" * 10_000)

        power_cut(image, cut)
        mounts.unmount(folder)
        mounts.disk(folder, cut)

        assert (folder / "synced").read_bytes() == b"x" * 10_000
        assert not (folder / "not-synced").exists()
    finally:
        mounts.close()
    assert mounted_below(tmp_path) == []
    assert str(tmp_path) not in run("losetup", "--list", "--output", "BACK-FILE")


def test_a_power_cut_finds_masters_that_do_not_sync(needs: Callable[..., None], tmp_path: Path) -> None:
    """Syncs that do nothing (the kernel is told to skip them) lose acknowledged writes, and the run says so."""
    needs("mount", "losetup", "mkfs.ext4", "strace")
    with Trial("X", "no syncs", tmp_path / "x", seed=1, agents=0) as trial:
        masters = trial.cluster.masters
        for name in masters:
            trial.mounts.disk(trial.cluster.folder(name), trial.directory / f"{name}.img")
        trial.begin()
        with ExitStack() as lying:
            for name in masters:
                lying.enter_context(injected(trial.cluster.pid(name), "retval=0", tmp_path / f"strace-{name}"))
            trial.run_for(1.5)
            lose_power(trial, masters)
        trial.cluster.start(*masters)
        trial.cluster.leader(within_s=60.0)

    assert trial.report.verdict == "BROKEN"
    noticed = any("lost acknowledged entries" in line for line in trial.report.violations)  # by a master itself
    assert noticed or trial.report.lost > 10, trial.report.lines()


def test_every_failpoint_is_a_place_of_the_disk() -> None:
    """A name that no operation reaches would never kill anybody (F4 requires that each did)."""
    operations = {"write", "vote", "sync", "create", "rename", "remove", "truncate", "sync_dir"}

    assert {point.operation for point in POINTS.values()} == operations
    assert {point.when for point in POINTS.values()} == {"before", "half", "after"}
    assert len(POINTS) >= 12


def crash(trial: Trial) -> None:
    with trial:
        trial.cluster.start()
        trial.cluster.signal(signal.SIGSTOP, "m1", "h1")
        raise ZeroDivisionError


def test_a_crash_of_the_harness_leaves_nothing(needs: Callable[..., None], tmp_path: Path) -> None:
    needs()
    trial = Trial("X", "own bug", tmp_path / "x", seed=1)

    with pytest.raises(ZeroDivisionError):
        crash(trial)

    assert network.leftovers() == []
    assert not any(trial.cluster.running(name) for name in ("m1", "m2", "m3", "h1", "h2"))

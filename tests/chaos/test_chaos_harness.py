"""The harness itself: it does what it says to networks, and leaves nothing behind, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from depalma.testing.chaos import network
from depalma.testing.chaos.network import Network
from depalma.testing.chaos.shell import ToolFailed, run
from depalma.testing.chaos.trial import Trial

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
    assert sleepers[0].wait(timeout=1) in (-signal.SIGKILL, 0)  # 0: whoever removed the namespace has reaped it


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
        trial.cluster.leader(within_s=20.0)

    assert trial.report.verdict == "BROKEN"
    assert trial.report.lost > 50
    assert any(line.startswith("I7") for line in trial.report.violations)
    assert (tmp_path / "x" / "history.jsonl").stat().st_size > 0
    assert (tmp_path / "x" / "log" / "m1.log").exists()


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

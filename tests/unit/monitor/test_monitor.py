"""The supervisor by itself: what it does when nobody tells it anything."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from depalma.agent.cgroups import own_places
from depalma.monitor import _COALESCE_S, boottime


def test_nothing_starts_without_a_lease(monitor) -> None:
    monitor.spawn(1, "true")
    assert monitor.exit(1) == (126, "the host's lease is over")

    monitor.lease()
    monitor.spawn(2, "true")
    assert monitor.exit(2) == (0, "")


def test_the_deadline_kills_although_the_agent_says_nothing(monitor) -> None:
    monitor.lease()
    hides = "trap '' TERM; setsid sleep 3001 & (setsid env -i sleep 3001 &); while :; do sleep 3001; done"
    for slot in range(3):
        monitor.spawn(slot + 1, "sh", "-c", hides, slot=slot)
    monitor.listen(lambda: monitor.sleeping() == 9 and len(monitor.below()) == 12, "trees")
    monitor.lease(0.4)

    monitor.listen(lambda: not monitor.below(), "end of the trees")

    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")
    assert monitor.exits == {}
    monitor.spawn(9, "true")
    assert monitor.exit(9)[1] == "the host's lease is over"


HOPS = """
import os, time
if os.fork():
    time.sleep(3005)
while True:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


def test_what_never_has_the_same_process_id_for_long_dies_at_the_deadline(monitor) -> None:
    monitor.lease()
    for key in range(1, 4):
        monitor.spawn(key, sys.executable, "-S", "-c", HOPS, slot=key)
    monitor.listen(lambda: len(monitor.below()) >= 3, "their first processes")

    monitor.lease(0.2)

    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")
    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "an answer: all are dead then")
    assert monitor.below() == []


def test_control_groups_are_used_where_they_can_be_and_removed(monitor) -> None:
    ready = monitor.listen(lambda: [message for message in monitor.heard if message[0] == "ready"], "its first word")
    if "kill" not in ready[0][1]:
        pytest.skip("this machine lets us make no control group of version 2")
    own = Path(own_places()["v2"]) / f"depalma-{monitor.process.pid}"
    assert str(monitor.process.pid) in (own / "tasks" / "cgroup.procs").read_text().split()
    monitor.lease()
    monitor.spawn(1, "sleep", "3004")
    monitor.listen(lambda: len((own / "tasks" / "cgroup.procs").read_text().split()) == 2, "process in its group")

    monitor.channel.close()

    assert monitor.process.wait(30) == 0
    assert not own.exists()


def test_groups_of_a_killed_monitor_are_removed_by_the_next(supervise, tmp_path: Path) -> None:
    if "v2" not in own_places():
        pytest.skip("this machine has no control groups of version 2")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = supervise(tmp_path / "a")
    first.listen(lambda: first.heard, "its first word")
    first.process.kill()
    first.close()

    second = supervise(tmp_path / "b")
    try:
        second.listen(lambda: second.heard, "its first word")
        assert not (Path(own_places()["v2"]) / f"depalma-{first.process.pid}").exists()
    finally:
        second.close()


def test_renewals_move_the_deadline(monitor) -> None:
    """Also if two have come while the monitor stood still, and the first of them is over by now."""
    monitor.lease()
    monitor.spawn(1, "sleep", "3002")
    monitor.listen(lambda: monitor.sleeping() == 1, "process")

    monitor.say(("lease", boottime() - 1.0), ("lease", boottime() + 60.0), ("kill", 1, 30.0))

    assert monitor.exit(1) == (-signal.SIGTERM, "")
    assert not [message for message in monitor.heard if message[0] == "expired"]


def test_a_deadline_in_the_past_is_one(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sleep", "3002")
    monitor.listen(monitor.below, "process")

    monitor.lease(-1)

    monitor.listen(lambda: not monitor.below(), "end")


def test_the_agents_death_kills_frees_the_lock_and_ends(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", "trap '' TERM; (setsid sleep 3003 &); while :; do sleep 3003; done")
    processes = monitor.listen(lambda: monitor.sleeping() == 2 and monitor.below(), "tree")
    fd = os.open(monitor.root / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monitor.channel.close()

    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)
    assert not [process for process in processes if process.is_running()]
    assert monitor.process.wait(30) == 0


def test_commands_of_one_slot_run_one_after_the_other(monitor, tmp_path: Path) -> None:
    monitor.lease()
    log = tmp_path / "log"
    for key in range(1, 20):
        monitor.spawn(key, "sh", "-c", f"echo begin >> {log}; sleep 0.01; echo end >> {log}")
    for key in range(1, 20):
        assert monitor.exit(key) == (0, "")

    assert log.read_text().split() == ["begin", "end"] * 19


def test_ends_are_told_together_while_more_waits_and_at_once_when_not(monitor, tmp_path: Path) -> None:
    """However fast commands end: telling one by one cost masters and agents more than running them."""
    monitor.lease()
    gate = tmp_path / "gate"
    monitor.spawn(1, "sh", "-c", f"until test -e {gate}; do sleep 0.01; done", slot=0)
    for key in range(2, 41):
        monitor.spawn(key, "true", slot=0)
    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "word that it has all of them")
    begun = time.monotonic()
    gate.touch()
    monitor.listen(lambda: len(monitor.exits) == 40, "40 ends")
    told = sum(message[0] == "exits" for message in monitor.heard)
    assert told <= (time.monotonic() - begun) / _COALESCE_S + 2
    for key in range(41, 1041):  # one that is told in time is enough: those that wait for company all take longer
        monitor.spawn(key, "true", slot=0)
        monitor.exit(key)
        if time.time() - monitor.exits[key][3] < _COALESCE_S:
            return
    pytest.fail("the last one of a slot waits as if more came")


def test_a_recall_takes_back_what_has_not_started(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sleep", "3004")
    monitor.spawn(2, "true")
    monitor.spawn(3, "true")
    monitor.say(("recall", 77, 0))

    monitor.listen(lambda: ("recalled", 77, [2, 3]) in monitor.heard, "answer")
    monitor.say(("kill", 1, 0.0))
    assert monitor.exit(1) == (-signal.SIGKILL, "")
    monitor.spawn(4, "true")
    assert monitor.exit(4) == (0, "")
    assert not {2, 3} & monitor.exits.keys()


def test_ends_are_told_before_the_answer_to_a_recall(monitor) -> None:
    monitor.lease()
    for key in range(1, 30):
        monitor.spawn(key, "true")
    monitor.listen(lambda: monitor.exits, "first end")
    monitor.say(("recall", 5, 0))
    answer = monitor.listen(lambda: [m for m in monitor.heard if m[0] == "recalled"], "answer")[0]

    place = monitor.heard.index(answer)
    told = {ended[0] for message in monitor.heard[:place] if message[0] == "exits" for ended in message[1]}
    later = set(range(1, 30)) - told - set(answer[2])
    assert len(later) <= 1  # the one that was running


def test_a_grace_is_given_and_ends(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.01; done", slot=0)
    monitor.spawn(2, "sh", "-c", "trap '' TERM; while :; do sleep 0.01; done", slot=1)
    monitor.listen(lambda: len(monitor.below()) >= 4, "both")
    begun = time.monotonic()
    monitor.say(("kill", 1, 30.0), ("kill", 2, 0.5))

    assert monitor.exit(1) == (7, "")
    assert monitor.exit(2) == (-signal.SIGKILL, "")
    assert 0.5 <= time.monotonic() - begun < 25.0, "it had the grace of the other"


def test_a_stopped_process_hears_its_sigterm(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sleep", "3005")
    # Not before it has become `sleep`: a child that is stopped before its exec holds up who started it (vfork).
    monitor.listen(lambda: monitor.sleeping() == 1, "process")
    process = monitor.below()[0]
    process.suspend()

    monitor.say(("kill", 1, 30.0))

    assert monitor.exit(1) == (-signal.SIGTERM, "")


def test_an_orphan_without_a_marker_lives_as_long_as_it_may_belong_to_somebody(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sleep", "3006", slot=0)
    monitor.spawn(2, "sh", "-c", "env -i setsid sh -c 'sleep 3007 &'", slot=1)
    assert monitor.exit(2) == (0, "")
    # The shell ends before the child that it left behind has become `sleep`.
    monitor.listen(lambda: monitor.sleeping() == 2, "orphan beside the task that is left")

    monitor.say(("kill", 1, 0.0))

    monitor.listen(lambda: not monitor.below(), "end of both")


def test_output_goes_to_its_place_and_is_cut(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", f"head -c {3 * monitor.limit_bytes} /dev/zero; echo e >&2")
    monitor.spawn(2, "true")
    monitor.exit(2)

    assert (monitor.root / "output/1.out").stat().st_size == monitor.limit_bytes
    assert (monitor.root / "output/1.err").read_bytes() == b"e\n"
    assert sorted(path.name for path in (monitor.root / "output").iterdir()) == ["1.err", "1.out"]


def test_each_task_reads_what_it_is_given_from_its_beginning(monitor, tmp_path: Path) -> None:
    monitor.lease()
    file = tmp_path / "large"
    file.write_bytes(b"x" * 300_000)
    for key, stdin in ((1, b"few words"), (2, str(file)), (3, str(file)), (4, b""), (5, f"{tmp_path}/nowhere")):
        monitor.spawn(key, "sh", "-c", "wc -c; readlink /proc/self/fd/0", stdin=stdin)
    ended = [monitor.exit(key) for key in range(1, 6)]
    outputs = [Path(f"{monitor.root}/output/{key}.out").read_text().split() for key in range(1, 5)]
    assert [words[0] for words in outputs] == ["9", "300000", "300000", "0"]
    assert outputs[3][1] == "/dev/null"
    assert [status for status, *_ in ended] == [0, 0, 0, 0, 126]
    assert "nowhere: No such file" in ended[4][1]


def test_output_of_a_killed_task_is_kept(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", "echo so far; exec sleep 3008")
    monitor.listen(monitor.sleeping, "sleep")

    monitor.say(("kill_all", 5))
    monitor.listen(lambda: ("all_dead", 5) in monitor.heard, "word of it")

    assert not monitor.below()
    assert (monitor.root / "output/1.out").read_bytes() == b"so far\n"
    assert monitor.exits == {}


def test_a_fifo_that_nobody_reads_does_not_hold_up_the_rest(monitor, tmp_path: Path) -> None:
    monitor.lease()
    os.mkfifo(tmp_path / "fifo")
    files = (f">{tmp_path}/fifo", f"{monitor.root}/output/1.err")
    monitor.say(("spawn", 1, [b"true"], 1, {}, "", files, 0, False, (), ("", "")))

    code, error = monitor.exit(1)

    assert code == 126
    assert "fifo" in error


def test_descriptors_reach_their_process(monitor) -> None:
    monitor.lease()
    near, far = socket.socketpair()
    files = (f"{monitor.root}/o", f"{monitor.root}/e")
    message = ("spawn", 1, [b"sh", b"-c", b"echo hello >&3"], 1, {}, "", files, -1, True, (), ("", ""))
    monitor.say(message, fd=os.dup(far.fileno()))
    far.close()

    assert monitor.exit(1) == (0, "")
    assert near.recv(100) == b"hello\n"
    assert near.recv(100) == b""  # nobody else holds it
    near.close()


def test_children_get_the_usual_signals_and_no_foreign_descriptors(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd | wc -l")
    monitor.exit(1)

    lines = (monitor.root / "output/1.out").read_text().split()
    of_the_c_library = (1 << 31) | (1 << 32)
    assert [int(lines[number], 16) & ~of_the_c_library for number in (1, 3)] == [0, 0]
    assert int(lines[4]) <= 5  # 0, 1, 2, the folder that ls reads, the pipe


def test_it_answers_and_shows_trees(monitor) -> None:
    monitor.lease()
    monitor.spawn(1, "sh", "-c", "sleep 3009 & (setsid sleep 3009 &) ; wait")
    monitor.listen(lambda: monitor.sleeping() == 2 and len(monitor.below()) == 3, "tree")
    monitor.say(("ping", 1), ("trees", 2))

    trees = monitor.listen(lambda: [m for m in monitor.heard if m[0] == "trees"], "trees")[0]

    assert ("pong", 1) in monitor.heard
    assert {pid for _, pids in trees[2] for pid in pids} == {process.pid for process in monitor.below()}


def test_it_starts_fast_and_imports_little(monitor) -> None:
    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "first word")

    maps = Path(f"/proc/{monitor.process.pid}/maps").read_text()
    assert "site-packages" not in maps
    assert psutil.Process(monitor.process.pid).memory_info().rss < 40 * 1024 * 1024


def test_a_forked_worker_is_adopted_however_soon_it_ends(monitor, tmp_path: Path) -> None:
    """Its end may be seen before anybody has said whose it is."""
    monitor.lease()
    program = tmp_path / "forks.py"
    program.write_text(
        "import os, sys, time\n"
        "for code in (3, 4):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            start = open('/proc/self/stat').read().rpartition(')')[2].split()[19]\n"
        "            open(sys.argv[1] + str(code), 'w').write(f'{os.getpid()} {start}')\n"
        "            if code == 4: time.sleep(0.5)\n"
        "            os._exit(code)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "time.sleep(60)\n"
    )
    monitor.say(("spawn", 1, [os.fsencode(sys.executable), b"-S", os.fsencode(program), os.fsencode(tmp_path / "w")],
                 1, {}, "", ("", ""), -2, False, (), ("", "")))  # fmt: skip
    told: dict[int, list[int]] = {}

    def look() -> bool:
        for code in (3, 4):
            path = tmp_path / f"w{code}"
            if path.exists() and len(words := path.read_text().split()) == 2:
                told[code] = [int(word) for word in words]
        return len(told) == 2 and not Path(f"/proc/{told[3][0]}").exists()

    monitor.listen(look, "both workers, one of them gone")
    for key, code in ((10, 3), (11, 4)):
        monitor.say(("adopt", key, *told[code]))

    assert (monitor.exit(10)[0], monitor.exit(11)[0]) == (3, 4)
    monitor.say(("adopt", 12, 1, 1))
    assert monitor.exit(12)[0] == -9  # no child of its own: nothing is known of it, so it counts as killed

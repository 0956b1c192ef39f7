"""What a real agent does when the owner of its machine comes back, by the owner's switch and by policy."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil

from depalma import pausing
from depalma.model import JobSpec
from depalma.ownership import Pause
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until
from tests.integration.conftest import running

#: A tree that hides, and tidies up when it is told to end.
TREE = """
trap 'echo warned >>witness; echo tidy >>witness; exit 0' TERM
(setsid env -i sleep 3201 &)
setsid sleep 3201 &
echo began >>witness
while :; do sleep 0.02; done
"""
FUNCTION = "import time\ndef wait(folder):\n    open(folder + '/began', 'w').close()\n    time.sleep(3201)\n"
GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def words(folder: Path) -> list[str]:
    file = folder / "witness"
    return file.read_text().split() if file.exists() else []


def tree(agent: AgentProcess) -> list[psutil.Process]:
    """Returns what lives below the monitor."""
    monitor = agent.monitor_pid()
    if not monitor:
        return []
    found = []
    for process in psutil.Process(monitor).children(recursive=True):
        try:
            if process.status() not in GONE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def states(agent: AgentProcess) -> set[str]:
    found = set()
    for process in tree(agent):
        try:
            found.add(process.status())
        except psutil.NoSuchProcess:
            continue
    return found


def is_still(agent: AgentProcess) -> bool:
    """A parent whose child was stopped between vfork and exec waits for it, and is shown as in the disk."""
    seen = states(agent)
    return psutil.STATUS_STOPPED in seen and seen <= {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP}


def nices(agent: AgentProcess) -> set[int]:
    found = set()
    for process in tree(agent):
        try:
            found.add(process.nice())
        except psutil.NoSuchProcess:
            continue
    return found


async def started(leader: FakeLeader, folder: Path, **spec: object) -> None:
    fields = {"cwd": str(folder), "grace_s": 20.0, **spec}
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", TREE), **fields))  # type: ignore[arg-type]
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: words(folder) == ["began"], "start")


def pause(agent: AgentProcess, for_s: float | None = None) -> None:
    now = time.time()
    pausing.begin(agent.root, Pause(now, None if for_s is None else now + for_s, "ada"))


async def test_a_paused_host_lowers_stops_and_moves_its_tasks_in_this_order(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    await leader.set_owner(lower_s=0.0, suspend_s=1.0, warn_s=3600.0, requeue_s=3700.0)
    await started(leader, tmp_path)
    pause(agent)
    await wait_until(lambda: nices(agent) == {19}, "the lowest priority")
    await wait_until(lambda: is_still(agent), "stillness")
    assert words(tmp_path) == ["began"]
    # A leader says with each policy what it knows of the owner; what it does not know yet would be told twice.
    await wait_until(lambda: leader.owner and leader.owner[-1].suspended, "word that it is suspended")
    await leader.set_owner(lower_s=0.0, suspend_s=1.0, warn_s=1.1, requeue_s=3700.0)
    report = await leader.report((1, 0, 1))
    assert (report.outcome, report.error) == ("moved", "its owner uses the machine: paused by ada")
    assert words(tmp_path) == ["began", "warned", "tidy"]
    steps = [(news.step, news.suspended) for news in leader.owner]
    assert steps == [("lowered", False), ("suspended", True), ("warned", True)]
    await wait_until(lambda: not tree(agent), "end of all that was left")


async def test_what_the_owner_has_left_again_goes_on(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    await leader.set_owner(suspend_s=0.0)
    await started(leader, tmp_path)
    usual = nices(agent)
    for _ in range(2):
        pause(agent)
        await wait_until(lambda: is_still(agent), "stillness")
        leader.job(2, JobSpec(kind="command", argv=("true",)))
        await leader.assign(Assignment(2, 0, 1, 1))
        refused = await leader.report((2, 0, 1))
        assert (refused.outcome, refused.error) == ("returned", "its owner uses the machine: paused by ada")
        leader.reports.clear()
        pausing.end(agent.root)
        await wait_until(lambda: psutil.STATUS_STOPPED not in states(agent), "movement")
        await wait_until(lambda: leader.owner[-1].reason == "", "word of it")
    if psutil.Process().uids().effective == 0:  # who may not raise a priority leaves it where it is
        await wait_until(lambda: nices(agent) == usual, "the usual priority")
    assert words(tmp_path) == ["began"]
    assert (1, 0, 1) not in leader.reports


async def test_a_pause_ends_by_itself(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    await leader.set_owner(suspend_s=0.0)
    await started(leader, tmp_path)
    pause(agent, for_s=3600.0)
    await wait_until(lambda: is_still(agent), "stillness")
    pause(agent, for_s=1.0)
    await wait_until(lambda: psutil.STATUS_STOPPED not in states(agent), "movement")
    assert (agent.root / "pause").exists()


async def test_a_task_that_may_not_run_elsewhere_waits_for_the_owner_to_go(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    await leader.set_owner(suspend_s=0.0, warn_s=0.5, requeue_s=0.6)
    await started(leader, tmp_path, restartable=False)
    pause(agent)
    await wait_until(lambda: leader.owner and leader.owner[-1].step == "requeued", "the last step")
    await wait_until(lambda: is_still(agent), "stillness")
    assert words(tmp_path) == ["began"]
    assert (1, 0, 1) not in leader.reports
    pausing.end(agent.root)
    await wait_until(lambda: psutil.STATUS_STOPPED not in states(agent), "movement")


async def test_a_function_stands_still_and_goes_on(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    import cloudpickle

    space: dict[str, object] = {"__name__": "__main__"}
    exec(FUNCTION, space)
    pickled = cloudpickle.dumps((space["wait"], (str(tmp_path),), {}))
    leader.job(1, JobSpec(kind="function", grace_s=0.2))
    await leader.assign(Assignment(1, 0, 1, 1, pickled))
    await wait_until(lambda: (tmp_path / "began").exists(), "start of the function")
    await leader.set_owner(suspend_s=0.0, warn_s=30.0, requeue_s=40.0)
    pause(agent)
    await wait_until(lambda: psutil.STATUS_STOPPED in states(agent), "stillness of the worker")
    pausing.end(agent.root)
    await wait_until(lambda: psutil.STATUS_STOPPED not in states(agent), "movement")
    await leader.set_owner(suspend_s=0.0, warn_s=0.0, requeue_s=0.1)
    pause(agent)
    assert (await leader.report((1, 0, 1))).outcome == "moved"


async def test_a_policy_holds_at_once_and_its_end_too(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """Hours that are never now: three hours that begin in five."""
    await started(leader, tmp_path)
    later = (time.localtime().tm_hour + 5) % 24
    hours = f"{later:02}:00-{(later + 3) % 24:02}:00"
    await leader.set_owner(hours=hours, suspend_s=0.0)
    await wait_until(lambda: is_still(agent), "stillness")
    why = f"outside its hours ({hours})"
    await wait_until(lambda: leader.owner and leader.owner[-1].reason == why, "word of it")
    await leader.set_owner()
    await wait_until(lambda: psutil.STATUS_STOPPED not in states(agent), "movement")


async def test_what_stands_still_dies_when_the_agent_is_cut_off(tmp_path: Path) -> None:
    """The lease is the monitor's to hold: a stopped agent prolongs nothing, and what stands still does not survive."""
    async with FakeLeader(lease_s=4.0) as leader, running(leader, tmp_path, {}) as agent:
        await _dies_when_the_agent_is_cut_off(leader, agent, tmp_path)


async def _dies_when_the_agent_is_cut_off(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    await leader.set_owner(suspend_s=0.0, warn_s=3600.0, requeue_s=3700.0)
    await started(leader, tmp_path)
    pause(agent)
    await wait_until(lambda: is_still(agent), "stillness")
    doomed = tree(agent)
    assert len(doomed) >= 3
    agent.signal(signal.SIGSTOP)
    try:
        await wait_until(lambda: not any(is_alive(process) for process in doomed), "end of all")
    finally:
        agent.signal(signal.SIGCONT)
    assert words(tmp_path) == ["began"]
    # It comes back as a new incarnation on a machine that is still paused.
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the next incarnation")
    leader.job(2, JobSpec(kind="command", argv=("true",)))
    await leader.assign(Assignment(2, 0, 1, 1))
    assert (await leader.report((2, 0, 1))).outcome == "returned"


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in GONE
    except psutil.NoSuchProcess:
        return False


async def test_what_stands_still_dies_with_its_agent(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    await leader.set_owner(suspend_s=0.0)
    await started(leader, tmp_path)
    pause(agent)
    await wait_until(lambda: is_still(agent), "stillness")
    doomed = tree(agent)
    agent.signal(signal.SIGKILL)
    await wait_until(lambda: leader.gone, "word from the monitor")
    assert not any(is_alive(process) for process in doomed)
    assert agent.process is not None
    agent.process.wait()
    # The switch holds over the restart, and is told by the first word.
    leader.owner.clear()
    agent.start()
    await wait_until(lambda: leader.owner and leader.owner[-1].reason == "paused by ada", "word of the pause")


async def test_a_new_monitor_knows_that_the_owner_is_there(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    await leader.set_owner(suspend_s=0.0)
    pause(agent)
    await wait_until(lambda: leader.owner and leader.owner[-1].suspended, "word of the pause")
    first = agent.monitor_pid()
    psutil.Process(first).kill()
    await wait_until(lambda: agent.monitor_pid() not in (0, first), "the next monitor")
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the next incarnation")
    pausing.end(agent.root)
    await wait_until(lambda: leader.owner[-1].reason == "", "word of the end")
    await started(leader, tmp_path)
    pause(agent)
    await wait_until(lambda: is_still(agent), "stillness")


async def test_a_switch_that_cannot_be_read_is_a_pause(leader: FakeLeader, agent: AgentProcess) -> None:
    (agent.root / "pause").write_text("{")
    await wait_until(lambda: leader.owner and "a file that is none" in leader.owner[-1].reason, "a pause")
    (agent.root / "pause").unlink()
    await wait_until(lambda: leader.owner[-1].reason == "", "its end")


async def test_the_agents_of_a_machine_are_found(agent: AgentProcess) -> None:
    place = next(place for place in pausing.places() if place.folder == agent.root)
    assert place == pausing.Place("h1", agent.root, True) == pausing.place(agent.root)

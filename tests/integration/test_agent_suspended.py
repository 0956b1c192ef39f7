"""What a real agent does with the tasks of suspended jobs: all of their processes stand still, and go on, or die."""

from __future__ import annotations

from pathlib import Path

import cloudpickle

from depalma import pausing
from depalma.model import JobSpec
from depalma.ownership import Pause
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until
from tests.integration.test_agent_owner import FUNCTION, TREE, is_still, states, tree, words

WHY = "its job is suspended"


async def begin(leader: FakeLeader, folder: Path, **spec: object) -> None:
    fields = {"cwd": str(folder), "grace_s": 20.0, **spec}
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", TREE), **fields))  # type: ignore[arg-type]
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: words(folder) == ["began"], "start")


def moves(agent: AgentProcess) -> bool:
    return "stopped" not in states(agent)


async def test_a_suspended_task_goes_on_once_neither_its_user_nor_the_owner_wants_it_still(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    await leader.set_owner(suspend_s=0.0)
    await begin(leader, tmp_path)
    await leader.suspend(1)
    await wait_until(lambda: is_still(agent), "stillness")
    told = (await leader.ask_processes()).processes
    assert {(view.task, view.suspended) for view in told} == {("1.0", WHY)}
    leader.job(2, JobSpec(kind="command", argv=("true",)))
    await leader.assign(Assignment(1, 1, 1, 1), Assignment(2, 0, 1, 1))
    assert (await leader.report((1, 1, 1))).outcome == "returned"
    assert (await leader.report((2, 0, 1))).outcome == "succeeded", "other jobs go on"

    pausing.begin(agent.root, Pause(0.0, None, "ada"))
    await wait_until(lambda: leader.owner and leader.owner[-1].suspended, "word of the owner")
    await leader.suspend()
    await wait_until(lambda: is_still(agent), "stillness for the owner")
    (why,) = {view.suspended for view in (await leader.ask_processes()).processes}
    assert why == "its owner uses the machine: paused by ada"
    await leader.suspend(1)
    await leader.ask_processes()  # which it hears after that
    pausing.end(agent.root)
    await wait_until(lambda: not leader.owner[-1].reason, "word that the owner has gone")
    assert is_still(agent)
    await leader.suspend()
    await wait_until(lambda: moves(agent), "movement")
    assert (words(tmp_path), (1, 0, 1) in leader.reports) == (["began"], False)


async def test_a_suspended_task_that_is_cancelled_tidies_up_and_is_dead_with_all_it_started(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    await begin(leader, tmp_path)
    await leader.suspend(1)
    await wait_until(lambda: is_still(agent), "stillness")
    await leader.kill([(1, 0, 1)])
    assert (await leader.report((1, 0, 1))).outcome == "cancelled"
    assert words(tmp_path) == ["began", "warned", "tidy"]
    await wait_until(lambda: not tree(agent), "end of all that was left")


async def test_a_function_stands_still_with_its_worker_goes_on_and_dies(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    space: dict[str, object] = {"__name__": "__main__"}
    exec(FUNCTION, space)
    leader.job(1, JobSpec(kind="function", grace_s=0.2))
    await leader.assign(Assignment(1, 0, 1, 1, cloudpickle.dumps((space["wait"], (str(tmp_path),), {}))))
    await wait_until(lambda: (tmp_path / "began").exists(), "start of the function")
    await leader.suspend(1)
    await wait_until(lambda: not moves(agent), "stillness of the worker")
    await leader.suspend()
    await wait_until(lambda: moves(agent), "movement")
    await leader.suspend(1)
    await wait_until(lambda: not moves(agent), "stillness again")
    await leader.kill([(1, 0, 1)])
    assert (await leader.report((1, 0, 1))).outcome == "cancelled"

"""What a real agent does when users enter running tasks: streams, terminals, surroundings, and the end of it all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import pytest_asyncio

from depalma import visits as talk
from depalma.agent.store import empty_folder
from depalma.model import JobSpec, Payload
from depalma.protocol import Assignment, CloseVisit, InVisit, OpenVisit, VisitOver
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until
from depalma.visits import CHUNK_BYTES, PER_HOST, WINDOW_BYTES, Credit, Data, End, Over, Signal, Size

pytestmark = pytest.mark.asyncio(loop_scope="module")


class User:
    """Who visits a task, with no more of a program around him than the frames."""

    numbers = iter(range(1, 10_000))

    def __init__(self, leader: FakeLeader, *, reads: bool = True) -> None:
        self.leader = leader
        self.number = next(self.numbers)
        self.reads = reads
        self._taken = 0
        self.credit = 0
        self.output = {1: b"", 2: b""}
        self.last: Over | None = None

    async def enter(self, *argv: str, job: int = 1, task: int = 0, tty: bool = False) -> User:
        await self.leader.send(OpenVisit(self.number, job, task, 1, argv, tty, 30, 90, "vt100"))
        return self

    async def say(self, *messages: talk.FromUser) -> None:
        for message in messages:
            await self.leader.send(InVisit(self.number, talk.encode(message)))

    async def take(self) -> int:
        """Takes what has come, and says so, if he reads. Returns how much came in all."""
        frames = [frame for frame in self.leader.visits if frame.visit == self.number]
        fresh, self._taken = frames[self._taken :], len(frames)
        for frame in fresh:
            if isinstance(frame, VisitOver):
                assert self.last is not None
                continue
            message = talk.from_task(frame.message)
            assert self.last is None
            match message:
                case Data(stream=stream, data=data):
                    self.output[stream] += data
                    if self.reads:
                        await self.say(Credit(len(data)))
                case Credit(size_bytes=size_bytes):
                    self.credit += size_bytes
                case Over():
                    self.last = message
        return sum(map(len, self.output.values()))

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        while True:
            known = len(self.leader.visits)
            await self.take()
            if seen := look():
                return seen
            await wait_until(lambda known=known: len(self.leader.visits) > known, what)  # type: ignore[misc]

    async def over(self) -> tuple[int | None, str]:
        last: Over = await self.until(lambda: self.last, f"end; {self.output[1][:300]!r}")
        return last.exit_code, last.error


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"slots": 1}


@pytest_asyncio.fixture(loop_scope="module")
async def leader(pair: tuple[FakeLeader, AgentProcess]) -> FakeLeader:
    await pair[0].renew()
    pair[0].visits.clear()
    empty_folder(pair[1].root / "output")  # the same task numbers come again in every test
    return pair[0]


async def run(leader: FakeLeader, *argv: str, job: int = 1, until: Path | None = None, **spec: Any) -> None:
    """Has a task run, until it has made its file."""
    leader.job(job, JobSpec(kind="command", argv=argv, **spec))
    await leader.assign(Assignment(job, 0, 1, 1))
    await wait_until(until.exists if until else lambda: (job, 0, 1) in leader.started, "start of the task")


async def test_surroundings_are_those_of_the_task_and_streams_are_apart(leader: FakeLeader, tmp_path: Path) -> None:
    script = f"pwd; env | sort; touch {tmp_path}/ready; exec sleep 3020"
    await run(leader, "sh", "-c", script, until=tmp_path / "ready", env={"COLOUR": "a b"}, gpus=1)
    told = await leader.ask_output((1, 0, 1))

    user = await User(leader).enter("sh", "-c", "pwd; env | sort; printf 'e\\0\\377' >&2; exit 3")

    assert await user.over() == (3, "")
    own = [line for line in user.output[1].decode().splitlines() if not line.startswith("DEPALMA_PROCESS=")]
    its = [line for line in told.data.decode().splitlines() if not line.startswith("DEPALMA_PROCESS=")]
    assert own == its
    assert "COLOUR=a b" in own
    assert user.output[2] == b"e\0\xff"


async def test_five_megabytes_go_through_both_ways(leader: FakeLeader) -> None:
    await run(leader, "sleep", "3020")
    user = await User(leader).enter("cat")
    data = os.urandom(5 * 1024 * 1024)
    for start in range(0, len(data), CHUNK_BYTES):
        piece = data[start : start + CHUNK_BYTES]
        end = start + len(piece)
        await user.until(lambda end=end: end - user.credit <= WINDOW_BYTES, "room")  # type: ignore[misc]
        await user.say(Data(0, piece))
    await user.say(End())

    assert await user.over() == (0, "")
    assert user.output[1] == data


async def test_who_does_not_read_holds_up_his_program_and_nothing_else(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]
) -> None:
    await run(leader, "sleep", "3020")
    user = await User(leader, reads=False).enter("sh", "-c", "head -c 5000000 /dev/zero; echo done >&2")
    await user.until(lambda: len(user.output[1]) == WINDOW_BYTES, "a full window")
    beats = len(leader.beats)
    await wait_until(lambda: len(leader.beats) >= beats + 3, "heartbeats")
    assert await user.take() == WINDOW_BYTES

    user.reads = True
    await user.say(Credit(WINDOW_BYTES))
    assert await user.over() == (0, "")
    assert (len(user.output[1]), user.output[2]) == (5_000_000, b"done\n")


async def test_a_terminal(leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess], tmp_path: Path) -> None:
    """In a home without settings: what those have a shell do at each prompt may take long, and Ctrl-C would end it."""
    await run(leader, "sleep", "3020", env={"SHELL": "/bin/bash", "PS1": "$ ", "HOME": str(tmp_path)})
    user = await User(leader).enter(tty=True)
    await user.say(Data(0, b"stty size; echo $TERM; tty | cut -c-9\n"))
    await user.until(lambda: b"30 90\r\nvt100\r\n/dev/pts/\r\n" in user.output[1], "answer")
    await user.say(Size(40, 100), Data(0, b"stty size; sleep 3021\n"))
    await user.until(lambda: b"40 100\r\n" in user.output[1], "other size")
    await wait_until(lambda: "sleep 3021" in pair[1].below(), "what Ctrl-C is to end")
    await user.say(Data(0, b"\x03"), Data(0, b"echo a$?z\n"))
    await user.until(lambda: b"a130z\r\n" in user.output[1], "what Ctrl-C did")
    await user.say(Data(0, b"exit 3\n"))
    assert await user.over() == (3, "")
    assert user.output[2] == b""


async def test_what_is_said_to_a_terminal_whose_program_has_ended_is_harmless(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]
) -> None:
    await run(leader, "sleep", "3020")
    count = str(WINDOW_BYTES + 1000)
    user = await User(leader, reads=False).enter("head", "-c", count, "/dev/zero", tty=True)
    await user.until(lambda: len(user.output[1]) == WINDOW_BYTES, "a full window")
    await wait_until(nothing_of(pair[1], count), "end of the program")
    await user.say(Size(40, 100), Data(0, b"x"), Signal("INT"), End(), Credit(WINDOW_BYTES))
    assert await user.over() == (0, "")
    assert len(user.output[1]) == WINDOW_BYTES + 1000


async def test_a_shell_without_a_terminal_reads_its_input(leader: FakeLeader) -> None:
    await run(leader, "sleep", "3020", env={"SHELL": "/bin/bash"})
    user = await User(leader).enter()
    await user.say(Data(0, b"echo $0\nexit 4\n"), End())
    assert await user.over() == (4, "")
    assert user.output[1] == b"/bin/sh\n"


async def test_signals(leader: FakeLeader) -> None:
    await run(leader, "sleep", "3020")
    user = await User(leader).enter("sh", "-c", "echo ready; exec sleep 3021")
    await user.until(lambda: user.output[1], "start")
    await user.say(Signal("INT"))
    assert await user.over() == (130, "")
    assert (1, 0, 1) not in leader.reports


def nothing_of(agent: AgentProcess, number: str) -> Callable[[], bool]:
    return lambda: not any(number in line for line in agent.below())


async def test_who_goes_away_leaves_nothing_behind(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess], tmp_path: Path
) -> None:
    agent = pair[1]
    await run(leader, "sleep", "3020")
    handles = psutil.Process(agent.pid).num_fds()
    hides = "trap '' HUP TERM INT; setsid sleep 3022 & (setsid sleep 3022 &); echo ready; while :; do sleep 0.05; done"
    for tty in (False, True):
        user = await User(leader).enter("sh", "-c", hides, tty=tty)
        await user.until(lambda user=user: user.output[1], "start")  # type: ignore[misc]
        await leader.send(CloseVisit(user.number))
        await wait_until(nothing_of(agent, "3022"), "end")
        await wait_until(nothing_of(agent, "sleep 0.05"), "end")
    assert (1, 0, 1) not in leader.reports
    await wait_until(lambda: psutil.Process(agent.pid).num_fds() <= handles, "descriptors that are closed")


async def test_it_ends_with_the_attempt_and_says_so(leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]) -> None:
    await run(leader, "sleep", "3020", grace_s=5.0)
    user = await User(leader).enter("sh", "-c", "trap '' HUP TERM; echo ready; setsid sleep 3023 & sleep 3023")
    await user.until(lambda: user.output[1], "start")

    await leader.kill([(1, 0, 1)])

    assert (await leader.report((1, 0, 1))).outcome == "cancelled"
    assert not [line for line in pair[1].below() if "3023" in line]
    assert await user.over() == (None, "attempt 1 of task 1.0 has ended, and what was run in it with it")


async def test_it_ends_with_the_connection(leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]) -> None:
    await run(leader, "sleep", "3020")
    user = await User(leader).enter("sh", "-c", "trap '' HUP TERM; echo ready; setsid sleep 3024 & sleep 3024")
    await user.until(lambda: user.output[1], "start")
    await leader.drop()
    await wait_until(nothing_of(pair[1], "3024"), "end")
    await wait_until(lambda: leader.connected, "connection")
    assert (1, 0, 1) in leader.hellos[-1].running, "the task goes on"
    assert user.last is None


def visited(folder: str) -> list[str]:
    import os
    import time
    from pathlib import Path

    Path(folder, f"ready.{os.environ['DEPALMA_TASK_INDEX']}").touch()
    while not Path(folder, f"end.{os.environ['DEPALMA_TASK_INDEX']}").exists():
        time.sleep(0.01)
    return [os.getcwd(), *os.listdir("."), os.environ["COLOUR"], os.environ["DEPALMA_FENCE"]]


@pytest.mark.parametrize("limits", [{}, {"max_files": 99}], ids=["warm", "apart"])
async def test_of_a_function(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess], tmp_path: Path, limits: dict[str, Any]
) -> None:
    """And the next task of the same worker begins without the visitor, in an empty folder."""
    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["x"]))
    pickled = Payload(inline=cloudpickle.dumps(visited))
    leader.job(1, JobSpec(kind="function", function_pickle=pickled, env={"COLOUR": "red"}, **limits))
    argument = cloudpickle.dumps((None, (str(tmp_path),), {}))
    await leader.assign(*(Assignment(1, task, 1, 8 + task, argument) for task in range(2)))
    await wait_until((tmp_path / "ready.0").exists, "start")
    write = "echo x >>$DEPALMA_SCRATCH/x; echo x >>y"
    says = "pwd; echo $COLOUR $DEPALMA_FENCE; ulimit -n"
    user = await User(leader).enter("sh", "-c", f"trap '' HUP TERM; {write}; {says}; while :; do {write}; done")
    await user.until(lambda: user.output[1].count(b"\n") == 3, "its words")

    (tmp_path / "end.0").touch()
    assert await user.over() == (None, "attempt 1 of task 1.0 has ended, and what was run in it with it")
    await wait_until((tmp_path / "ready.1").exists, "start of the next task")
    (tmp_path / "end.1").touch()

    results = [cloudpickle.loads((await leader.report((1, task, 1))).result.inline) for task in range(2)]  # type: ignore[union-attr]
    folder, colour, files = user.output[1].decode().splitlines()
    assert results[0][0] == folder
    assert set(results[0][1:]) == {"x", "y", "red", "8"}
    assert colour == "red 8"
    assert (files == "99") == bool(limits)
    assert results[1] == [folder, "red", "9"]


async def test_refusals(leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]) -> None:
    await run(leader, "sleep", "3020")
    assert await (await User(leader).enter("true", task=7)).over() == (
        None, "task 1.7 does not run any more, or not yet",
    )  # fmt: skip
    assert await (await User(leader).enter("nosuch")).over() == (127, "nosuch: command not found")
    many = [await User(leader).enter("sleep", "3025") for _ in range(PER_HOST)]
    late = await User(leader).enter("true")
    assert await late.over() == (None, "there are 8 visits on this host already, the most at once")
    for user in many:
        await leader.send(CloseVisit(user.number))
    await wait_until(nothing_of(pair[1], "3025"), "end of all")
    async with asyncio.timeout(15):  # their places are free once the monitor has said so to the agent
        while (answer := await (await User(leader).enter("true")).over()) != (0, ""):
            assert answer == (None, "there are 8 visits on this host already, the most at once")
    await leader.suspend(1)
    assert (await (await User(leader).enter("true")).over())[1] == "task 1.0 stands still: its job is suspended"


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xc1",
        talk.encode(Signal("KILL")),
        talk.encode(Credit(9)),
        talk.encode(Over(0)),
        talk.encode(Data(0, b"x" * 40_000)),
        *[[talk.encode(Data(0, b"x" * CHUNK_BYTES))] * 12],
        *[[talk.encode(Signal("USR2"))] * 200],
    ],
    ids=["no message", "kill", "credit", "over", "too long", "too much", "too many signals"],
)
async def test_who_breaks_the_rules_is_out_and_nobody_else(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess], hostile: bytes | list[bytes]
) -> None:
    await run(leader, "sleep", "3020")
    good, bad = await User(leader).enter("cat"), await User(leader).enter("sh", "-c", "trap '' USR2; sleep 3026; true")
    await wait_until(lambda: "sleep 3026" in pair[1].below(), "what ignores signals")
    for message in hostile if isinstance(hostile, list) else [hostile]:
        await leader.send(InVisit(bad.number, message))
    code, said = await bad.over()
    assert code is None
    assert said.startswith("what came from the user was refused: ")
    await good.say(Data(0, b"still here"), End())
    assert await good.over() == (0, "")
    assert good.output[1] == b"still here"
    assert (1, 0, 1) not in leader.reports

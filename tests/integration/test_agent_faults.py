"""What an agent does when it, its monitor, its leader or the line between them fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from depalma.model import JobSpec, Report
from depalma.monitor import boottime
from depalma.protocol import Assignment, Refused
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

HIDES = """
trap '' TERM
sleep 2001 &
setsid sleep 2001 &
(setsid sh -c 'trap "" TERM HUP; (env -i sleep 2001 &); (sleep 2001 &) ; while :; do sleep 2001; done' &)
wait
"""


#: Where it is to end: long enough for everything to begin on a machine that is busy.
LEASE_S = 4.0


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"slots": 4}


_here: list[str] = []  #: where the tasks of this test run, which tells them from those of other runs


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> None:
    _here[:] = [str(tmp_path)]


def sleeping(seconds: int = 2001) -> list[int]:
    found = psutil.process_iter(["cmdline", "cwd"])
    return [
        p.pid
        for p in found
        if p.info["cmdline"] == ["sleep", str(seconds)] and (p.info["cwd"] or "").startswith(_here[0])
    ]


def monitor_of(agent: AgentProcess) -> int:
    """Whom to send a signal: never 0, which would be ourselves."""
    monitor = agent.monitor_pid()
    assert monitor
    return monitor


async def start_hiding(leader: FakeLeader, tasks: int = 1) -> None:
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", HIDES), grace_s=0.2))
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(tasks)])
    await wait_until(lambda: len(sleeping()) == 5 * tasks, "trees")


async def test_a_killed_agent_leaves_nothing(leader: FakeLeader, agent: AgentProcess) -> None:
    await start_hiding(leader, tasks=4)
    incarnation = leader.hellos[-1].incarnation

    agent.signal(signal.SIGKILL)
    await wait_until(lambda: not sleeping(), "end of all trees")  # and not for the end of its lease: that is longer
    await wait_until(lambda: leader.gone, "word from the monitor")

    assert leader.gone == [{"host": "h1", "incarnation": incarnation, "reason": "agent died"}]


async def test_a_killed_agent_takes_its_workers_along(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, JobSpec(kind="function", function="time:sleep"))
    import pickle

    await leader.assign(Assignment(1, 0, 1, 1, pickle.dumps((None, (2002,), {}))))
    await wait_until(lambda: (1, 0, 1) in leader.started, "start")
    workers = psutil.Process(agent.monitor_pid()).children(recursive=True)
    assert any("worker.py" in line for line in agent.below())

    agent.signal(signal.SIGKILL)

    await wait_until(lambda: not any(p.is_running() for p in workers), "end of the workers")


async def test_a_stopped_agent_does_not_prolong_its_tasks(tmp_path: Path) -> None:
    async with FakeLeader(lease_s=LEASE_S) as leader:
        agent = AgentProcess(tmp_path, [leader.url])
        agent.start()
        try:
            await wait_until(lambda: leader.connected, "connection")
            await start_hiding(leader)
            agent.signal(signal.SIGSTOP)

            await wait_until(lambda: not sleeping(), "end of the tree")
            await wait_until(lambda: "killed 1 process trees" in agent.log.read_text(), "the monitor's words")
            assert "depalma.monitor: lease over (" in agent.log.read_text()
            assert not leader.gone

            agent.signal(signal.SIGCONT)
            await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "rejoin")
            assert leader.hellos[-1].incarnation != leader.hellos[0].incarnation
            assert leader.hellos[-1].running == leader.hellos[-1].unreported == ()
            assert leader.reports == {}
            report = await leader.run(JobSpec(kind="command", argv=("true",)), job=2)
            assert report.outcome == "succeeded"
        finally:
            await agent.stop()


async def test_silence_of_the_leader_ends_everything_at_the_lease(tmp_path: Path) -> None:
    async with FakeLeader(lease_s=LEASE_S) as leader:
        agent = AgentProcess(tmp_path, [leader.url], on_cut_off="exit")
        agent.start()
        try:
            await wait_until(lambda: leader.connected, "connection")
            await start_hiding(leader)
            await wait_until(lambda: leader.beats, "a heartbeat")
            leader.answers = leader.leads = False  # not on another connection either
            answered_s = leader.beats[-1].sent_s

            await wait_until(lambda: not sleeping(), "end of the tree")

            assert boottime() >= answered_s + LEASE_S
            leader.leads = True  # and takes note that nothing of it lives any more
            assert await agent.exit_code() == 4
            assert f"cut off: no leader was heard for {LEASE_S:g} s" in agent.log.read_text()
            assert leader.reports == {}
        finally:
            await agent.stop()


async def test_a_short_silence_changes_nothing(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, JobSpec(kind="command", argv=("sleep", "2003"), grace_s=0.1))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: sleeping(2003), "task")
    await leader.drop()

    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "second hello")

    assert leader.hellos[-1].incarnation == leader.hellos[0].incarnation
    assert leader.hellos[-1].running == ((1, 0, 1),)
    assert len(sleeping(2003)) == 1
    # A leader that forgot to look may send it again: it is not started twice.
    await leader.assign(Assignment(1, 0, 1, 1))
    await leader.run(JobSpec(kind="command", argv=("true",)), job=2)
    assert len(sleeping(2003)) == 1
    await wait_until(lambda: (1, 0, 1) in leader.started, "announcement to the new leader")


async def test_reports_are_sent_again_until_committed(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.commits = False
    first = await leader.run(JobSpec(kind="command", argv=("true",)))
    leader.reports.clear()
    await leader.drop()

    again = await leader.report((1, 0, 1))

    assert again == first
    assert leader.hellos[-1].unreported == ((1, 0, 1),)
    leader.commits = True
    await leader.drop()
    await wait_until(lambda: len(leader.hellos) >= 3 and len(leader.report_frames) >= 3, "third report")
    await leader.run(JobSpec(kind="command", argv=("true",)), job=2)
    await leader.drop()
    await wait_until(lambda: len(leader.hellos) >= 4, "fourth hello")
    assert leader.hellos[-1].unreported == ()


async def test_reports_survive_the_agent(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.commits = False
    await leader.run(JobSpec(kind="command", argv=("true",)))
    leader.reports.clear()
    agent.signal(signal.SIGKILL)
    await agent.exit_code()
    leader.commits = True

    agent.start()

    await leader.report((1, 0, 1))
    assert leader.hellos[-1].unreported == ((1, 0, 1),)


async def test_orders_of_an_older_term_are_refused(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.term = 5
    await leader.drop()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "second hello")
    leader.job(1, JobSpec(kind="command", argv=("true",)))
    await leader.assign(Assignment(1, 0, 1, 1), term=4)

    await leader.run(JobSpec(kind="command", argv=("true",)), job=2)

    assert (1, 0, 1) not in leader.reports


async def test_a_leader_of_an_older_term_is_left(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.term = 5
    await leader.drop()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "second hello")
    leader.term = 4
    await leader.drop()

    await wait_until(lambda: "but term 5 was seen" in agent.log.read_text(), "refusal")


async def test_the_new_leader_is_found(tmp_path: Path) -> None:
    async with FakeLeader() as first, FakeLeader(term=2) as second, FakeLeader() as third:
        second.leads = third.leads = False
        urls = [first.url, second.url, third.url]
        first.masters = second.masters = urls
        agent = AgentProcess(tmp_path, urls)
        agent.start()
        try:
            await wait_until(lambda: first.connected, "connection")
            first.leads = False
            await first.drop()
            second.leads = True

            report = await _run_when_connected(second)

            assert report == "succeeded"
            assert first.hellos[0].incarnation == second.hellos[0].incarnation
        finally:
            await agent.stop()


async def _run_when_connected(leader: FakeLeader) -> str:
    await wait_until(lambda: leader.connected, "connection")
    return (await leader.run(JobSpec(kind="command", argv=("true",)))).outcome


async def test_a_leader_that_is_only_named_is_found(tmp_path: Path) -> None:
    async with FakeLeader() as follower, FakeLeader() as leader:
        follower.leads = False
        follower.leader_url = leader.url
        agent = AgentProcess(tmp_path, [follower.url])
        agent.start()
        try:
            await wait_until(lambda: leader.connected, "connection")
        finally:
            await agent.stop()


async def test_a_frozen_leader_is_left_for_a_new_one(tmp_path: Path) -> None:
    async with FakeLeader() as first, FakeLeader(term=2) as second:
        second.leads = False
        first.masters = [first.url, second.url]
        agent = AgentProcess(tmp_path, [first.url])
        agent.start()
        try:
            await wait_until(lambda: first.connected, "connection")
            first.answers = False
            second.leads = True
            await wait_until(lambda: second.connected, "second connection")
            assert second.hellos[0].incarnation == first.hellos[0].incarnation
        finally:
            await agent.stop()


async def test_a_dead_monitor_means_a_new_start(leader: FakeLeader, agent: AgentProcess) -> None:
    await start_hiding(leader)

    os.kill(monitor_of(agent), signal.SIGKILL)

    await wait_until(lambda: not sleeping(), "end of the tree")
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "rejoin")
    assert leader.hellos[-1].incarnation != leader.hellos[0].incarnation
    assert leader.hellos[-1].running == ()
    assert (await leader.run(JobSpec(kind="command", argv=("true",)), job=2)).outcome == "succeeded"


async def test_the_monitor_ignores_polite_signals(leader: FakeLeader, agent: AgentProcess) -> None:
    monitor = monitor_of(agent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(monitor, number)

    assert (await leader.run(JobSpec(kind="command", argv=("true",)))).outcome == "succeeded"
    assert agent.monitor_pid() == monitor


async def test_a_new_agent_waits_for_the_old_ones_end(leader: FakeLeader, agent: AgentProcess) -> None:
    await start_hiding(leader)
    agent.signal(signal.SIGKILL)
    await agent.exit_code()

    agent.start()
    await wait_until(lambda: len(leader.hellos) >= 2, "new agent")

    assert not sleeping()


async def test_two_agents_of_one_folder_are_one_too_many(
    leader: FakeLeader, agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import depalma.agent.store as store

    with pytest.raises(store.FolderInUse, match=f"in use by agent process {agent.pid}"):
        await asyncio.to_thread(store.lock_folder, agent.root, 0.2)


async def test_sigterm_stops_in_order(leader: FakeLeader, agent: AgentProcess) -> None:
    await start_hiding(leader, tasks=4)
    await leader.assign(Assignment(1, 99, 1, 1))
    await leader.ask_processes()  # which it hears after that
    monitor = psutil.Process(monitor_of(agent))

    agent.signal(signal.SIGTERM)

    assert await agent.exit_code() == 0
    assert not sleeping()
    assert not monitor.is_running()
    assert (await leader.report((1, 99, 1))).outcome == "returned"
    assert [gone["reason"] for gone in leader.gone] == ["stopped"]


async def test_an_agent_that_no_master_knows_ends_at_once(tmp_path: Path) -> None:
    """There is nobody to be told: it does not look for a master for as long as a fail-over may take."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen, but keeps others from it
        agent = AgentProcess(tmp_path, [f"http://127.0.0.1:{nobody.getsockname()[1]}"])
        agent.start()
        try:
            await wait_until(lambda: "incarnation" in agent.log.read_text(), "start")
            agent.signal(signal.SIGTERM)
            assert await agent.exit_code() == 0
        finally:
            await agent.stop()
    assert "no master could be told" not in agent.log.read_text()


async def test_what_sigterm_to_the_agent_ends_has_not_failed(leader: FakeLeader, agent: AgentProcess) -> None:
    """It is to run elsewhere: nobody but us has ended it."""
    leader.job(1, JobSpec(kind="command", argv=("sleep", "2001")))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(sleeping, "task")

    agent.signal(signal.SIGTERM)

    assert await agent.exit_code() == 0
    told = list(leader.reports.values())
    for record in leader.gone[0].get("reports", ()):  # if the agent had no time, its monitor tells it
        told += msgspec.msgpack.decode(base64.b64decode(record), type=tuple[Report, ...])
    assert {(report.task, report.outcome) for report in told} == {(0, "moved")}


async def test_a_cut_off_agent_that_exits_ends_its_tasks_also_if_the_monitor_stands_still(tmp_path: Path) -> None:
    async with FakeLeader(lease_s=LEASE_S) as leader:
        agent = AgentProcess(tmp_path, [leader.url], on_cut_off="exit")
        agent.start()
        monitor = 0
        try:
            await wait_until(lambda: leader.connected, "connection")
            await start_hiding(leader)
            monitor = monitor_of(agent)
            os.kill(monitor, signal.SIGSTOP)
            leader.answers = leader.leads = False  # not on another connection either

            await wait_until(lambda: not sleeping(), "end of the tree")

            assert "the monitor does not answer" not in agent.log.read_text()
        finally:
            leader.leads = True
            if monitor:
                with contextlib.suppress(ProcessLookupError):  # the agent kills it in the end
                    os.kill(monitor, signal.SIGCONT)
            await agent.stop()


async def test_a_refused_agent_exits(tmp_path: Path) -> None:
    async with FakeLeader() as leader:
        leader.refusal = Refused("host 'h1' is not in the cluster", stop=True)
        agent = AgentProcess(tmp_path, [leader.url])
        agent.start()
        try:
            assert await agent.exit_code() == 3
            assert "the cluster refuses this agent: host 'h1' is not in the cluster" in agent.log.read_text()
        finally:
            await agent.stop()


async def test_a_new_incarnation_is_made_on_request(leader: FakeLeader, agent: AgentProcess) -> None:
    await start_hiding(leader)
    leader.refusal = Refused("your work was given away", stop=True, restart_incarnation=True)
    await leader.drop()

    await wait_until(lambda: len(leader.hellos) >= 3, "third hello")

    assert not sleeping()
    assert leader.hellos[-1].incarnation != leader.hellos[0].incarnation
    assert leader.hellos[-1].running == ()


async def test_a_result_is_uploaded_when_there_is_a_leader_again(leader: FakeLeader, agent: AgentProcess) -> None:
    import pickle

    leader.job(1, JobSpec(kind="function", function="builtins:bytes"))
    flag = pickle.dumps((None, (100_000,), {}))
    await leader.assign(Assignment(1, 0, 1, 1, flag))
    await leader.drop()

    report = await leader.report((1, 0, 1))

    assert report.result is not None
    assert pickle.loads(leader.blobs[report.result.digest]) == bytes(100_000)


def test_the_entry_refuses_a_wrong_config(tmp_path: Path) -> None:
    import sys

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "depalma.remote", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    missing = run("--config", str(tmp_path / "none.yaml"), "--name", "h1")
    assert missing.returncode == 2
    assert "none.yaml: cannot be read" in missing.stderr
    config = AgentProcess(tmp_path, ["http://127.0.0.1:9"]).config
    nameless = run("--config", str(config), "--name", "h 9")
    assert nameless.returncode == 2
    assert "host name 'h 9' given; allowed: letters" in nameless.stderr

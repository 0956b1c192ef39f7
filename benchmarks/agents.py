#!/usr/bin/env python3
"""Many agents in one process, which speak the agents' protocol over real WebSockets and run nothing.

Used by `scale.py`; by itself: `benchmarks/agents.py URL TOKEN_FILE COUNT --run-s 10`. Each says hello as a host `s0`,
`s1`, …, sends heartbeats as often as its welcome says, each with another load, says which tasks have started, and
reports each as succeeded after `--run-s` seconds, give or take that times `--spread` (0: all that began together end
together). Prints a JSON line a second: connections, tasks, and how long heartbeats waited for their answers. Ends when
its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

import aiohttp

from depalma import protocol
from depalma.model import HostFacts, Load, Report

SLOTS = 2
FACTS = HostFacts(SLOTS, SLOTS, 8 << 30, 0, "0.1.0", "3.11", "")
#: As a real agent: what runs for so long is told to have started.
STARTED_S = 1.0


class Agents:
    """All of them, on one loop."""

    def __init__(self, url: str, token: str, run_s: float, spread: float) -> None:
        self.url = url
        self.token = token
        self.run_s = run_s
        self.spread = spread
        self.connected = 0
        self.started = 0
        self.finished = 0
        self.answers_s: list[float] = []

    async def live(self, http: aiohttp.ClientSession, number: int) -> None:
        """Is one agent, until it is cut off."""
        name = f"s{number}"
        headers = {"Authorization": f"Bearer {self.token}", protocol.HOST_HEADER: name}
        await asyncio.sleep(number * 0.004)
        async with http.ws_connect(
            self.url + "/v1/agent", headers=headers, max_msg_size=protocol.MAX_FRAME_BYTES
        ) as ws:
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            facts = HostFacts(*(getattr(FACTS, each) for each in FACTS.__struct_fields__[:6]), address)
            await ws.send_bytes(
                protocol.encode(protocol.Hello(protocol.PROTOCOL_VERSION, name, f"{name}-1", facts, 0, (), ()))
            )
            agent = Agent(self, ws)
            try:
                async for message in ws:
                    if message.type is not aiohttp.WSMsgType.BINARY:
                        break
                    agent.take(protocol.decode_to_agent(message.data))
            finally:
                agent.end()


class Agent:
    """One connection."""

    def __init__(self, all_of_them: Agents, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._all = all_of_them
        self._ws = ws
        self._loop = asyncio.get_running_loop()
        self._beat_s = 1.0
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._running = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._welcomed = False

    def take(self, frame: protocol.ToAgent) -> None:
        """Does what a frame says."""
        match frame:
            case protocol.Welcome():
                self._beat_s = frame.heartbeat_s
                if not self._welcomed:
                    self._welcomed = True
                    self._all.connected += 1
                    self._later(random.random() * self._beat_s, self._beat)
            case protocol.HeartbeatAnswer():
                sent = self._sent.pop(frame.sequence, None)
                if sent is not None:
                    self._all.answers_s.append(time.monotonic() - sent)
            case protocol.Assign():
                self._running += len(frame.tasks)
                for task in frame.tasks:
                    self._run((task.job, task.task, task.attempt))
            case protocol.Refused():
                print(json.dumps({"refused": frame.reason}), flush=True)

    def end(self) -> None:
        """The connection is over."""
        self._all.connected -= self._welcomed
        for timer in self._timers:
            timer.cancel()

    def _later(self, delay_s: float, act: object, *arguments: object) -> None:
        def go() -> None:
            self._timers.discard(timer)
            act(*arguments)  # type: ignore[operator]

        timer = self._loop.call_later(delay_s, go)
        self._timers.add(timer)

    def _say(self, frame: protocol.FromAgent) -> None:
        task = asyncio.ensure_future(self._ws.send_bytes(protocol.encode(frame)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _beat(self) -> None:
        self._sequence += 1
        self._sent[self._sequence] = time.monotonic()
        load = Load(load1=random.random(), cpu_percent=100 * random.random(), tasks_cpu_percent=30.0)
        self._say(protocol.Heartbeat(self._sequence, time.monotonic(), load, max(0, SLOTS - self._running)))
        self._later(self._beat_s, self._beat)

    def _run(self, ref: tuple[int, int, int]) -> None:
        started = time.time()
        if self._all.run_s > STARTED_S:
            self._later(STARTED_S, self._say_started, ref, started)
        run_s = self._all.run_s * random.uniform(1 - self._all.spread, 1 + self._all.spread)
        self._later(run_s, self._finish, ref, started)

    def _say_started(self, ref: tuple[int, int, int], started: float) -> None:
        self._all.started += 1
        self._say(protocol.Started(((*ref, started),)))

    def _finish(self, ref: tuple[int, int, int], started: float) -> None:
        self._running -= 1
        self._all.finished += 1
        report = Report(*ref, "succeeded", exit_code=0, started_at=started, finished_at=time.time())
        self._say(protocol.Reports((report,)))


async def run(agents: Agents, count: int) -> None:
    """Lives until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        lives = [asyncio.create_task(agents.live(http, number)) for number in range(count)]
        while not ended.done():
            await asyncio.wait({ended}, timeout=1.0)
            answers, agents.answers_s = sorted(agents.answers_s), []
            waited = {"p50_ms": answers[len(answers) // 2] * 1e3, "worst_ms": answers[-1] * 1e3} if answers else {}
            print(
                json.dumps(
                    {
                        "connected": agents.connected,
                        "started": agents.started,
                        "finished": agents.finished,
                        "beats": len(answers),
                        **waited,
                    }
                ),
                flush=True,
            )
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


def main() -> int:
    """Runs the agents. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the leader")
    parser.add_argument("token_file", type=Path, help="the agents' token")
    parser.add_argument("count", type=int)
    parser.add_argument("--run-s", type=float, default=10.0, help="how long each task takes")
    parser.add_argument("--spread", type=float, default=0.5, help="by how much of that it may be more or less")
    options = parser.parse_args()
    agents = Agents(options.url, options.token_file.read_text().strip(), options.run_s, options.spread)
    asyncio.run(run(agents, options.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())

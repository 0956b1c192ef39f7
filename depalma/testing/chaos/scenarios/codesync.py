"""F23, the part that needs a network: a host that is cut off while a change of the code is on its way to it.

What agents that are killed, bytes that flip and lags do is tried in tests/system/test_code_log.py, which needs no root.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from depalma.client.client import Client
from depalma.model import CodeView
from depalma.testing.chaos.scenarios.agents import SETTINGS, submit
from depalma.testing.chaos.scenarios.registry import scenario
from depalma.testing.chaos.trial import Trial
from depalma.testing.chaos.waiting import wait_until

HOST = "h1"
ARCHIVE_BYTES = 4 * 1024 * 1024
#: the archive takes some seconds, so that a cut after a third of it is in its middle
LINE_BITS_PER_S = 8_000_000
#: longer than the lease, and than an agent waits for the next bytes of a transfer (10 s)
CUT_S = 12.0
AGREE_S = 30.0
#: what may come twice: a piece that was not on the disk yet, and what wraps the bytes on their way
TWICE_BYTES = 512 * 1024
WRAPPING = 1.15


class Cut(NamedTuple):
    """A way to cut the host off; `elsewhere`: other masters are still reached, and have the archive too."""

    what: str
    masters: Callable[[Trial], list[str]]
    elsewhere: bool


CUTS = (
    Cut("from all masters", lambda trial: trial.cluster.masters, False),
    Cut("from the leader, which it copies from", lambda trial: [trial.cluster.leader()], True),
)


@scenario("F23", "cut a host off in the middle of a transfer of code", short={"times": 2}, whole={"times": 10},
          quick=False, needs=("tc",),
          settings={**SETTINGS, "code_lag_s": 1.0, "code_kick_s": 60.0})  # fmt: skip
def cut_transfer(trial: Trial, times: int) -> None:
    """The bytes on its disk show that the cut is in the middle; healed, it goes on from there, and ends with the
    leader's tree. Nothing that needs the new code has run there before."""
    trial.begin()
    trial.network.throttle(HOST, LINE_BITS_PER_S)
    package = trial.directory / "pkg"
    package.mkdir()
    with trial.cluster.client() as client:
        for number in range(times):
            (package / "data.bin").write_bytes(trial.random.randbytes(ARCHIVE_BYTES))
            _cut_once(trial, client, CUTS[number % len(CUTS)], package)
    trial.network.unthrottle(HOST)


def _cut_once(trial: Trial, client: Client, cut: Cut, package: Path) -> None:
    index = client.add_code(package, timeout_s=0.0).index
    code = client.code()[-1]
    assert code.index == index
    part = trial.cluster.folder(HOST) / "code" / f"archive-{code.digest}.part"
    wait_until(lambda: _size(part) > ARCHIVE_BYTES / 3, within_s=20, what="a third of the archive is there")
    trial.network.cut(HOST, cut.masters(trial))
    cut_s, here_bytes, received_bytes = time.monotonic(), _size(part), trial.network.received_bytes(HOST)
    trial.require(
        0 < here_bytes < 0.9 * code.size, f"the cut was not in the middle: {here_bytes} of {code.size} bytes were there"
    )
    needing = submit(trial, client, f"needs-{index}", ["sh", "-c", "wc -c < $DEPALMA_CODE_DIR/pkg/data.bin"],
                     on_host=HOST)  # fmt: skip
    if cut.elsewhere:
        wait_until(lambda: _has(trial, code), within_s=AGREE_S * trial.slack, what=f"{HOST} has it from elsewhere")
    else:
        trial.run_for(CUT_S - (time.monotonic() - cut_s))
        trial.require(not _has(trial, code), "the archive is complete behind a cut")
    states = [task.state for task in needing.tasks()]
    trial.require(states == ["queued"], f"a task that needs the new code is {states} on a host that is cut off")
    trial.network.heal()
    healed_s = time.monotonic()
    wait_until(
        lambda: _agrees(trial, client, code), within_s=AGREE_S * trial.slack + 10, what=f"{HOST} has the leader's tree"
    )
    trial.expect("the leader's tree after the heal", time.monotonic() - healed_s, AGREE_S, about=cut.what)
    came_bytes = trial.network.received_bytes(HOST) - received_bytes
    trial.note(f"cut {cut.what}: {here_bytes:,} of {code.size:,} bytes were there, {came_bytes:,} came after the cut")
    trial.require(
        came_bytes <= (code.size - here_bytes) * WRAPPING + TWICE_BYTES,
        f"{came_bytes} bytes came after the cut: the transfer began again",
    )
    task = needing.wait(20).tasks()[0]
    trial.require(
        (task.state, task.host, task.code_index) == ("succeeded", HOST, index), f"{needing.id} ended as {task}"
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _has(trial: Trial, code: CodeView) -> bool:
    """Returns whether the host's tree is that of the entry, by its files."""
    tree = trial.cluster.folder(HOST) / "code" / "trees" / str(code.index) / "pkg" / "data.bin"
    return _size(tree) == ARCHIVE_BYTES


def _agrees(trial: Trial, client: Client, code: CodeView) -> bool:
    """Returns whether the cluster counts on the host again, which has signed for the leader's tree."""
    hosts = client.get("/v1/code/status")["hosts"]
    told = [(host["lag"], host["signature"], host["state"]) for host in hosts if host["host"] == HOST]
    return told == [(0, "valid", "up")] and _has(trial, code)

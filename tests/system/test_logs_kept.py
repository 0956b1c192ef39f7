"""Output that is still there: followed through deaths byte for byte, and its end kept when the host is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from depalma import LocalCluster

WaitUntil = Callable[..., Any]
LINES = 100
#: Numbered lines of about 1 KiB, so that an attempt writes more than the masters keep.
#: The first attempt does not come to its end: it is lost, however long it takes to kill its agent.
COUNT = (
    f'i=0; while test $i -lt {LINES}; do printf "%d:%d %01000d\\n" $DEPALMA_ATTEMPT $i 0; i=$((i+1)); sleep 0.03;'
    " test $DEPALMA_ATTEMPT$i != 180 || sleep 600; done"
)
KEPT_BYTES = 64 * 1024


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=3, agents=2, slots=1)


def written(attempt: int) -> str:
    """What an attempt writes that runs to its end."""
    return "".join(f"{attempt}:{number} {0:01000d}\n" for number in range(LINES))


@pytest.mark.long
def test_output_is_followed_through_deaths_and_its_end_outlives_the_host(
    cluster: LocalCluster, ctl: Any, environment: dict[str, str], wait_until: WaitUntil
) -> None:
    """The leader dies, then the agent: what is followed is a beginning of attempt 1 and all of attempt 2, each byte
    once. Then the second agent dies too, and the masters have the end. When both are back, so is everything."""
    job = ctl("submit", "-q", "--", "sh", "-c", COUNT).stdout.strip()
    following = subprocess.Popen(
        [sys.executable, "-m", "depalma.ctl", "logs", "-f", job],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with following:
        try:
            assert following.stdout is not None
            assert following.stderr is not None
            seen = [following.stdout.readline() for _ in range(10)]
            cluster.kill(cluster.leader())
            seen += [following.stdout.readline() for _ in range(20)]
            first = json.loads(ctl("show", f"{job}.0", "-o", "json").stdout)["host"]
            cluster.kill(first)
            seen += following.stdout.readlines()
            said = following.stderr.read()
            assert following.wait(60) == 0
        finally:
            following.kill()
    followed = "".join(seen)
    assert followed.endswith(written(2)), (followed[-300:], said)
    begin = followed.removesuffix(written(2))
    assert written(1).startswith(begin)
    assert len(begin.splitlines()) >= 30
    assert "attempt 1 is over (lost on" in said
    assert "attempt 2 follows" in said

    second = json.loads(ctl("show", f"{job}.0", "-o", "json").stdout)["host"]
    assert second != first
    cluster.kill(second)
    wait_until(lambda: ctl("host", "show", second, "-o", "json").stdout, lambda shown: '"lost"' in shown)
    whole = len(written(2))
    for done in (ctl("logs", job), ctl("-q", "logs", "-f", job)):
        assert done.stdout == written(2)[-KEPT_BYTES:]
        assert f"only the last {KEPT_BYTES} of {whole} bytes are kept: host {second} is lost" in done.stderr
    lost = ctl("logs", f"{job}.0", "--attempt", "1", code=1)
    assert f"host {first} is lost, and the attempt was lost" in lost.stderr

    for host in (first, second):
        cluster.restart(host)
    again = wait_until(lambda: ctl("logs", job), lambda done: done.stdout == written(2))
    assert "bytes are kept" not in again.stderr
    kept = ctl("logs", job, "--attempt", "1").stdout
    assert kept.startswith(begin)
    assert written(1).startswith(kept)

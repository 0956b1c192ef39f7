"""Measures the load of the whole host once a second, in a thread of its own, and remembers the last hour.

The thread is not waited for by anybody: a file system that hangs delays what is known of the load, and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from depalma.agent import kernel
from depalma.agent.daemons import Daemons
from depalma.agent.gpus import GpuMeter
from depalma.agent.loadring import LoadRing
from depalma.model import Load, LoadHistory
from depalma.monitor import boottime

log = logging.getLogger(__name__)

PERIOD_S = 1.0
#: File systems are looked at each so many samples.
_ROOM_SAMPLES = 10
#: The look at the processes of tasks takes at most this share of one CPU; with thousands of them it is rarer.
_TREE_SHARE = 0.01


class _Counters(NamedTuple):
    at_s: float
    busy: int
    ticks: int
    disk: tuple[int, int]
    network: tuple[int, int]


class LoadMeter:
    """The newest sample, and those of the last hour. `tasks_below` returns the process above all tasks, 0 for none."""

    def __init__(self, folder: str, tasks_below: Callable[[], int], gpus: GpuMeter | None = None) -> None:
        self.latest = Load()
        self._folder = folder
        self._tasks_below = tasks_below
        self._gpus = gpus or GpuMeter()
        self._ring = LoadRing(boottime())
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-meter", daemon=True)
        self._last = _counters()
        self._tasks = _TasksCpu(self._last.busy, self._last.ticks)
        self._room = (0, 0, 0, 0)
        self._samples = 0

    def start(self) -> None:
        """Begins to measure."""
        self._gpus.start()
        self._thread.start()

    def stop(self) -> None:
        """Ends it soon."""
        self._stop.set()
        self._gpus.stop()

    def history(self, last_s: float) -> LoadHistory:
        """Returns the load of the last seconds, an hour at most."""
        now = boottime()
        with self._lock:
            return self._ring.history(last_s, now, time.time() - now)

    def _run(self) -> None:
        works = True
        while not self._stop.is_set():
            try:
                self.sample()
                works = True
            except (OSError, ValueError) as error:
                if works:
                    log.warning("the load of this host cannot be measured: %s", error)
                works = False
            self._stop.wait(PERIOD_S)

    def sample(self) -> None:
        """Takes one sample (blocks: it reads the kernel's files)."""
        now = _counters()
        before, self._last = self._last, now
        seconds = max(now.at_s - before.at_s, 0.001)
        if self._samples % _ROOM_SAMPLES == 0:
            self._room = (*kernel.room_bytes(self._folder), *kernel.room_bytes("/"))
        self._samples += 1
        self._tasks.look(self._tasks_below())
        memory = kernel.memory_bytes()
        total, available = memory.get(b"MemTotal", 0), memory.get(b"MemAvailable", 0)
        swap = memory.get(b"SwapTotal", 0)
        load1, load5, load15 = os.getloadavg()
        disk = _rates(before.disk, now.disk, seconds)
        network = _rates(before.network, now.network, seconds)
        sample = Load(
            load1=round(load1, 2),
            load5=round(load5, 2),
            load15=round(load15, 2),
            cpu_percent=_percent(now.busy - before.busy, now.ticks - before.ticks),
            memory_percent=_percent(total - available, total),
            memory_used_bytes=total - available,
            tasks_cpu_percent=self._tasks.tasks_percent,
            foreign_cpu_percent=self._tasks.foreign_percent,
            memory_total_bytes=total,
            memory_available_bytes=available,
            swap_total_bytes=swap,
            swap_used_bytes=swap - memory.get(b"SwapFree", 0),
            folder_total_bytes=self._room[0],
            folder_free_bytes=self._room[1],
            root_total_bytes=self._room[2],
            root_free_bytes=self._room[3],
            disk_read_bytes_per_s=disk[0],
            disk_written_bytes_per_s=disk[1],
            network_received_bytes_per_s=network[0],
            network_sent_bytes_per_s=network[1],
            gpus=self._gpus.latest,
        )
        self.latest = sample
        if self._samples > 1:  # the first has no time before it of which it could tell
            with self._lock:
                self._ring.add(now.at_s, sample)


class _TasksCpu:
    """How much of the CPUs goes to tasks and how much to others, since the look before; masters and agents are neither.

    The tasks of other agents are others: masters, who know them all, take them off.
    """

    def __init__(self, busy: int, ticks: int) -> None:
        self.tasks_percent = self.foreign_percent = 0.0
        self._above = self._used = 0
        self._busy, self._ticks = busy, ticks
        self._next_s = 0.0
        self._daemons = Daemons()

    def look(self, above: int) -> None:
        """Looks at everything below the process `above`, unless that would cost too much yet."""
        if time.monotonic() < self._next_s:
            return
        began_cpu_s = time.thread_time()
        busy, ticks = kernel.cpu_ticks()
        used = kernel.cpu_ticks_below(above) if above else 0
        all_busy = max(0, busy - self._busy)
        # With another process above them nothing can be said yet. One that dies while it is looked at counts later.
        mine = min(max(0, used - self._used), all_busy) if above == self._above else 0
        self.tasks_percent = _percent(mine, ticks - self._ticks)
        self.foreign_percent = _percent(all_busy - mine - self._daemons.used().daemons, ticks - self._ticks)
        self._above, self._used = above, used
        # From after this look to before the next: what tasks used while this thread stood still in one is not foreign.
        self._busy, self._ticks = kernel.cpu_ticks()
        # By the clock, a machine that stands still for half a second would not be looked at for the next 50.
        self._next_s = time.monotonic() + (time.thread_time() - began_cpu_s) / _TREE_SHARE


def _counters() -> _Counters:
    return _Counters(boottime(), *kernel.cpu_ticks(), kernel.disk_bytes(), kernel.network_bytes())


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100 * part / whole)), 1) if whole > 0 else 0.0


def _rates(before: tuple[int, int], now: tuple[int, int], seconds: float) -> tuple[float, float]:
    """A device that is pulled out takes its count along: that is no negative rate."""
    first, second = (round(max(0, new - old) / seconds, 1) for old, new in zip(before, now, strict=True))
    return first, second

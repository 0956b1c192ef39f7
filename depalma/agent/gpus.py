"""The load of GPUs, where there are any: a host without one pays for a look at its start, and nothing after it.

The programs and drivers that are asked may hang for good. So a thread asks, which nobody waits for.
"""

from __future__ import annotations

import csv
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from depalma.agent.proctree import read
from depalma.model import GpuLoad

log = logging.getLogger(__name__)

PERIOD_S = 10.0
_ANSWER_S = 5.0
_MIB = 1024 * 1024
_QUERY = ("--query-gpu=name,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


class GpuMeter:
    """The newest load of each GPU."""

    def __init__(self, program: str = "nvidia-smi", cards: Path = Path("/sys/class/drm")) -> None:
        self._latest: tuple[GpuLoad, ...] = ()
        self._latest_s = 0.0
        self._stop = threading.Event()
        self._works = True
        found = shutil.which(program)
        self._asks: list[Callable[[], list[GpuLoad]]] = [] if found is None else [lambda: _nvidia(found)]
        amd = sorted(cards.glob("card[0-9]*/device/gpu_busy_percent"))
        if amd:
            self._asks.append(lambda: [gpu for path in amd if (gpu := _amd(path.parent)) is not None])

    @property
    def latest(self) -> tuple[GpuLoad, ...]:
        """Returns the newest answer; nothing once there has been none for a while."""
        return self._latest if time.monotonic() - self._latest_s < 3 * PERIOD_S else ()

    def start(self) -> None:
        """Begins to measure, if there is what could be asked."""
        if self._asks:
            threading.Thread(target=self._run, name="gpu-meter", daemon=True).start()

    def stop(self) -> None:
        """Ends it after the question that is under way; nobody waits for that."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._latest = tuple(gpu for ask in self._asks for gpu in self._answer(ask))
            self._latest_s = time.monotonic()
            self._stop.wait(PERIOD_S)

    def _answer(self, ask: Callable[[], list[GpuLoad]]) -> list[GpuLoad]:
        try:
            found = ask()
            self._works = True
            return found
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            if self._works:  # once, not every ten seconds
                log.warning("the load of GPUs is not known: %s", error)
            self._works = False
            return []


def _nvidia(program: str) -> list[GpuLoad]:
    """Asks the driver's own program. Errors: OSError, SubprocessError, ValueError."""
    done = subprocess.run(
        [program, *_QUERY], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_S, check=False
    )
    if done.returncode != 0:
        raise ValueError(f"{program} ended with {done.returncode}: {(done.stdout or done.stderr).strip()[:200]}")
    rows = list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
    if any(len(row) != 4 for row in rows):
        raise ValueError(f"{program} says {done.stdout.strip()[:200]!r}; a name and three numbers were asked for")
    return [GpuLoad(row[0], _number(row[1]), int(_number(row[2]) * _MIB), int(_number(row[3]) * _MIB)) for row in rows]


def _number(text: str) -> float:
    """Some cards do not tell some of it: `[N/A]`."""
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def _amd(device: Path) -> GpuLoad | None:
    busy = read(f"{device}/gpu_busy_percent").strip()
    if not busy.isdigit():
        return None
    name = read(f"{device}/product_name").decode(errors="replace").strip() or f"AMD {device.parent.name}"
    used, total = (read(f"{device}/mem_info_vram_{what}").strip() or b"0" for what in ("used", "total"))
    return GpuLoad(name, float(busy), int(used), int(total))

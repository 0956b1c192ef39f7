"""What the kernel's files and the programs of GPUs say, read by us and by others."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from depalma.agent import gpus, kernel
from depalma.agent.gpus import GpuMeter
from depalma.agent.loadmeter import LoadMeter
from depalma.model import GpuLoad

TICKS = os.sysconf("SC_CLK_TCK")
#: What a busy loop uses at least, however busy this machine is and however many CPUs it has, in percent of all.
SOME = 2.0 / (os.cpu_count() or 1)
#: Burns time in a child that it waits for, then in itself, says what that child used in all, and stays.
BURN = """
import os, subprocess, sys, time
burn = "import time; end = time.process_time() + 0.3\\nwhile time.process_time() < end: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
exec(burn)
times = os.times()
print(times.children_user + times.children_system, flush=True)
sys.stdin.read()
"""


def wait_until(look: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        yield made
        made.kill()


def test_the_kernels_files_say_what_others_read_in_them() -> None:
    busy, ticks = kernel.cpu_ticks()
    times = psutil.cpu_times()
    busy_after, ticks_after = kernel.cpu_ticks()
    # Between the two, whenever this process stood still; the times of idle CPUs are not exact, and may even go back.
    assert ticks / TICKS - 5 <= sum(times[:8]) <= ticks_after / TICKS + 5
    idle, idle_after = (ticks - busy) / TICKS, (ticks_after - busy_after) / TICKS
    assert idle - 5 <= times.idle + times.iowait <= idle_after + 5
    memory = kernel.memory_bytes()
    assert memory[b"MemTotal"] == psutil.virtual_memory().total
    assert memory[b"SwapTotal"] == psutil.swap_memory().total
    assert kernel.room_bytes("/")[0] == shutil.disk_usage("/").total
    near = pytest.approx  # others write meanwhile
    wait_until(lambda: kernel.room_bytes("/")[1] == near(shutil.disk_usage("/").free, abs=2**30), "the same free room")
    assert kernel.room_bytes("/nowhere") == (0, 0)


def test_of_disks_and_interfaces_only_hardware_counts() -> None:
    def read_and_written() -> tuple[int, int]:
        disks = psutil.disk_io_counters(perdisk=True)
        real = [disks[name] for name in disks if Path(f"/sys/block/{name}/device").exists()]
        return sum(disk.read_bytes for disk in real), sum(disk.write_bytes for disk in real)

    before, now, after = read_and_written(), kernel.disk_bytes(), read_and_written()
    assert before[0] <= now[0] <= after[0]
    assert before[1] <= now[1] <= after[1]


def test_the_loopback_is_no_network() -> None:
    """Others may use the network meanwhile, but not all the time as much as this."""
    wait_until(lambda: counted_of_a_local_transfer(size := 64 * 2**20) < size / 2, "transfer that is not counted")


def counted_of_a_local_transfer(size: int) -> int:
    before = sum(kernel.network_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        sender = threading.Thread(target=near.sendall, args=(bytes(size),))
        sender.start()
        with far:
            left = size
            while left:
                left -= len(far.recv(1 << 20))
        sender.join()
    return sum(kernel.network_bytes()) - before


def test_the_time_of_processes_that_are_gone_counts(burner: subprocess.Popen[str]) -> None:
    assert burner.stdout is not None
    said_s = float(burner.stdout.readline())
    # Below it there is nothing any more, but it has waited for a child that burnt 0.3 s; its own is not below it.
    assert said_s >= 0.25
    assert kernel.cpu_ticks_below(burner.pid) == pytest.approx(said_s * TICKS, abs=2)
    assert kernel.cpu_ticks_below(os.getpid()) >= 0.55 * TICKS
    assert kernel.cpu_ticks_below(2**22 + 1) == 0


def test_a_host_that_stood_still_is_looked_at_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look waited for a processor is no cost of it: by the clock, 0.3 s of it were half a minute without one."""
    looked = []

    def after_a_stop(pid: int) -> int:
        time.sleep(0.3)
        looked.append(pid)
        return 0

    monkeypatch.setattr(kernel, "cpu_ticks_below", after_a_stop)
    meter = LoadMeter(str(tmp_path), lambda: 1)
    wait_until(lambda: meter.sample() or len(looked) > 1, "second look", timeout_s=15.0)


def test_what_tasks_used_while_a_look_stood_still_is_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, stops = 1000, [0, 250, 0]  # one of two processors is used, by our tasks

    def below(pid: int) -> int:
        nonlocal now
        now += stops.pop(0)
        return now

    monkeypatch.setattr(kernel, "cpu_ticks", lambda: (now, 2 * now))
    monkeypatch.setattr(kernel, "cpu_ticks_below", below)
    meter = LoadMeter(str(tmp_path), lambda: 1)
    monkeypatch.setattr(meter._tasks._daemons, "used", lambda: SimpleNamespace(daemons=0))
    while stops:
        now += 100
        meter._tasks._next_s = 0.0
        meter.sample()
    assert (meter.latest.tasks_cpu_percent, meter.latest.foreign_cpu_percent) == (50.0, 0.0)


def test_the_load_tells_tasks_from_everything_else(tmp_path: Path) -> None:
    """With half of it ours and half foreign, whatever else runs here."""
    loop = [sys.executable, "-c", "while True: pass"]
    meter = LoadMeter(str(tmp_path), lambda: above.pid)
    with (
        subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", *loop], start_new_session=True) as above,
        subprocess.Popen(loop) as foreign,
    ):
        try:
            meter.start()
            wait_until(
                lambda: min(meter.latest.tasks_cpu_percent, meter.latest.foreign_cpu_percent) > SOME, "load of both"
            )
            wait_until(lambda: meter.history(60).points, "history")
        finally:
            meter.stop()
            foreign.kill()
            os.killpg(above.pid, signal.SIGKILL)
    load = meter.latest
    assert load.tasks_cpu_percent + load.foreign_cpu_percent <= 100.2
    assert load.memory_used_bytes + load.memory_available_bytes == load.memory_total_bytes
    assert 0 < load.folder_free_bytes < load.folder_total_bytes
    assert 0 < load.root_free_bytes < load.root_total_bytes
    history = meter.history(60)
    assert history.began_at == pytest.approx(time.time(), abs=60)
    assert sum(point.samples for point in history.points) >= 1
    wait_until(lambda: not any(thread.name == "load-meter" for thread in threading.enumerate()), "end of the thread")


# ---------------------------------------------------------------- GPUs


def program(folder: Path, text: str) -> str:
    """Returns the path of a program that stands in for the driver's."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def running() -> Iterator[Callable[[GpuMeter], GpuMeter]]:
    made: list[GpuMeter] = []

    def start(meter: GpuMeter) -> GpuMeter:
        made.append(meter)
        meter.start()
        return meter

    yield start
    for meter in made:
        meter.stop()
    wait_until(lambda: not any(t.name == "gpu-meter" for t in threading.enumerate()), "end of the threads")


def test_a_host_without_a_gpu_has_no_thread_for_it(tmp_path: Path) -> None:
    meter = GpuMeter("no-such-program", tmp_path)
    meter.start()
    assert meter.latest == ()
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu-meter"]


def test_nvidia_gpus_are_asked_by_their_program(tmp_path: Path, running: Callable[[GpuMeter], GpuMeter]) -> None:
    text = """test "$2" = --format=csv,noheader,nounits || exit 9
echo 'NVIDIA "A", 40GB, 37, 1024, 40960' | sed 's/"A", 40GB/A100/'
echo 'Quadro K620, [N/A], 12, 2048'"""
    meter = running(GpuMeter(program(tmp_path, text), tmp_path))
    wait_until(lambda: meter.latest, "load of GPUs")
    assert meter.latest == (
        GpuLoad("NVIDIA A100", 37.0, 2**30, 40 * 2**30),
        GpuLoad("Quadro K620", 0.0, 12 * 2**20, 2 * 2**30),
    )


def test_amd_gpus_are_read_from_the_kernels_files(tmp_path: Path, running: Callable[[GpuMeter], GpuMeter]) -> None:
    device = tmp_path / "card1" / "device"
    device.mkdir(parents=True)
    for name, text in (("gpu_busy_percent", "61"), ("mem_info_vram_used", "5"), ("mem_info_vram_total", "9")):
        (device / name).write_text(f"{text}\n")
    (tmp_path / "card1-DP-1").mkdir()
    meter = running(GpuMeter("no-such-program", tmp_path))
    wait_until(lambda: meter.latest, "load of GPUs")
    assert meter.latest == (GpuLoad("AMD card1", 61.0, 5, 9),)


@pytest.mark.parametrize(("text", "words"), [
    ("echo no devices were found; exit 6", "ended with 6: no devices were found"),
    ("echo nonsense", "says 'nonsense'"),
    ("exec sleep 600", "timed out"),
])  # fmt: skip
def test_a_driver_that_does_not_work_is_said_once(
    text: str, words: str, tmp_path: Path, running: Callable[[GpuMeter], GpuMeter],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gpus, "PERIOD_S", 0.01)
    monkeypatch.setattr(gpus, "_ANSWER_S", 0.2 if "sleep" in text else 60.0)
    marks = tmp_path / "asked"
    with caplog.at_level(logging.WARNING, "depalma.agent.gpus"):
        meter = running(GpuMeter(program(tmp_path, f"echo >> {marks}; {text}"), tmp_path))
        wait_until(lambda: marks.exists() and marks.read_text().count("\n") > 2, "third question")
    assert [record.getMessage() for record in caplog.records] == [caplog.records[0].getMessage()]
    assert words in caplog.records[0].getMessage()
    assert meter.latest == ()

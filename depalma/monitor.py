"""The supervisor that stands beside every agent: it owns the processes, and it outlives the agent just long enough.

What it guarantees:
- Every process of a task is its descendant (it is a subreaper), whatever that process does to hide.
- It holds the lease's deadline itself (CLOCK_BOOTTIME, so that sleep counts): when the deadline passes, everything is
  killed, whether the agent is alive, stopped, swapped out or dead.
- When the agent dies, everything is killed, and the masters are told that nothing of it lives any more.

It is one small process with one thread, and imports the standard library only. It is started by file name, see
`agent/link.py`; the messages of both directions are listed at `Monitor._orders`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

if __name__ == "__main__":  # started isolated (-I -S): the package is found beside this file
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from depalma.agent import orphans, proctree, visiting
from depalma.agent.cgroups import ControlGroups
from depalma.agent.channel import Channel
from depalma.agent.entering import SpawnError
from depalma.agent.limits import LOOK_S, Ended
from depalma.agent.restraint import Restraint
from depalma.agent.spawning import Slots, Spawned, Spawner
from depalma.agent.stuck import CODE, Stuck

#: The clock may jump over a deadline while the machine sleeps; this is how soon it is looked at again.
_LOOK_S = 0.2
_KILL_AGAIN_S = 0.05
#: /proc may show too few children while some of them end: it is read again, whether there is a reason or not.
_SWEEP_S = 1.0
_COALESCE_S = 0.02  #: for ends that nobody waits for: at 2 ms a command of 1 ms cost all processes half as much again


def boottime() -> float:
    """Returns seconds since boot, sleep included; no change of the wall clock touches it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Monitor:
    """The state of the supervisor: what runs, until when it may, and what is still to be said to the agent."""

    def __init__(self, channel: Channel, root: str, output_limit_bytes: int, groups: ControlGroups) -> None:
        self.channel = channel
        self.groups = groups
        self.slots = Slots(root, output_limit_bytes)
        self.spawner = Spawner(self.slots, groups)
        self.restraint = Restraint(groups)
        self.stuck = Stuck()
        self._children = proctree.OwnChildren()
        self.lease_until = 0.0  #: 0 = nothing may run
        self.by_pid: dict[int, Spawned] = {}
        self.by_key: dict[int, Spawned] = {}
        self.unknown: dict[int, set[int]] = {}  #: orphans without a marker, and the keys they may belong to
        self.identity: dict[str, Any] = {}
        self.stopping = ""  #: why, when the agent asked for an orderly end
        self.running: dict[int, int] = {}  #: slot → key of the command on it
        self.lines: dict[int, deque[tuple[Any, ...]]] = {}  #: slot → commands that wait for it
        self._strangers: dict[tuple[int, int], int] = {}  #: how children ended that nobody had told us of
        self._exits: list[tuple[int, int | None, float, float, str, str, bool]] = []
        self._sweep_s = self._look_s = 0.0
        self._exits_s = 0.0  #: when the first of them was noted
        self._prompt = True  #: somebody waits for what there is to say
        #: From the agent. To it: ready, exits, expired, all_dead, trees, recalled, pong.
        self._orders = {
            "spawn": self._spawn,
            "adopt": self._adopt,
            "recall": self._recall,
            "visit": lambda message: visiting.begin(self, message),
            "signal": lambda message: visiting.pass_on(self, message),
            "kill": self._kill,
            "suspend": self._suspend,
            "resume": self._resume,
            "lower": lambda message: self.restraint.lower(message[1]),
            "lease": self._lease,
            "environment": self._environment,
            "identity": lambda message: self.identity.update(message[1]),
            "kill_all": self._kill_all,
            "trees": self._trees,
            "ping": self._ping,
            "stop": self._stop,
        }

    def obey(self, message: tuple[Any, ...]) -> None:
        """Does what one message of the agent says."""
        self._orders[message[0]](message)

    def flush(self) -> None:
        """Sends what there is to say; ends wait a moment for company while every slot has its next command.

        Errors: OSError when the agent is gone.
        """
        if self._exits and (self._prompt or time.monotonic() - self._exits_s >= _COALESCE_S):
            self._queue_exits()
        self.channel.flush()

    def _queue_exits(self) -> None:
        if self._exits:
            self.channel.queue(("exits", self._exits))
            self._exits = []
        self._prompt = False

    def note_exit(
        self, key: int, status: int | None, start: float, end: float, problem: str, code: str = "", wrote: bool = False
    ) -> None:
        """Has the agent told how a process ended."""
        if not self._exits:
            self._exits_s = time.monotonic()
        self._exits.append((key, status, start, end, problem, code, wrote))

    def wait_s(self) -> float:
        """Returns how long the loop may sleep."""
        if self._exits:
            return _COALESCE_S
        if any(spawned.deadline is not None or spawned.status is not None for spawned in self.by_key.values()):
            return _KILL_AGAIN_S
        if any(spawned.watch is not None for spawned in self.by_key.values()):
            return LOOK_S
        now = boottime()
        if self.lease_until:
            return min(_LOOK_S, self.restraint.wait_s(now), max(0.0, self.lease_until - now))
        return _LOOK_S if self.unknown else 5.0

    def tick(self) -> None:
        """Looks at the deadlines: the lease first, then the grace times and those that would not die."""
        now = boottime()
        if self.lease_until and now >= self.lease_until:
            self._expire()
        for spawned in list(self.by_key.values()):
            if spawned.deadline is not None and now >= spawned.deadline:
                spawned.signal(signal.SIGKILL)
        for spawned in self.stuck.look(self.by_key, now):
            self.by_pid.pop(spawned.pid, None)
            say(f"a task: {spawned.hangs}")
        if now >= self._look_s:
            self._look_s = now + LOOK_S
            for spawned in self.by_key.values():
                spawned.look_at_limits()
        waiting = self.unknown or any(spawned.status is not None for spawned in self.by_key.values())
        if waiting or now >= self._sweep_s:
            self.sweep()
            self._sweep_s = now + _SWEEP_S
        if self.restraint.due(now):
            self.sweep()
            self.restraint.look(self.by_key.values(), self.unknown, now)

    def _unwatch(self, spawned: Spawned) -> None:
        if spawned.watch is not None:
            self.groups.discard(spawned.watch.group)

    # ------------------------------------------------------------ orders

    def _spawn(self, message: tuple[Any, ...]) -> None:
        slot, has_fd = message[7:9]
        if slot in self.running or (slot >= 0 and self.restraint.holds_all):
            self.lines.setdefault(slot, deque()).append(message)
            return
        self._start(message, self.channel.received_fds.popleft() if has_fd else -1)
        if slot >= 0 and slot not in self.running:
            self._prompt = True

    def _start(self, message: tuple[Any, ...], fd: int) -> None:
        _, key, _, _, _, _, (out, err), slot, *_ = message
        spawned = Spawned(key, slot, ("" if out[:1] == ">" else out, "" if err[:1] == ">" else err))
        try:
            if not self.may_start:
                raise SpawnError("the host's lease is over", 126)
            self.spawner.spawn(spawned, message, fd)
        except SpawnError as error:
            self._unwatch(spawned)
            self.slots.kept(spawned)  # its inputs may be there already
            now = time.time()
            self.note_exit(key, error.exit_code << 8, now, now, str(error))
            return
        finally:
            if fd >= 0:
                os.close(fd)
        self.take_on(spawned)
        if slot >= 0:
            self.running[slot] = key

    @property
    def may_start(self) -> bool:
        """Whether anything may begin now."""
        return boottime() < self.lease_until and not self.stopping

    def take_on(self, spawned: Spawned) -> None:
        """Has a process that was started looked after from now on."""
        self.by_pid[spawned.pid] = self.by_key[spawned.key] = spawned
        self.restraint.look_soon()

    def _adopt(self, message: tuple[Any, ...]) -> None:
        """Takes on a worker that was forked for us: it is our child, but nobody told us its key before."""
        _, key, pid, start = message
        spawned = Spawned(key, -1, ("", ""))
        spawned.started = time.time()
        now = proctree.stat(pid)
        if now is None or (now.ppid, now.start) != (os.getpid(), start):
            self.note_exit(key, self._strangers.pop((pid, start), 9), spawned.started, time.time(), "")
            self._prompt = True
            return
        spawned.pid = pid
        self.unknown.pop(pid, None)
        for other in self.by_key.values():
            other.orphans.discard(pid)
        self.take_on(spawned)

    def _start_next(self, slot: int) -> None:
        """Starts the next command of a slot that is free now."""
        self.running.pop(slot, None)
        line = self.lines.get(slot)
        while line and slot not in self.running and not self.restraint.holds_all:
            self._start(line.popleft(), -1)
        if slot not in self.running:
            self._prompt = True

    def _recall(self, message: tuple[Any, ...]) -> None:
        """Takes back the commands of a slot that have not started; the ends of the others are told before."""
        _, lane, slot = message
        keys = [waiting[1] for waiting in self.lines.pop(slot, ())]
        self._queue_exits()
        self.channel.queue(("recalled", lane, keys))

    def _kill(self, message: tuple[Any, ...]) -> None:
        _, key, grace_s = message
        spawned = self.by_key.get(key)
        if spawned is not None and spawned.deadline is None:
            spawned.end(boottime() + grace_s, polite=grace_s > 0)

    def _suspend(self, message: tuple[Any, ...]) -> None:
        """Has one key, or (None) every task, stand still for a reason, also what starts later."""
        _, key, reason = message
        if key is None or key in self.by_key:
            self.restraint.suspend(key, reason)

    def _resume(self, message: tuple[Any, ...]) -> None:
        self.restraint.resume(message[1], message[2], self.by_key.values())
        for slot in self.lines.keys() - self.running.keys():
            self._start_next(slot)

    def _lease(self, message: tuple[Any, ...]) -> None:
        self.lease_until = message[1]  # `tick` sees whether it is over: a newer one may be behind this one

    def _environment(self, message: tuple[Any, ...]) -> None:
        _, job, variables = message
        if variables is None:
            self.spawner.environments.pop(job, None)
        else:
            self.spawner.environments[job] = variables

    def _kill_all(self, message: tuple[Any, ...]) -> None:
        self.lease_until = 0.0
        self.kill_everything()
        self.channel.queue(("all_dead", message[1]))

    def _trees(self, message: tuple[Any, ...]) -> None:
        self.sweep()  # what has lost its parent since the last look
        self.channel.queue(("trees", message[1], [(s.visited or s.key, s.pids()) for s in self.by_key.values()]))

    def _ping(self, message: tuple[Any, ...]) -> None:
        self._queue_exits()  # the answer says what runs: see questions.py
        self.channel.queue(("pong", message[1]))

    def _stop(self, message: tuple[Any, ...]) -> None:
        _, self.stopping, grace_s = message
        self.lines.clear()
        if self.by_key or self.unknown:
            visiting.end_all(self.by_key.values())
            proctree.send_tree(os.getpid(), signal.SIGTERM)
            proctree.send_tree(os.getpid(), signal.SIGCONT)  # what stands still could not obey
            end = boottime() + grace_s
            while self.by_key and boottime() < min(end, self.lease_until):
                time.sleep(0.01)
                self.reap()

    # ------------------------------------------------------------ ends

    def reap(self) -> None:
        """Collects every process that has ended, and what each leaves behind."""
        ended = False
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                break
            ended = True
            self._reaped(found.si_pid)
        if ended:
            self.sweep()

    def _reaped(self, pid: int) -> None:
        spawned = self.by_pid.pop(pid, None)
        if spawned is None:
            now = proctree.stat(pid)
            _, status = os.waitpid(pid, 0)
            if now is not None:
                self._strangers[pid, now.start] = status
                while len(self._strangers) > 256:
                    del self._strangers[next(iter(self._strangers))]
            self.unknown.pop(pid, None)
            self.stuck.pids.discard(pid)
            for other in self.by_key.values():
                other.orphans.discard(pid)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # of another user, by `sudo`
            os.killpg(pid, signal.SIGKILL)  # the zombie holds the number of its group: this can reach no one else
        peak_bytes = spawned.reap()
        if spawned.watch is not None and spawned.status is not None:
            spawned.over = spawned.over or spawned.watch.at_end(spawned.status, peak_bytes)
            spawned.watch.group.kill()

    def sweep(self) -> None:
        """Finds orphans, kills those whose task has ended, and reports the tasks of which nothing is left."""
        own = os.getpid()
        known = self._children()
        for pid in known - self.by_pid.keys() - self.stuck.pids:
            orphans.judge(pid, self.by_key, self.unknown)
        # Visitors before what they visit: they were started later.
        for spawned in [s for s in reversed(self.by_key.values()) if s.status is not None]:
            spawned.orphans &= known
            for pid in spawned.orphans:
                spawned.dirty = True
                proctree.send_tree(pid, signal.SIGKILL)
                proctree.send(pid, own, signal.SIGKILL)
            if not spawned.orphans and not visiting.remain(spawned, self.by_key):
                self._finish(spawned)

    def _finish(self, spawned: Spawned) -> None:
        del self.by_key[spawned.key]
        self.restraint.forget(spawned.key)
        problem, unkept = spawned.failure(), self.slots.kept(spawned)  # both: its inputs may be there already
        self._unwatch(spawned)
        code = CODE if spawned.hangs and os.WIFSIGNALED(spawned.status or 0) else ""
        over, times = spawned.over or Ended(code, problem or unkept), (spawned.started, spawned.ended)
        words = "; ".join(filter(None, (over.words, spawned.hangs)))
        self.note_exit(spawned.key, spawned.status, *times, words, over.code, spawned.wrote)
        if spawned.slot >= 0:
            self._start_next(spawned.slot)
        else:
            self._prompt = True

    def _expire(self) -> None:
        late, count = boottime() - self.lease_until, len(self.by_key)
        self.lease_until = 0.0
        self.channel.queue(("expired", late))
        if count or self.unknown:
            self.kill_everything()
            say(f"lease over ({late:.2f} s ago): killed {count} process trees")

    def kill_everything(self) -> None:
        """Kills every descendant and comes back when none is left; what they wrote is kept."""
        self.groups.kill_all()  # in one moment, where the kernel can: nothing outruns it
        self.stuck.pids = proctree.kill_descendants()
        if self.stuck.pids:
            say(f"processes {sorted(self.stuck.pids)} were killed and hang in the kernel: they can do nothing more")
        self.groups.go_on()
        for spawned in self.by_key.values():
            spawned.dirty = True
            self._unwatch(spawned)
            spawned.failure()
            if problem := self.slots.kept(spawned):
                say(f"a killed task: {problem}")
        for known in (self.by_pid, self.by_key, self.unknown, self.running, self.lines, self._exits):
            known.clear()
        self.restraint.forget()


def say(text: str) -> None:
    """Writes one line to the agent's log, unless it would have to wait: then nobody would hold the lease."""
    with contextlib.suppress(OSError):
        if select.select((), (2,), (), 0)[1]:
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} WARNING depalma.monitor: {text}\n"
            os.write(2, line.encode(errors="surrogateescape"))  # a folder may have any bytes as its name


def serve(monitor: Monitor, wakeup: socket.socket) -> str:
    """Runs until the agent is gone. Returns why it is."""
    channel = monitor.channel
    poller = select.poll()
    poller.register(wakeup, select.POLLIN)
    poller.register(channel.sock, select.POLLIN)
    pending = waits = False
    while not monitor.stopping:
        if pending != waits:
            poller.modify(channel.sock, select.POLLIN | (select.POLLOUT if pending else 0))
            waits = pending
        ready = {fd for fd, _ in poller.poll(monitor.wait_s() * 1000)}
        try:
            if channel.sock.fileno() in ready:
                for message in channel.receive():
                    monitor.obey(message)
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
                monitor.reap()
            monitor.tick()
            monitor.flush()
            pending = not channel.flush()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return "agent died"
    return monitor.stopping


def main() -> None:
    """Entry: `monitor.py CHANNEL_FD LOCK_FD FOLDER OUTPUT_LIMIT_BYTES`."""
    channel_fd, lock_fd, root, limit_bytes = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.set_inheritable(channel_fd, False)
    os.set_inheritable(lock_fd, False)
    proctree.become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the agent does, and not before
    wakeup, waker = socket.socketpair()
    wakeup.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    groups = ControlGroups()
    monitor = Monitor(Channel(socket.socket(fileno=channel_fd)), root, limit_bytes, groups)
    monitor.channel.queue(("ready", groups.facts()))
    try:
        why = serve(monitor, wakeup)
    finally:  # also when this code is wrong: nothing may outlive its supervisor
        monitor.kill_everything()
        groups.close()
    os.close(lock_fd)  # nothing of this agent lives: a new one may start
    if monitor.identity:
        from depalma.agent.gone import tell_gone

        if not tell_gone(monitor.identity, why):
            say("no master could be told that the agent is gone")


if __name__ == "__main__":
    main()

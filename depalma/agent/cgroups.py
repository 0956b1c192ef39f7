"""The control groups of one monitor: where the kernel lets it make some. Standard library only.

Nothing here is needed for the promises of the monitor, and every failure means "not available here": a laptop without
delegation, a container with a read-only `/sys`, a kernel without the controller. What is available is found out by
doing it, never by reading versions.

```
v2   BASE/depalma-PID/tasks    the monitor, and so everything that it starts: one `cgroup.kill` ends all of it
                     /outside  the monitor, while it does that
                     /agent    its agent, where the controllers ask for a folder without processes (delegation)
                     /k12      a task that has limits
v1   BASE/depalma-PID/k12      the same, in the hierarchies of memory, pids and cpuacct
```
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

#: In a worker's environment: what `ControlGroups.borrowed` needs.
GROUPS = "DEPALMA_CGROUPS"
#: Set to anything: no control group is used.
OFF = "DEPALMA_NO_CGROUPS"
_PREFIX = "depalma-"
_V1 = ("memory", "pids", "cpuacct")
_V2 = ("memory", "pids")


def own_places(process: str = "self") -> dict[str, str]:
    """Returns the folder of the calling process in each hierarchy: `v2`, and the controllers of v1 by name; or that of
    another process, as the calling one sees it."""
    try:
        with open(f"/proc/{process}/cgroup", errors="surrogateescape") as file:
            paths = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return {}
    found: dict[str, str] = {}
    for mount in mounts:
        dash = mount.index("-")
        kind, options = mount[dash + 1], mount[dash + 3].split(",")
        for number, names, path in paths:
            if kind == "cgroup2" and number == "0":
                wanted = ["v2"]
            elif kind == "cgroup" and names and set(names.split(",")) <= set(options):
                wanted = names.split(",")
            else:
                continue
            below = os.path.relpath(path, mount[3])
            if not below.startswith(".."):
                found.update(dict.fromkeys(wanted, os.path.normpath(os.path.join(mount[4], below))))
    return found


class TaskGroup:
    """The groups of one task that has limits. `procs`: files that its first process writes itself into."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders  #: by what they are for: memory, pids, cpu
        self.procs = [f"{folder}/cgroup.procs" for folder in dict.fromkeys(folders.values())]

    @classmethod
    def of(cls, pid: int) -> TaskGroup:
        """Returns the groups that a process is in and the calling one is not."""
        own = own_places()
        return cls({kind: folder for kind, folder in own_places(str(pid)).items() if folder != own.get(kind)})

    def cpu_s(self) -> float | None:
        """Returns the processor time of all processes that were ever in it; None = not counted here."""
        folder = self.folders.get("cpu", "")
        usage = _read(f"{folder}/cpuacct.usage") if folder else ""
        if usage:
            return int(usage) / 1e9
        used = _fields(f"{folder}/cpu.stat").get("usage_usec") if folder else None
        return None if used is None else used / 1e6

    def out_of_memory(self) -> bool:
        """Returns whether the kernel ended a process of it for want of memory."""
        folder = self.folders.get("memory", "")
        files = (f"{folder}/memory.events", f"{folder}/memory.oom_control") if folder else ()
        return any(_fields(name).get("oom_kill", 0) for name in files)

    def forks_refused(self) -> bool:
        """Returns whether a process could not be made because there were as many as allowed."""
        folder = self.folders.get("pids", "")
        return bool(folder and _fields(f"{folder}/pids.events").get("max", 0))

    def pids(self) -> list[int]:
        """Returns the processes that are in it now."""
        return [int(word) for word in _read(self.procs[0]).split()] if self.procs else []

    def kill(self) -> None:
        """Kills all of it at once, where the kernel can."""
        for folder in set(self.folders.values()):
            _write(f"{folder}/cgroup.kill", "1")

    def remove(self) -> bool:
        """Removes the folders. Returns whether they are gone: a process that is just dying holds them."""
        for folder in set(self.folders.values()):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not any(os.path.exists(folder) for folder in self.folders.values())


class ControlGroups:
    """What this process may use. It works, and does nothing, where there is nothing."""

    def __init__(self) -> None:
        places = {} if os.environ.get(OFF) else own_places()
        self._name = f"{_PREFIX}{os.getpid()}"
        self._unremoved: list[TaskGroup] = []
        self._bases = {kind: place for kind, place in places.items() if kind == "v2" or kind in _V1}
        if "v2" in self._bases:
            # A monitor that follows another one finds its agent where that one has put it.
            base, name = os.path.split(self._bases["v2"])
            if name == "agent" and os.path.basename(base).startswith(_PREFIX):
                self._bases["v2"] = os.path.dirname(base)
        for base in self._bases.values():
            _remove_stale(base)
        self._v2 = self._make_v2()
        self._controllers: set[str] = self._enable() if self._v2 else set()
        self._v1: dict[str, str] = {
            kind: folder
            for kind in _V1
            if kind in self._bases and kind not in self._controllers and (folder := self._make_v1(kind))
        }

    def shared(self) -> str:
        """Returns what another process needs to make groups beside ours, see `borrowed`."""
        return json.dumps([self._v2, sorted(self._controllers), self._v1])

    @classmethod
    def borrowed(cls, text: str) -> ControlGroups:
        """Returns the groups of the monitor above, for tasks that a worker starts; `text` is what it shared."""
        own = cls.__new__(cls)
        own._v2, controllers, own._v1 = json.loads(text or '["", [], {}]')
        own._controllers, own._bases, own._unremoved = set(controllers), {}, []
        return own

    # ------------------------------------------------------------ what there is

    def facts(self) -> dict[str, str]:
        """Returns by what each thing is limited or done here: `cgroup v2`, `cgroup v1`, or nothing."""
        found = {"kill": "cgroup v2"} if self._v2 else {}
        for what, kind in (("memory", "memory"), ("processes", "pids")):
            if kind in self._controllers:
                found[what] = "cgroup v2"
            elif kind in self._v1:
                found[what] = "cgroup v1"
        if self._v2:
            found["cpu time"] = "cgroup v2"
        elif "cpuacct" in self._v1:
            found["cpu time"] = "cgroup v1"
        return found

    def _make_v2(self) -> str:
        folder = f"{self._bases['v2']}/{self._name}" if "v2" in self._bases else ""
        if not folder:
            return ""
        try:
            for name in (folder, f"{folder}/outside", f"{folder}/tasks"):
                os.mkdir(name, 0o755)
            if not os.path.exists(f"{folder}/tasks/cgroup.kill") or not _write(f"{folder}/tasks/cgroup.procs", "0"):
                raise OSError
        except OSError:
            _remove_tree(folder)
            return ""
        return folder

    def _enable(self) -> set[str]:
        """Turns on the controllers for the folders of tasks. Returns those that are."""
        base = self._bases["v2"]
        wanted = [name for name in _V2 if name in _read(f"{base}/cgroup.controllers").split()]
        missing = [name for name in wanted if name not in _read(f"{base}/cgroup.subtree_control").split()]
        if missing:
            inside = {int(word) for word in _read(f"{base}/cgroup.procs").split()}
            if inside - {os.getppid()}:
                wanted = [name for name in wanted if name not in missing]  # others live there: not ours to move
            elif inside:
                with contextlib.suppress(OSError):
                    os.mkdir(f"{self._v2}/agent", 0o755)
                _write(f"{self._v2}/agent/cgroup.procs", str(os.getppid()))
        for name in wanted:
            _write(f"{base}/cgroup.subtree_control", f"+{name}")
            _write(f"{self._v2}/cgroup.subtree_control", f"+{name}")
        enabled = set(_read(f"{self._v2}/cgroup.subtree_control").split())
        return enabled & set(_V2)

    def _make_v1(self, kind: str) -> str:
        folder = f"{self._bases[kind]}/{self._name}"
        try:
            os.mkdir(folder, 0o755)
        except OSError:
            return ""
        return folder

    # ------------------------------------------------------------ tasks

    def group(self, key: str, *, memory_bytes: int, processes: int, cpu_s: float) -> TaskGroup:
        """Returns the groups for a task with these limits (0 = none); what is not available is left out."""
        self._remove_old()
        folders: dict[str, str] = {}
        if memory_bytes:
            settings = [("memory.max", memory_bytes), ("memory.swap.max", 0), ("memory.oom.group", 1)]
            if "memory" in self._v1:
                settings = [("memory.limit_in_bytes", memory_bytes), ("memory.memsw.limit_in_bytes", memory_bytes)]
            self._add(folders, "memory", "memory", key, settings)
        if processes:
            self._add(folders, "pids", "pids", key, [("pids.max", processes)])
        if cpu_s:
            self._add(folders, "cpu", "cpuacct", key, [])
        return TaskGroup(folders)

    def _add(self, folders: dict[str, str], what: str, kind: str, key: str, settings: list[tuple[str, int]]) -> None:
        whole = kind in self._controllers or (kind == "cpuacct" and self._v2)
        folder = f"{self._v2 if whole else self._v1.get(kind, '')}/k{key}"
        if folder.startswith("/k"):
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o755)
        if settings and not _write(f"{folder}/{settings[0][0]}", str(settings[0][1])):
            return
        for name, value in settings[1:]:
            _write(f"{folder}/{name}", str(value))  # swap may not be counted here
        folders[what] = folder

    def discard(self, group: TaskGroup) -> None:
        """Removes the groups of a task that has ended, now or soon."""
        if not group.remove():
            self._unremoved.append(group)

    def _remove_old(self) -> None:
        self._unremoved = [group for group in self._unremoved if not group.remove()]

    # ------------------------------------------------------------ all of it

    def lower(self, lowered: bool) -> None:
        """Gives everything in the groups a tenth of the usual share of the processor, where they have one of their own.

        Not less: the monitor lives there too, and has deadlines to hold.
        """
        if self._v2:
            _write(f"{self._v2}/cpu.weight", "10" if lowered else "100")

    def kill_all(self) -> None:
        """Kills everything that the calling process has started and that is still in the groups, in one moment."""
        if not self._v2 or not _write(f"{self._v2}/outside/cgroup.procs", "0"):
            return
        for folder in _folders(self._v2):
            if os.path.basename(folder) not in ("outside", "agent"):
                _write(f"{folder}/cgroup.kill", "1")

    def go_on(self) -> None:
        """What is started from here on is in the groups again."""
        if self._v2:
            _write(f"{self._v2}/tasks/cgroup.procs", "0")

    def close(self) -> None:
        """Leaves the groups and removes them."""
        if self._v2:
            _write(f"{self._bases['v2']}/cgroup.procs", "0") or _write(f"{self._v2}/outside/cgroup.procs", "0")
            _remove_tree(self._v2)
        for folder in self._v1.values():
            _remove_tree(folder)
        self._v2, self._v1 = "", {}


def _remove_stale(base: str) -> None:
    """Removes what monitors that were killed have left; a folder with a process in it cannot be removed."""
    for folder in _folders(base):
        number = os.path.basename(folder).removeprefix(_PREFIX)
        if os.path.basename(folder).startswith(_PREFIX) and number.isdigit() and not os.path.exists(f"/proc/{number}"):
            _remove_tree(folder)


def _remove_tree(folder: str) -> None:
    for inner in _folders(folder):
        with contextlib.suppress(OSError):
            os.rmdir(inner)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _folders(folder: str) -> Iterable[str]:
    try:
        return sorted((entry.path for entry in os.scandir(folder) if entry.is_dir()), reverse=True)  # tasks first
    except OSError:
        return []


def _fields(path: str) -> dict[str, int]:
    words = [line.split() for line in _read(path).splitlines()]
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> bool:
    """Returns whether the kernel took it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)

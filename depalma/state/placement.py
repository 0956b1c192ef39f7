"""Which hosts may run which jobs. [pure]

Jobs with the same constraints share a `Shape`; the dispatcher looks at shapes, not at jobs. The same `misfit` decides
where a task goes and is what `explain` prints, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from depalma.state.constraints import broken
from depalma.state.hosts import Host
from depalma.state.shapes import Shape


def misfit(shape: Shape, host: Host, slots: float) -> str:
    """Returns why no task of this shape may ever start on the host as it is now; empty when one may.

    Free slots are not looked at, only whether `slots` would do when all are free.
    """
    if shape.on_host and shape.on_host != host.name:
        return f"the job wants host {shape.on_host}"
    if shape.group and shape.group not in host.groups:
        return f"not in group {shape.group}"
    if shape.labels and (wrong := broken(shape.labels, host.labels)):
        return wrong
    if host.state != "up":
        return f"{host.state}: {host.reason}" if host.reason else host.state
    if host.state == "up" and host.lag is not None and host.lag.kicked:
        return f"kicked out, as it is behind the code log: {host.lag.reason}"
    if not host.takes_work:
        return f"{host.shown_state}: {host.shown_reason}"
    if host.code_index < shape.code_index:
        return f"has code index {host.code_index}, the job needs {shape.code_index}"
    if slots < shape.weight:
        return f"has {slots:g} slots, a task needs {shape.weight:g}"
    return host.lacks(shape.needs) if shape.needs else ""


def tasks_beside(shape: Shape, host: Host, slots: float, used: float, taken: Mapping[str | int, int]) -> int:
    """Returns how many tasks of the shape have room on a host that it fits, beside so many slots in use and what is
    taken."""
    # A wide task may have a host that has nothing else, whatever its slots are now.
    count = int((slots - used) / shape.weight) if used else max(1, int(slots / shape.weight))
    for name, number in shape.needs:
        count = min(count, host.free(name, number, taken) // number)
    return max(0, count)


def room_of_gang(shape: Shape, hosts: Iterable[Host]) -> tuple[int, int]:
    """Returns how many tasks of the shape have room on all hosts together: now, and when nothing else runs there."""
    now = empty = 0
    for host in hosts:
        if not misfit(shape, host, host.slots):
            now += tasks_beside(shape, host, host.slots, host.used, host.taken)
            empty += tasks_beside(shape, host, host.slots, 0, {})
    return now, empty

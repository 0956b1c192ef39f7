"""Which hosts may run which jobs, and the jobs that wait for one. [pure]

Jobs with the same constraints share a `Shape`; the dispatcher looks at shapes, not at jobs. The same `misfit` decides
where a task goes and is what `explain` prints, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator

from depalma.state.hosts import Host
from depalma.state.jobs import Job
from depalma.state.ordered import OrderedKeys
from depalma.state.shapes import Shape

_ID_BITS = 40  #: job ids are below 2 ** 40, so that priority and id fit one small int
_ID_MASK = (1 << _ID_BITS) - 1


def misfit(shape: Shape, host: Host, slots: int) -> str:
    """Returns why no task of this shape may ever start on the host as it is now; empty when one may.

    Free slots are not looked at, only whether `slots` would do when all are free.
    """
    if shape.on_host and shape.on_host != host.name:
        return f"the job wants host {shape.on_host}"
    if shape.group and shape.group not in host.groups:
        return f"not in group {shape.group}"
    if host.state != "up":
        return f"{host.state}: {host.reason}" if host.reason else host.state
    if host.state == "up" and host.lag is not None and host.lag.kicked:
        return f"kicked out, as it is behind the code log: {host.lag.reason}"
    if not host.takes_work:
        return f"{host.shown_state}: {host.shown_reason}"
    if host.code_index < shape.code_index:
        return f"has code index {host.code_index}, the job needs {shape.code_index}"
    if slots < shape.weight:
        return f"has {slots} slots, a task needs {shape.weight}"
    facts = host.facts
    if shape.memory_bytes and facts is not None and facts.memory_bytes < shape.memory_bytes:
        return f"has {facts.memory_bytes} bytes of memory, a task needs {shape.memory_bytes}"
    return ""


def order_key(priority: int, job_id: int) -> int:
    """Returns the place of a job in the order: higher priority first, then the older job."""
    return job_id - (priority << _ID_BITS)


class ReadyJobs:
    """The jobs that have a queued task which may start now, by shape, each shape in order.

    Derived from the jobs; `refresh` is called after every change of one.
    """

    __slots__ = ("_by_shape",)

    def __init__(self) -> None:
        self._by_shape: dict[Shape, OrderedKeys] = {}

    def __bool__(self) -> bool:
        return bool(self._by_shape)

    def refresh(self, job: Job) -> None:
        """Puts the job in, or takes it out, as its tasks now ask."""
        wanted = job.wants_host
        if wanted == job.ready:
            return
        if not wanted:
            self.withdraw(job)
            return
        job.ready = True
        keys = self._by_shape.get(job.shape)
        if keys is None:
            keys = self._by_shape[job.shape] = OrderedKeys()
        keys.add(order_key(job.spec.priority, job.id))

    def withdraw(self, job: Job) -> None:
        """Takes the job out; `refresh` puts it back, in the place that it then has."""
        if job.ready:
            job.ready = False
            keys = self._by_shape[job.shape]
            keys.remove(order_key(job.spec.priority, job.id))
            if not keys:
                del self._by_shape[job.shape]

    def shapes(self) -> list[tuple[Shape, Iterator[int]]]:
        """Returns each shape that has a ready job, with its order keys, first one first."""
        return [(shape, iter(keys)) for shape, keys in self._by_shape.items()]

    @staticmethod
    def job_of(key: int) -> int:
        """Returns the job id of an order key."""
        return key & _ID_MASK

    def before(self, job: Job) -> int:
        """Returns how many ready jobs stand before this one, whatever they ask for."""
        key = order_key(job.spec.priority, job.id)
        return sum(keys.rank(key) for keys in self._by_shape.values())

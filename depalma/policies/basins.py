"""Something of which there is so much, what is in use of it and until when, and the work that waits for it. [pure]"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from statistics import fmean

from depalma.policies.ahead import Held, Work
from depalma.state.jobs import Job

#: How much of something a task of a job takes.
Takes = Callable[[Job], float]
#: Amounts that differ by less are equal: they are sums of parts of slots.
_EQUAL = 1e-6


class Basin:
    """`own`: what a task of the job that is asked about needs; `takes`: what a task of another job takes; `part`: of
    that, if it may run elsewhere as well."""

    def __init__(self, size: float, own: float, takes: Takes, runs: Iterable[tuple[Job, float]]) -> None:
        self.size = size
        self.own = own
        self.takes = takes
        #: when how much is given back, by which job
        self.ends = [(end, taken, job.id) for job, end in runs if (taken := takes(job))]
        self.work = 0.0  #: seconds times what is taken

    def fill(self, work: Iterable[Work], held: Iterable[Held], now: float, part: Takes) -> None:
        """Adds what comes before."""
        for each in work:
            if taken := self.takes(each.job) * part(each.job):
                self.work += each.tasks * each.seconds * taken
        for group in held:
            taken = fmean(self.takes(each.job) * part(each.job) for each in group.work)
            if taken:
                self._hold(group, now, taken)

    def _hold(self, group: Held, now: float, taken: float) -> None:
        """What the group has it keeps to its end, as its next task follows; and it takes what it may have besides."""
        jobs = {each.job.id: each.job for each in group.work}
        until = group.until(now, [end for end, _, job in self.ends if job in jobs])
        self.ends = [(max(end, until) if job in jobs else end, taken, job) for end, taken, job in self.ends]
        more = group.bound - sum(len(job.running) for job in jobs.values())
        if more > 0:
            self.ends.append((until, more * taken, 0))


def level(basin: Basin, now: float) -> float:
    """Returns when the work is done and there is enough besides; inf if nobody knows, or never."""
    ordered = sorted(basin.ends)
    free, work, at = basin.size - sum(taken for _, taken, _ in ordered), basin.work, now
    for end, taken, _ in ordered:
        if free > _EQUAL:
            if at + work / free <= end:
                at, work = at + work / free, 0.0
                if free + _EQUAL >= basin.own:
                    return at
            else:
                work -= free * (end - at)
        if end == inf:
            return inf
        at, free = max(at, end), free + taken
    return at + work / free if free > _EQUAL and free + _EQUAL >= basin.own else inf

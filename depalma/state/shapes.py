"""The hard constraints that jobs have in common. [pure]"""

from __future__ import annotations

from collections.abc import Iterable
from math import frexp, ldexp
from typing import NamedTuple

from depalma.alternatives import spec_as
from depalma.gpuparts import WHOLE, gpus_of, in_words, parts_of
from depalma.model import JobSpec, slots_of

#: Names of what is counted on every host; other names are of resources that the cluster file or `host set` gives it.
MEMORY = "memory_bytes"
GPUS = "gpus"

#: What a task takes of what its host has so many of: (name, number), by name. GPUs are counted in hundredths.
Needs = tuple[tuple[str, int], ...]


class Shape(NamedTuple):
    """What a job asks of a host; the dispatcher looks at shapes, not at jobs."""

    group: str  #: empty = any
    on_host: str  #: empty = any
    code_index: int  #: the host must have acknowledged it
    weight: float  #: slots a task takes
    needs: Needs = ()  #: what a task takes besides
    labels: tuple[str, ...] = ()  #: rules that must hold for the host's labels
    prefer: tuple[str, ...] = ()  #: rules of which as many as possible should
    pack: bool = False  #: fill one host after the other
    preempts: bool = False  #: what has lower priority makes room for it
    within_s: float = 0.0  #: its tasks have ended so long after their start; a power of two, 0 = not known
    gang: int = 0  #: so many tasks start at once or none; 0 = each for itself
    others: tuple[Shape, ...] = ()  #: what a task may take instead, the best first; they have no others

    @property
    def ways(self) -> tuple[Shape, ...]:
        """Returns all that a task may take, the best first."""
        return (self, *self.others) if self.others else (self,)

    @property
    def widest(self) -> float:
        """Returns the slots that a task takes at most."""
        return max(way.weight for way in self.ways) if self.others else self.weight


def shape_of(spec: JobSpec, code_index: int) -> Shape:
    """Returns the shape of a job that runs `spec` with the code of `code_index`."""
    needs = needs_of(spec) if spec.memory_bytes or spec.gpus or spec.resources else ()
    within_s = within(spec.timeout_s + spec.grace_s) if spec.timeout_s else 0.0
    weight = slots_of(spec.cpus)
    others = tuple(shape_of(spec_as(spec, number + 1), code_index) for number in range(len(spec.alternatives)))
    return Shape(
        spec.group, spec.on_host, code_index, weight, needs, spec.labels, spec.prefer, spec.pack, spec.preempt,
        within_s, gang_size(spec), others,
    )  # fmt: skip


def gang_size(spec: JobSpec) -> int:
    """Returns how many tasks of the job start at once or not at all; 0 = each starts for itself."""
    return spec.count if spec.gang < 0 else spec.gang


def within(limit_s: float) -> float:
    """Returns the limit rounded up to a power of two, so that there are few different ones."""
    mantissa, exponent = frexp(limit_s)
    return ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def needs_of(spec: JobSpec) -> Needs:
    """Returns what a task takes besides slots."""
    needs = {MEMORY: spec.memory_bytes, GPUS: parts_of(spec.gpus), **(spec.resources or {})}
    return tuple(sorted((name, number) for name, number in needs.items() if number))


def described(name: str, number: int) -> str:
    """Returns a number of something that is counted, in words."""
    if name == MEMORY:
        return f"{number} bytes of memory"
    return in_words(number) if name == GPUS else f"{number} {name}"


def needs_of_host(shape: Shape) -> str:
    """Returns in words what a task takes of its host."""
    slots = f"{shape.weight:g} slot{'s' * (shape.weight != 1)}"
    return ", ".join([slots, *(described(name, number) for name, number in shape.needs)])


def shown(name: str, number: float) -> float:
    """Returns a number of something that is counted as people count it."""
    return gpus_of(int(number)) if name == GPUS else number


def gpu_share(spec: JobSpec) -> float:
    """Returns the part of a GPU that a task shares; 0 if it has GPUs to itself, or none."""
    return spec.gpus if spec.gpus < 1 else 0.0


def held(needs: Needs, gpus: tuple[int, ...]) -> Iterable[tuple[str | int, int]]:
    """Returns what an attempt with these needs takes: sums by name, and of each of its GPUs by number."""
    if not gpus:
        return needs
    each = min(WHOLE, dict(needs)[GPUS])
    return (*needs, *((gpu, each) for gpu in gpus))

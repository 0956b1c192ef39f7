"""The hard constraints that jobs have in common. [pure]"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from depalma.model import JobSpec


class Shape(NamedTuple):
    """The hard constraints of a job; the dispatcher looks at shapes, not at jobs."""

    group: str  #: empty = any
    on_host: str  #: empty = any
    code_index: int  #: the host must have acknowledged it
    weight: int  #: slots a task takes
    memory_bytes: int  #: the host must have so much at all


def shape_of(spec: JobSpec, code_index: int) -> Shape:
    """Returns the shape of a job that runs `spec` with the code of `code_index`."""
    return Shape(spec.group, spec.on_host, code_index, slots_of(spec.cpus), spec.memory_bytes)


def slots_of(cpus: float) -> int:
    """Returns how many slots a task that asks for `cpus` takes: never less than one."""
    return max(1, ceil(cpus))

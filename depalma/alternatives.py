"""What a task may need instead of what its job says first. [pure]"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from depalma.gpuparts import normal

if TYPE_CHECKING:
    from depalma.model import JobSpec

#: Alternatives of a job, besides what it says first.
MAX_ALTERNATIVES = 8


class Alternative(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """All that a task needs then; what is not named is as small as in a job that names nothing."""

    cpus: float = 1.0
    memory_bytes: int = 0
    gpus: int | float = 0
    resources: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.gpus.__class__ is float:
            force_setattr(self, "gpus", normal(self.gpus))


def spec_as(spec: JobSpec, number: int) -> JobSpec:
    """Returns what a task is that was given its alternative of this number; 0: what the job says first."""
    if not number:
        return spec
    one = spec.alternatives[number - 1]
    return replace(
        spec, cpus=one.cpus, memory_bytes=one.memory_bytes, gpus=one.gpus, resources=one.resources, alternatives=()
    )

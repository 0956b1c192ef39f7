"""Which GPUs of a host a task is given, and what is left for others. [pure]

A part is of one GPU: two halves of different GPUs are no GPU, so sums do not say what is free. What is `taken` of a
host has, beside its sums by name, the hundredths that are taken of each GPU, by its number.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import islice

from depalma.gpuparts import WHOLE, gpus_of

#: What is taken of a host: sums by name, and hundredths of each GPU by its number.
Taken = dict[str | int, int]

#: GPUs that are named one by one.
_NAMED = 8


def choose(has: int, taken: Mapping[str | int, int], parts: int, avoid: Container[int] = ()) -> tuple[int, ...] | None:
    """Returns which of a host's `has` GPUs a task gets that asks for so many hundredths; None if it cannot have them.

    Whole ones are those of which nobody has anything, in order; a part is of the fullest one that has room for it, so
    that others stay whole.
    """
    if parts >= WHOLE:
        free = (gpu for gpu in range(has) if not taken.get(gpu) and gpu not in avoid)
        given = tuple(islice(free, parts // WHOLE))
        return given if len(given) * WHOLE == parts else None
    if not parts:
        return ()
    levels = ((taken.get(gpu, 0), -gpu) for gpu in range(has) if gpu not in avoid)
    best = max((level for level in levels if level[0] + parts <= WHOLE), default=None)
    return None if best is None else (-best[1],)


def may_have(has: int, taken: Mapping[str | int, int], parts: int, gpus: tuple[int, ...]) -> bool:
    """Returns whether a task that asks for so many hundredths may be given these GPUs."""
    each = min(parts, WHOLE)
    right = len(set(gpus)) == len(gpus) and len(gpus) * each == parts
    return right and all(0 <= gpu < has and taken.get(gpu, 0) + each <= WHOLE for gpu in gpus)


def usable(has: int, taken: Mapping[str | int, int], parts: int) -> int:
    """Returns how many hundredths tasks can have together that ask for `parts` each."""
    touched = _touched(has, taken)
    free = has - len(touched)
    if parts >= WHOLE:
        return free * WHOLE
    return (free * (WHOLE // parts) + sum((WHOLE - level) // parts for level in touched.values())) * parts


def short(has: int, taken: Mapping[str | int, int], parts: int) -> int:
    """Returns how many hundredths have to get free at least until a task can have `parts`."""
    touched = _touched(has, taken)
    levels = sorted([*touched.values(), *[0] * min(has - len(touched), parts // WHOLE + 1)])
    return sum(levels[: parts // WHOLE]) if parts >= WHOLE else max(0, levels[0] + parts - WHOLE)


def without(taken: Taken, gpus: Iterable[int]) -> Taken:
    """Returns what is taken if nobody is to have these GPUs either."""
    return {**taken, **dict.fromkeys(gpus, WHOLE)}


def shortage(has: int, taken: Mapping[str | int, int], parts: int) -> str:
    """Returns in words why a task cannot have so many hundredths of a host's GPUs now."""
    touched = _touched(has, taken)
    partly = [f"GPU {gpu} has {gpus_of(WHOLE - level)} free" for gpu, level in sorted(touched.items()) if level < WHOLE]
    named = ", ".join(partly[:_NAMED]) + (", …" if len(partly) > _NAMED else "")
    if parts < WHOLE:
        return f"no GPU has {gpus_of(parts)} free: {named or 'all are taken'}"
    free = has - len(touched)
    if not partly:
        return f"{has - free} of {has} GPU{'s' * (has != 1)} are taken, a task needs {gpus_of(parts)}"
    return f"{free} of {has} GPU{'s' * (has != 1)} are wholly free, a task needs {gpus_of(parts)}: {named}"


def _touched(has: int, taken: Mapping[str | int, int]) -> dict[int, int]:
    """Returns the hundredths that are taken of those GPUs of which somebody has something."""
    return {gpu: level for gpu, level in taken.items() if isinstance(gpu, int) and level and gpu < has}

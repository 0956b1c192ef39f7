"""How many GPUs a task may ask for: whole ones, or a part of one. [pure]

Counted in hundredths, in whole numbers: sums of parts are exact, and the same on every master.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Hundredths of a GPU that is not shared.
WHOLE = 100
#: GPUs of one task.
MOST = 100_000
#: What may be asked for, in words.
ALLOWED = f"a whole number up to {MOST}, or a part of one GPU in hundredths: 0.01 to 0.99"


def normal(gpus: int | float) -> int | float:
    """Returns whole numbers as integers, and hundredths without errors of rounding: what is equal is one value in the
    log. What is neither stays as it is."""
    if not 0 <= gpus <= MOST:
        return gpus
    parts = round(gpus * WHOLE)
    return gpus_of(parts) if abs(parts - gpus * WHOLE) < 1e-9 else gpus


def parts_of(gpus: int | float) -> int:
    """Returns the hundredths of what was asked for. Errors: ValueError with what is allowed."""
    if 0 <= gpus <= MOST:  # so it is finite
        parts = round(gpus * WHOLE)
        if parts / WHOLE == gpus and (parts < WHOLE or parts % WHOLE == 0):
            return parts
    raise ValueError(ALLOWED)


def gpus_of(parts: int) -> int | float:
    """Returns how many GPUs these hundredths are, for people."""
    return parts / WHOLE if parts % WHOLE else parts // WHOLE


def given(gpus: Iterable[int], share: float) -> str:
    """Returns in words what a task has: these GPUs, or its part of one (0: it has them to itself)."""
    return f"{share} of GPU {next(iter(gpus))}" if share else f"GPU {', '.join(map(str, gpus))}"


def in_words(parts: int) -> str:
    """Returns the same with the word."""
    return f"{gpus_of(parts)} GPU{'s' * (parts != WHOLE)}"

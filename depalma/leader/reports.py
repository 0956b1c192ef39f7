"""Reports of ended attempts, in parts that the log takes. [pure]"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from depalma.model import Report

#: Well below what a command of the log may have (`ReplicaSettings.max_command_bytes`).
_MOST_BYTES = 3 * 1024 * 1024
_MOST_OF_A_CHARACTER = 4


def in_parts(reports: Sequence[Report]) -> Iterator[tuple[Report, ...]]:
    """Yields the reports in as many commands as they need, mostly one.

    Agents bound what they send, but by characters: errors in emoji are four times as long.
    """
    part: list[Report] = []
    total = 0
    for report in reports:
        result, tail = report.result, report.tail
        size = 1024 + _MOST_OF_A_CHARACTER * len(report.error)
        size += (len(result.inline) if result is not None else 0) + (len(tail.inline) if tail is not None else 0)
        if part and total + size > _MOST_BYTES:
            yield tuple(part)
            part, total = [], 0
        part.append(report)
        total += size
    if part:
        yield tuple(part)

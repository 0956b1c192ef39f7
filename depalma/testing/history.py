"""What clients asked of a cluster and what it answered, with the times of both: the evidence that checkers judge.

Times are seconds of one monotonic clock. An operation whose outcome nobody knows (the answer was lost) stays open: it
may have taken effect at any time after it began, or never, and is never dropped.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True, eq=False)
class Operation:
    """One call. `output` means something only if `known`."""

    client: str
    kind: str
    #: what it is about; operations on different keys do not touch each other
    key: str
    input: Any = None
    invoked_s: float = 0.0
    returned_s: float = math.inf
    output: Any = None
    #: which server answered, and its `Depalma-Index`
    master: str = ""
    index: int = -1

    @property
    def known(self) -> bool:
        """Whether the answer arrived."""
        return self.returned_s != math.inf

    def __str__(self) -> str:
        end = f"{self.returned_s:.4f}" if self.known else "open"
        answer = f" -> {self.output!r}" if self.known else ""
        by = f" by {self.master}" if self.master else ""
        return f"[{self.invoked_s:.4f}, {end}] {self.client}: {self.kind} {self.key} {self.input!r}{answer}{by}"


@dataclass(slots=True)
class History:
    """A recorder; safe for threads."""

    now: Callable[[], float] = time.monotonic
    operations: list[Operation] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def invoke(self, client: str, kind: str, key: str, input: Any = None) -> Operation:
        """Note that a call begins; call it right before sending."""
        operation = Operation(client, kind, key, input, self.now())
        with self._lock:
            self.operations.append(operation)
        return operation

    def complete(self, operation: Operation, output: Any, *, master: str = "", index: int = -1) -> None:
        """Note its answer; call it right after receiving."""
        returned_s = self.now()
        operation.output, operation.master, operation.index = output, master, index
        operation.returned_s = returned_s

    def by_key(self) -> dict[str, list[Operation]]:
        """The partition that checks are made on."""
        return by_key(self.operations)

    def save(self, path: Path) -> None:
        """Write one JSON line an operation."""
        with path.open("w") as file:
            for operation in list(self.operations):
                line = asdict(operation)
                line["returned_s"] = operation.returned_s if operation.known else None
                file.write(json.dumps(line) + "\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what `save` wrote (lists that were tuples come back as tuples)."""
        return cls(operations=list(_read(path.read_text().splitlines())))


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Operations of each key, in the order in which they began."""
    found: dict[str, list[Operation]] = {}
    for operation in sorted(operations, key=lambda one: one.invoked_s):
        found.setdefault(operation.key, []).append(operation)
    return found


def _read(lines: Iterable[str]) -> Iterator[Operation]:
    for line in lines:
        values = json.loads(line)
        if values["returned_s"] is None:
            values["returned_s"] = math.inf
        for name in ("input", "output"):
            values[name] = _frozen(values[name])
        yield Operation(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value

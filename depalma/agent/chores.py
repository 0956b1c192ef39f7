"""What an agent does with its files once a second. It may take long, on a slow disk or behind others: nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from pathlib import Path

from depalma.agent.stage import Stage
from depalma.agent.store import empty_folder
from depalma.model import AttemptRef
from depalma.trust import Trust

_CHORES_S = 1.0


async def keep_tidy(root: Path, stage: Stage, trust: Trust | None, live: Container[AttemptRef]) -> None:
    """Empties the trash and removes the files of attempts that are not here any more, for ever."""
    while True:
        await asyncio.sleep(_CHORES_S)
        await asyncio.to_thread(empty_folder, root / "trash")
        if trust is not None:
            await asyncio.to_thread(trust.refresh)
        await asyncio.to_thread(stage.sweep, live)

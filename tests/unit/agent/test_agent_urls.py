"""How an agent speaks to masters of which it hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from depalma.agent.connection import Finder
from depalma.certificates import AUTHORITY_FILE
from depalma.testing.certificates import throwaway_secrets
from depalma.trust import Trust


@pytest.mark.parametrize(
    ("given", "named", "believes", "asked"),
    [
        ("https", "http", True, "https"),  # never in plain text, whatever a master says
        ("http", "https", True, "https"),  # the masters have moved to TLS, and it can follow
        ("http", "https", False, "http"),  # it cannot; they take both until they are all there
        ("http", "http", True, "http"),
    ],
)
def test_masters_that_are_named(tmp_path: Path, given: str, named: str, believes: bool, asked: str) -> None:
    trust = Trust(throwaway_secrets(tmp_path / "secrets", ["m1"]) / AUTHORITY_FILE) if believes else None
    remembered: list[Any] = []
    finder = Finder(
        None, [f"{given}://a:1/"], "h1", learned=[f"{named}://b:1"], trust=trust, on_learned=remembered.append
    )  # type: ignore[arg-type]
    assert finder.masters == [f"{given}://a:1", f"{asked}://b:1"]
    finder.learn((f"{named}://c:1/",))
    assert finder.masters == [f"{given}://a:1", f"{asked}://c:1"]
    assert remembered == [(f"{asked}://c:1",)]

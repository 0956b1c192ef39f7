"""The example's own module: what it counts, and that its sum notices a file too many or too few."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def wordstats(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules.pop("wordstats", None)
    import wordstats

    return wordstats


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "one.py"
    path.write_text("# a comment\ndef double(x):\n    return x + x\n")
    return str(path)


def test_a_file_is_counted_word_by_word(wordstats: ModuleType, source: str) -> None:
    stats = wordstats.count(source)

    assert (stats["files"], stats["unreadable"], stats["lines"]) == (1, 0, 3)
    assert stats["tokens"] == 10  # def double ( x ) : return x + x
    assert stats["names"] == 4
    assert stats["keywords"] == {"def": 1, "return": 1}


@pytest.mark.parametrize("content", [b"def (\n    '''", b"\xff\xfe\x00", b"# coding: klingon\n"])
def test_a_file_that_python_cannot_read_is_counted_as_such(
    wordstats: ModuleType, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(content)

    stats = wordstats.count(str(path))

    assert (stats["files"], stats["unreadable"], stats["tokens"]) == (1, 1, 0)


def test_the_sum_does_not_depend_on_the_order_and_notices_doubles(wordstats: ModuleType, source: str) -> None:
    other = wordstats.count(wordstats.__file__)
    one = wordstats.count(source)

    assert wordstats.total([one, other]) == wordstats.total([other, one])
    assert wordstats.total([one, other, one])["fingerprint"] != wordstats.total([one, other])["fingerprint"]
    assert wordstats.total([]) == wordstats.nothing()

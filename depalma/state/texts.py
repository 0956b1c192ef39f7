"""What people write, judged and shown alike by every Python. [pure]

`str.isprintable`, `repr` and `float` go by the Unicode of the interpreter: a heart that came with 3.12 is nothing
to Python 3.11. Replicas must agree, also while their Python is upgraded one by one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

#: Control, format and private characters, and all spaces but the plain one, as of Unicode 15.1.
_NOT_PLAIN: Final = re.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f"
    "\u205f-\u2064\u2066-\u206f\u3000\ud800-\uf8ff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f\U000f0000-\U000ffffd"
    "\U00100000-\U0010fffd]"
)
_ESCAPED: Final = re.compile(r"\\\\|\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


def moment(at: float) -> str:
    """Returns a time in words."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def is_plain(text: str) -> bool:
    """Returns whether the text has nothing that cannot be seen."""
    return _NOT_PLAIN.search(text) is None


def shown(value: object) -> str:
    """Returns the value as `repr` does."""
    return _ESCAPED.sub(_unescaped, ascii(value))


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    character = chr(int(digits, 16)) if digits else ""
    return character if character and is_plain(character) else match[0]

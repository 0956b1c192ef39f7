"""Requirements files that travel to other machines: what would not mean the same there is refused. [pure]"""

from __future__ import annotations

import hashlib

from depalma.errors import DepalmaError

_MAX_BYTES = 1024 * 1024
_LOCAL_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")


class BadRequirements(DepalmaError):
    """The file names something that only this machine has; the message says the line."""


def check(data: bytes, where: str) -> str:
    """Returns the digest of a requirements file. Errors: BadRequirements."""
    if len(data) > _MAX_BYTES:
        raise BadRequirements(f"{where}: {len(data)} bytes given; allowed: at most {_MAX_BYTES}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequirements(f"{where}: not UTF-8: {error}") from error
    if not any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()):
        raise BadRequirements(f"{where}: names no requirement")
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip().split(" ")[0].split("=")[0]
        if word in _LOCAL_OPTIONS or word[:2] in ("-r", "-c", "-e"):
            raise BadRequirements(f"{where}, line {number}: {line.strip()!r} given; other files are not sent along")
        if word.startswith((".", "~")) or (word.startswith("/") and not word.startswith("//")):
            raise BadRequirements(f"{where}, line {number}: {line.strip()!r} given; a path of this machine is not sent")
    return hashlib.sha256(data).hexdigest()

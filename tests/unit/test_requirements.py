"""Requirements files that mean the same on every host."""

from __future__ import annotations

import hashlib

import pytest

from depalma.requirements import BadRequirements, check


def test_the_digest_is_that_of_the_file() -> None:
    data = (
        b"# tools\n--no-index\n--find-links /srv/wheels\nnumpy==2.1 ; python_version > '3.10'\nurl @ https://x/y.whl\n"
    )
    assert check(data, "r.txt") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "r.txt: names no requirement"),
        (b"# nothing\n\n", "r.txt: names no requirement"),
        (b"a\n-r other.txt\n", "r.txt, line 2: '-r other.txt' given"),
        (b"-rother.txt\n", "line 1"),
        (b"--constraint=c.txt\n", "line 1"),
        (b"-e .\n", "line 1"),
        (b"./local.whl\n", "a path of this machine"),
        (b"/home/me/local.whl\n", "a path of this machine"),
        (b"\xff\n", "not UTF-8"),
        (b"a" * 2_000_000, "at most 1048576"),
    ],
)
def test_what_only_this_machine_has_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadRequirements, match=words.replace(".", r"\.")):
        check(data, "r.txt")

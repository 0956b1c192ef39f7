"""What the event loop reports ends the agent only if it is an error.

Found by killing masters at each point of their disk's work (F4): an attempt to connect that was given up half way made
aiohttp remark "Unclosed connection", and the agent ended itself.
"""

from __future__ import annotations

from depalma.agent.driver import is_failure


def test_an_exception_is_a_failure_and_a_remark_is_none() -> None:
    assert is_failure({"message": "a task failed", "exception": KeyError("x")})
    assert not is_failure({"message": "Unclosed connection"})
    assert not is_failure({"message": "Unclosed connection", "exception": None})

"""Makers of random commands about machines that join: a part of the fuzzer of conftest.py."""

from __future__ import annotations

import random
from typing import Any

from depalma.state import commands as c


class JoinMakers:
    """Needs what the fuzzer has: the bench, chance, ids of requests, names of hosts."""

    bench: Any
    rng: random.Random

    def request(self) -> str:
        raise NotImplementedError

    def host_name(self) -> str:
        raise NotImplementedError

    def join(self) -> c.AnyCommand:
        """Invites and joins with few secrets, so that they meet."""
        rng, now, secret = self.rng, self.bench.now, self.rng.choice(["1", "2", "3", "x"]) * 64
        if rng.random() < 0.5:
            return c.JoinHost(self.request(), secret, "10.0.0.9", now)
        until, host = now + rng.choice([5.0, 5000.0, -1.0]), rng.choice([self.host_name(), "h7", "bad name"])
        return c.InviteHost(self.request(), secret, host, until, now, rng.choice(["ann", "a" * 300]))

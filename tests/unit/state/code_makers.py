"""Makers of random commands about the code log: a part of the fuzzer of conftest.py."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from depalma.codetree import command_digest
from depalma.state import commands as c


class CodeMakers:
    """Needs what the fuzzer has: the bench, chance, ids of requests, hosts and their incarnations."""

    bench: Any
    rng: random.Random

    def request(self) -> str:
        raise NotImplementedError

    def host_name(self) -> str:
        raise NotImplementedError

    def incarnation(self, host: str) -> str:
        raise NotImplementedError

    def add_code(self) -> c.AnyCommand:
        digest = self.rng.choice(["a" * 64, "b" * 64, "c" * 64, "d" * 64, "short"])
        kind = self.rng.choice(["module", "module", "module", "folder", "thing"])
        request, name = self.request(), self.rng.choice(["pkg", "lib", "../x"])
        return c.AddCode(request, name, kind, digest, 10, "ann", self.bench.now)

    def ack_code(self) -> c.AnyCommand:
        host, state = self.host_name(), self.bench.state
        index = self.rng.randint(0, state.code_index + 1)
        right = state.tree_digest(index) if index <= state.code_index else ""
        digest = right if self.rng.random() < 0.9 else "f" * 64
        code = self.rng.choice([None, None, 0, 3])
        return c.AckCode(host, self.incarnation(host), index, digest, "sig", self.bench.now, code, "said" * (code or 0))

    def append_code(self) -> c.AnyCommand:
        rng, state = self.rng, self.bench.state
        request, now = self.request(), self.bench.now
        match rng.choice(["wheel", "needs", "rollback", "rollback", "command", "bad"]):
            case "wheel":
                return c.AppendCode(request, "tool", "wheel", rng.choice("ab") * 64, 10, "ann", now)
            case "needs":
                return c.AppendCode(request, "pkg", "folder", "a" * 64, 10, "ann", now, rng.choice("ef") * 64)
            case "rollback":
                index = rng.randint(0, state.code_index + 1)
                return c.AppendCode(request, "", "", "", 0, "ann", now, rollback_of=index)
            case "command":
                argv, limit_s = ("true",), rng.choice([0.0, 5.0, -1.0])
                digest = command_digest(argv, 5.0)
                return c.AppendCode(request, "command", "command", digest, 0, "ann", now, "", argv, limit_s)
        changes = rng.choice([{"argv": ("x",)}, {"requirements": "short"}, {"kind": "thing"}, {"digest": "x"}])
        return msgspec.structs.replace(c.AppendCode(request, "pkg", "folder", "a" * 64, 10, "ann", now), **changes)

    def fail_code(self) -> c.AnyCommand:
        host, state = self.host_name(), self.bench.state
        index, code = self.rng.randint(0, state.code_index + 1), self.rng.choice([None, 2])
        reason = self.rng.choice(["no space", "no blob"])
        return c.FailCode(host, self.incarnation(host), index, reason, self.bench.now, code, "out")

    def lag_code(self) -> c.AnyCommand:
        host = self.host_name()
        known = self.bench.state.hosts.get(host)
        index = known.code_index if known is not None and self.rng.random() < 0.8 else self.rng.randint(0, 5)
        return c.LagCode(host, self.incarnation(host), index, "slow", self.rng.random() < 0.5, self.bench.now)

"""Makers of random commands about webhooks: a part of the fuzzer of conftest.py."""

from __future__ import annotations

import random
from typing import Any

from depalma.state import commands as c
from depalma.state import webhook_commands as w

SECRET = "s" * 32


class WebhookMakers:
    """Needs what the fuzzer has: the bench, chance, ids of requests and jobs."""

    bench: Any
    rng: random.Random

    def request(self) -> str:
        raise NotImplementedError

    def job_id(self) -> int:
        raise NotImplementedError

    def webhook(self) -> c.AnyCommand:
        rng, now, request = self.rng, self.bench.now, self.request()
        webhooks = self.bench.state.webhooks.by_name
        name = rng.choice([*webhooks, *webhooks, "w1", "w2", "bad name"])
        known = webhooks.get(name)
        match rng.choice(["add", "set", "remove", "replay", "test", "deliver", "deliver", "deliver"]):
            case "add":
                url = rng.choice(["http://127.0.0.1:9/x", "https://a.example/?q=1", "http://10.0.0.1", "ftp://a", ""])
                kinds = rng.choice([("*",), ("task.*",), ("job.finished", "host.up"), ("nonsense",), ()])
                keep = rng.choice([1, 3, 20, 1000, 0])
                return w.AddWebhook(request, name, url, kinds, *self.filters(), SECRET, keep, now, "ann")
            case "set":
                changes: dict[str, Any] = rng.choice(
                    [{}, {"url": "http://b"}, {"keep": 2}, {"kinds": ("*",)}, {"secret": "short"}, {"secret": "t" * 16}]
                )
                return w.SetWebhook(request, name, now, **changes, tags=rng.choice([None, (), ("a",)]))
            case "remove":
                return w.RemoveWebhook(request, name, now, rng.choice(["ann", "ann", "a" * 300]))
            case "replay":
                from_id = rng.randint(0, (known.last if known else 0) + 2)
                return w.ReplayWebhook(request, name, from_id, rng.random() < 0.3, now)
            case "test":
                return w.TryWebhook(request, name, now, "ann")
        epoch = known.epoch if known and rng.random() < 0.9 else rng.randint(0, 50)
        upto = rng.randint(known.delivered, known.last) if known and rng.random() < 0.9 else rng.randint(-1, 99)
        return w.DeliverWebhooks(((name, epoch, upto, rng.choice(["", "", "refused", "x" * 400])),), now)

    def filters(self) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
        rng = self.rng
        return (
            rng.choice([(), (), (self.job_id(),), (1, 2, 3)]),
            rng.choice([(), (), ("a",), ("",)]),
            rng.choice([(), (), ("ann",), ("u\0",)]),
        )

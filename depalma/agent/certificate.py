"""The certificate of a host that joined with a string: renewed long before it ends, together with the authority's file.

Hosts of a cluster file have none: their files come with `cluster up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from depalma.agent.connection import Finder
from depalma.agent.joining import write
from depalma.certificates import host_request, load_certificates
from depalma.errors import ConfigError
from depalma.joining import CertificateAsked, CertificateMade
from depalma.trust import Trust, verifying

Work = Coroutine[Any, Any, None]
log = logging.getLogger(__name__)

#: How often masters are asked which authorities they have: an administrator who replaces theirs waits for it.
LOOK_S = 600.0
#: It is renewed when a third of its life is left, or so little.
LEAST_LEFT_S = 7 * 86_400.0
WARN_S = 14 * 86_400.0
_ASK_S = 10.0
_FIRST_AGAIN_S = 1.0


class OwnCertificate:
    """Of one agent. `trust` shows it on new connections."""

    def __init__(self, trust: Trust, http: aiohttp.ClientSession, finder: Finder, host: str) -> None:
        assert trust.own is not None
        self._trust, self._file = trust, trust.own
        self._http = http
        self._finder = finder
        self._host = host

    async def look(self) -> tuple[float, float]:
        """Returns how long it is valid yet, and was in all; one that has ended is not shown: masters would hang up."""
        left_s, life_s = await asyncio.to_thread(_times, self._file)
        self._trust.show_own = left_s > 0
        await asyncio.to_thread(self._trust.refresh)
        return left_s, life_s

    async def watch(self) -> None:
        """Keeps it good, for ever."""
        pause_s = _FIRST_AGAIN_S
        while True:
            try:
                left_s, life_s = await self.look()
                due = left_s < max(life_s / 3, LEAST_LEFT_S)
                done = await (self._renew() if due else self._learn_authority())
            except ConfigError as error:
                log.error("the certificate of this host cannot be read: %s", error)
                done = await self._renew()
            else:
                if due and not done and left_s < WARN_S:
                    log.warning("the certificate of this host ends in %.1f days; it is tried again", left_s / 86_400)
            pause_s = LOOK_S if done else min(LOOK_S, pause_s * 2)
            await asyncio.sleep(pause_s)

    async def _renew(self) -> bool:
        key, asked = await asyncio.to_thread(host_request, self._host)
        told = await self._ask("POST", "/v1/agent/certificate", msgspec.json.encode(CertificateAsked(asked.decode())))
        if told is None:
            return False
        made = msgspec.json.decode(told, type=CertificateMade)
        await asyncio.to_thread(write, self._file, made.certificate + key.decode())
        await self._take(made.authority)
        left_s, _ = await self.look()
        log.info("a new certificate of this host, for %.0f days", left_s / 86_400)
        return True

    async def _learn_authority(self) -> bool:
        told = await self._ask("GET", "/v1/authority", b"")
        if told is None:
            return False
        await self._take(told.decode())
        return True

    async def _take(self, authority: str) -> None:
        """Those who told it have proven to be masters by an authority that we believed until now."""
        file = self._trust.authority
        if authority and await asyncio.to_thread(file.read_text) != authority:
            await asyncio.to_thread(write, file, authority)
            log.info("the authorities of the masters are others now: %s", file)

    async def _ask(self, method: str, path: str, body: bytes) -> bytes | None:
        """Returns what the first master says that answers."""
        headers = {"Content-Type": "application/json"} if body else {}
        for url in self._finder.ordered():
            if not url.startswith("https:"):
                continue
            try:
                async with self._http.request(
                    method,
                    url + path,
                    data=body or None,
                    headers=headers,
                    ssl=verifying(self._trust),
                    timeout=aiohttp.ClientTimeout(total=_ASK_S),
                ) as answer:
                    told = await answer.read()
                    if answer.status == 200:
                        return told
                    log.info("%s %s: HTTP %d", method, url + path, answer.status)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.info("%s %s: %s", method, url + path, error or type(error).__name__)
        return None


async def keeping(trust: Trust | None, http: aiohttp.ClientSession, finder: Finder, host: str) -> list[Work]:
    """Returns the work of keeping a host's certificate, if it has one; what has ended is not shown from now on."""
    if trust is None or trust.own is None:
        return []
    own = OwnCertificate(trust, http, finder, host)
    with contextlib.suppress(ConfigError):  # its watch says so
        await own.look()
    return [own.watch()]


def _times(file: Path) -> tuple[float, float]:
    (certificate, *_) = load_certificates(file)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (end - datetime.now(UTC)).total_seconds(), (end - begin).total_seconds()


def own_file(secrets: Path) -> Path | None:
    """Returns the file of a host's own certificate, if it has one."""
    file = secrets / "agent.pem"
    return file if os.path.exists(file) else None

"""The credentials that a replica uses now: read again when their files change, and watched until they end."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from depalma.certificates import CertificateFiles
from depalma.consensus import tls
from depalma.consensus.tls import Credentials
from depalma.errors import ConfigError

logger = logging.getLogger(__name__)

#: how often the files are looked at
LOOK_S = 2.0
#: an end that is nearer is told in the log, so often; and after the end, so often
WARN_S = 30 * 86_400.0
REMIND_S = 12 * 3_600.0
EXPIRED_REMIND_S = 3_600.0


class Keyring:
    """Gives new connections the newest credentials that are good; those that stand keep theirs."""

    credentials: Credentials  #: there after `load`

    def __init__(self, files: CertificateFiles, me: str) -> None:
        self._files = files
        self._me = me
        self._seen: object = None
        self._reminded: tuple[bool, float] | None = None  # whether it had expired, and when we said so

    def load(self) -> None:
        """Read the files for the first time. Raises ConfigError."""
        self._seen = self._look()
        self.credentials = tls.load(self._files, self._me)
        self._remind()

    def seconds_left(self) -> float:
        """Seconds until our own certificate ends, negative after that."""
        return self.credentials.expires_at - time.time()

    async def watch(self) -> None:
        """Follow the files, for ever. What cannot be used is told in the log, and the credentials stay what they are.

        The files may lie on a network that hangs, so a thread looks at them.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                found = await loop.run_in_executor(None, self._read_if_changed)
            except ConfigError as error:
                logger.error("the new certificates are not used: %s", error)
            else:
                if found is not None:
                    self._replace(found)
            self._remind()

    def _read_if_changed(self) -> Credentials | None:
        seen = self._look()
        if seen == self._seen:
            return None
        self._seen = seen  # before reading: what changes while we read is seen the next time
        return tls.load(self._files, self._me)

    def _look(self) -> object:
        return [_fingerprint(file) for file in (self._files.authority, self._files.member)]

    def _replace(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._reminded = None
        end = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(credentials.expires_at))
        believed = credentials.dialing.cert_store_stats()["x509_ca"]
        logger.info(
            "new certificates: ours is valid until %s; %d %s believed; they are used for new connections",
            end,
            believed,
            "authority is" if believed == 1 else "authorities are",
        )

    def _remind(self) -> None:
        left = self.seconds_left()
        expired = left <= 0
        pause = EXPIRED_REMIND_S if expired else REMIND_S
        now = time.monotonic()
        if left > WARN_S or (self._reminded and self._reminded[0] == expired and now < self._reminded[1] + pause):
            return
        self._reminded = expired, now
        renew = "renew it with: depalmactl cluster init -f FILE --renew"
        if not expired:
            logger.warning("the certificate %s ends in %.1f days; %s", self._files.member, left / 86_400, renew)
        else:
            logger.error(
                "the certificate %s has expired: connections that stand go on, new ones are refused; %s",
                self._files.member,
                renew,
            )


def _fingerprint(file: Path) -> object:
    """Something that differs when the file has been written, replaced, or given another mode."""
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_ctime_ns

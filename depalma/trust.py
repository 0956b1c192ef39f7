"""Whom those believe who connect to the API: the cluster's own authority, and of what it vouches for only masters.

Standard library only: an agent's monitor uses it too. A certificate names its owner in one URI,
`depalma://CLUSTER/ROLE/NAME` (docs/adr/0007, 0011).
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote

log = logging.getLogger(__name__)

MASTER, HOST = "master", "host"
_PREFIX = "depalma://"


class NotAMaster(ssl.SSLCertVerificationError):
    """The other side has a certificate of the cluster, and it is no master's."""

    def __str__(self) -> str:
        return str(self.args[-1])


class BadAuthority(Exception):
    """The file of the authority cannot be used; the message names it."""


def names_in(certificate: Any) -> list[str]:
    """Returns the URIs of a certificate as `getpeercert` gives it."""
    found = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    return [value for kind, value in found if kind == "URI"]


def role_of(certificate: Any) -> str:
    """Returns what the certificate's owner is in its cluster; empty if it has no name of ours, or more than one."""
    names = names_in(certificate)
    parts = names[0].removeprefix(_PREFIX).split("/") if len(names) == 1 and names[0].startswith(_PREFIX) else []
    return parts[1] if len(parts) == 3 and all(parts) else ""


def host_in(certificate: Any, cluster: str) -> str:
    """Returns which host of the cluster the certificate is for; empty if it is for none."""
    if role_of(certificate) != HOST:
        return ""
    its_cluster, _, name = (unquote(part) for part in names_in(certificate)[0].removeprefix(_PREFIX).split("/"))
    return name if its_cluster == cluster else ""


def _check(certificate: Any) -> None:
    if role_of(certificate) != MASTER:
        names = ", ".join(names_in(certificate)) or "nobody"
        raise NotAMaster(1, f"the certificate there is for {names}, not for a master")


class _Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check(self.getpeercert())


class _Object(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.getpeercert())


class MastersOnly(ssl.SSLContext):
    """Ends the handshake with whoever is no master of the authority's cluster; nothing has been said by then."""

    sslsocket_class = _Socket
    sslobject_class = _Object


def context_of(authority: Path, *, own: Path | None = None) -> ssl.SSLContext:
    """Returns what believes in the authorities of a file alone, and shows our own certificate if there is one.

    Errors: BadAuthority.
    """
    context = MastersOnly(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a master is known by its name in the cluster, whatever address it has today
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=authority)
        if own is not None:
            context.load_cert_chain(own)
    except OSError as error:  # ssl.SSLError is one
        what = error.strerror if not isinstance(error, ssl.SSLError) else (error.reason or "it holds no certificate")
        raise BadAuthority(f"{authority}: the cluster's authority cannot be used: {what}") from error
    return context


class Trust:
    """Whom to believe, by the file of the authority, and what to show of ourselves. Safe for threads."""

    def __init__(self, authority: str | os.PathLike[str], own: str | os.PathLike[str] = "") -> None:
        self.authority = Path(authority).expanduser()
        self.own = Path(own).expanduser() if own else None
        self.show_own = True  #: whether it is good for anything; `refresh` takes note
        self._seen = self._look()
        self.context = self._read()  #: for new connections

    def refresh(self) -> None:
        """Looks at the files (blocks): they may be replaced while we live. What cannot be used changes nothing."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self.context = self._read()
            except BadAuthority as error:
                log.error("%s; the one before stays in use", error)

    def _look(self) -> object:
        return fingerprint(self.authority), fingerprint(self.own), self.show_own

    def _read(self) -> ssl.SSLContext:
        own = self.own if self.own is not None and self.show_own and self.own.exists() else None
        return context_of(self.authority, own=own)


def verifying(trust: Trust | None) -> ssl.SSLContext | bool:
    """Returns what aiohttp takes as `ssl`."""
    return True if trust is None else trust.context


def fingerprint(file: Path | None) -> object:
    """Something that differs when the file has been written, replaced, or given another owner or mode."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError as error:
        return error.errno
    return (found.st_ino, found.st_size, found.st_ctime_ns) if found else None

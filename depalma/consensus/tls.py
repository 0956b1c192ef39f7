"""Mutual TLS 1.3 between members: what we show, whom we believe, and the bytes of one connection. See DESIGN.md.

Only the standard library: a running master does not need the library that makes certificates.
"""

from __future__ import annotations

import ssl
from enum import StrEnum
from typing import Any, Final, NamedTuple

from depalma.certificates import CertificateFiles, member_of
from depalma.consensus.messages import PROTOCOL
from depalma.errors import ConfigError

#: negotiated in the handshake: replicas that speak another version of our messages do not connect
ALPN: Final = f"depalma-raft/{PROTOCOL}"
#: more than any handshake with certificates like ours needs
MAX_HANDSHAKE_BYTES = 64 << 10
_RECORD_BYTES = 16 << 10
#: first byte of whatever a TLS peer may say first: part of a handshake, or an alert
_FIRST_BYTES = (22, 21)
#: codes of OpenSSL's verification: not yet valid, expired; not made for this use
_EXPIRED_CODES, _PURPOSE_CODE = (9, 10), 26
_NO_CHECK_TIME = 0x200000
_RENEW = "a new one is made by: depalmactl cluster init -f FILE --renew"


class Reason(StrEnum):
    """Why a connection was refused: the names under which refusals are counted."""

    PLAIN_TEXT = "plain_text"  #: it does not speak TLS
    NO_CERTIFICATE = "no_certificate"
    WRONG_CA = "wrong_ca"  #: the certificate is by no authority of this cluster
    EXPIRED = "expired"  #: or not valid yet
    WRONG_NAME = "wrong_name"  #: the certificate names no master of this cluster, or not the one that was dialled
    NOT_A_MEMBER = "not_a_member"  #: it names a master that is not among the members
    PROTOCOL = "protocol"  #: TLS before 1.3, no proper TLS, or another version of our messages
    TIMEOUT = "timeout"  #: no handshake in time
    CLOSED = "closed"  #: it hung up before it had proven itself
    CROWDED = "crowded"  #: dropped for a newer one, because too many had not proven themselves
    REFUSED_US = "refused_us"  #: the other side does not take our certificate


class Refusal(Exception):
    """The other side is not who it should be, or does not speak as it should."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Credentials(NamedTuple):
    """Certificate, key and believed authorities of a member, ready for use."""

    cluster: str
    dialing: ssl.SSLContext
    accepting: ssl.SSLContext
    expires_at: float  #: end of our own certificate, seconds since 1970


def load(files: CertificateFiles, me: str) -> Credentials:
    """Read the files and try them out: returned is only what the other members take, as long as it is not expired.

    An expired certificate is no error, so that a replica can start and be given a new one while it runs.
    Raises ConfigError, which names the file and the next step.
    """
    try:
        if files.member.stat().st_mode & 0o077:
            raise ConfigError(f"{files.member}: others may read the key; run: chmod 600 {files.member}")
        contexts = [_context(protocol, files) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
    except OSError as error:
        raise ConfigError(_unreadable(files, error)) from error
    dialing, accepting = contexts
    try:
        certificate = _rehearse(dialing, accepting)
    except ssl.SSLError as error:
        raise ConfigError(f"{files.member}: does not fit {files.authority}: {_words(error)}; {_RENEW}") from error
    uris = _uris(certificate)
    if [member_of(uri, files.cluster) for uri in uris] != [me]:
        names = ", ".join(uris) or "nobody"
        raise ConfigError(f"{files.member}: is for {names}, not for master {me} of {files.cluster!r}; {_RENEW}")
    return Credentials(files.cluster, dialing, accepting, ssl.cert_time_to_seconds(certificate["notAfter"]))


def _context(protocol: int, files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a member is known by its id (see Channel), not by the address it has today
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cafile=files.authority)
    context.load_cert_chain(files.member)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would be taken without a look at its certificate
    return context


def _unreadable(files: CertificateFiles, error: OSError) -> str:
    for file in (files.authority, files.member):
        if not file.exists():
            return f"{file}: is missing; it is made by: depalmactl cluster init -f FILE"
    return f"{files.member} or {files.authority}: cannot be used: {_words(error)}"


def _rehearse(dialing: ssl.SSLContext, accepting: ssl.SSLContext) -> dict[str, Any]:
    """Connect with ourselves, as both ends, at no particular time; returns what we show."""
    to_dialer, to_acceptor = ssl.MemoryBIO(), ssl.MemoryBIO()
    flags = dialing.verify_flags
    dialing.verify_flags = accepting.verify_flags = ssl.VerifyFlags(flags | _NO_CHECK_TIME)
    try:
        dialer = dialing.wrap_bio(to_dialer, to_acceptor)
        acceptor = accepting.wrap_bio(to_acceptor, to_dialer, server_side=True)
        # The dialer's hello, the acceptor's answer, the dialer's certificate, and the acceptor has seen it.
        _step(dialer)
        _step(acceptor)
        _step(dialer)
        acceptor.do_handshake()
    finally:
        dialing.verify_flags = accepting.verify_flags = flags
    return dialer.getpeercert() or {}


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _uris(certificate: dict[str, Any]) -> list[str]:
    return [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error)


class Channel:
    """One connection's TLS: bytes of the network in, content out, and the other way round. Does no input or output.

    `peer` is the other side's id once its certificate has been verified: by one of our authorities, valid now, for a
    master of our cluster. Before that, no content goes in either direction.
    """

    def __init__(self, credentials: Credentials, *, accepting: bool) -> None:
        self.peer: str | None = None
        self._cluster = credentials.cluster
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = credentials.accepting if accepting else credentials.dialing
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=accepting)
        self._handshake_bytes = 0
        if not accepting:
            _step(self._tls)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the network; returns their content, empty as long as the handshake goes on.

        Raises Refusal; what `take` returns then is still to be sent: it tells the other side why.
        """
        try:
            self._incoming.write(data)
            if self.peer is None and not self._shake_hands(data):
                return b""
            return self._read()
        except ssl.SSLError as error:
            raise Refusal(_reason(error), _words(error)) from error

    def send(self, content: bytes) -> None:
        """Put content on its way; to be called once `peer` is known."""
        left = memoryview(content)
        while left:
            left = left[self._tls.write(left) :]

    def take(self) -> bytes:
        """Returns what has to be sent over the network now."""
        return self._outgoing.read()

    def _read(self) -> bytes:
        pieces = []
        try:
            while self._incoming.pending or self._tls.pending():
                pieces.append(self._tls.read(_RECORD_BYTES))
                if not pieces[-1]:
                    raise Refusal(Reason.CLOSED, "it ended the connection")
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still on its way
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _shake_hands(self, data: bytes) -> bool:
        if not self._handshake_bytes and data[0] not in _FIRST_BYTES:
            raise Refusal(Reason.PLAIN_TEXT, f"it does not speak TLS, but begins with {data[:16]!r}")
        self._handshake_bytes += len(data)
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            raise Refusal(Reason.PROTOCOL, f"a handshake of more than {MAX_HANDSHAKE_BYTES} bytes")
        if not _step(self._tls):
            return False
        if self._tls.selected_alpn_protocol() != ALPN:
            raise Refusal(Reason.PROTOCOL, f"it does not speak {ALPN}")
        uris = _uris(self._tls.getpeercert() or {})
        self.peer = member_of(uris[0], self._cluster) if len(uris) == 1 else None
        if self.peer is None:
            raise Refusal(Reason.WRONG_NAME, f"its certificate is for {', '.join(uris) or 'nobody'}")
        return True


def _reason(error: ssl.SSLError) -> Reason:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _EXPIRED_CODES:
            return Reason.EXPIRED
        return Reason.WRONG_NAME if error.verify_code == _PURPOSE_CODE else Reason.WRONG_CA
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Reason.NO_CERTIFICATE
    return Reason.REFUSED_US if "_ALERT_" in reason else Reason.PROTOCOL

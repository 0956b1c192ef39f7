"""How two members prove to each other that they know the cluster's secret, without showing it. Pure.

    dialer   → hello:     who I am, whom I want, a nonce
    acceptor → challenge: another nonce, HMAC over everything so far, as acceptor
    dialer   → proof:     HMAC over the same, as dialer

Both nonces are in both codes, so neither can be replayed; the roles are in them, so neither can be reflected.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeVar

import msgspec

from depalma.consensus.messages import PROTOCOL

_T = TypeVar("_T")

NONCE_BYTES = 16
#: no message of a handshake is longer
MAX_BYTES = 512


class HandshakeFailed(Exception):
    """The other side is no member, or not the one it should be."""


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """First message."""

    protocol: int
    dialer: str
    acceptor: str
    nonce: bytes


class Challenge(msgspec.Struct, array_like=True, frozen=True):
    """Second message."""

    nonce: bytes
    code: bytes


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """Third message."""

    code: bytes


_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_challenge = msgspec.msgpack.Decoder(Challenge)
_proof = msgspec.msgpack.Decoder(Proof)


def _code(secret: bytes, role: bytes, hello: Hello, nonce: bytes) -> bytes:
    text = _encoder.encode([b"depalma raft", role, hello, nonce])
    return hmac.new(secret, text, hashlib.sha256).digest()


def _read(decoder: msgspec.msgpack.Decoder[_T], frame: bytes) -> _T:
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HandshakeFailed(f"not a handshake: {error}") from error


class Dialer:
    """The side that opened the connection."""

    def __init__(self, secret: bytes, me: str, peer: str, nonce: bytes) -> None:
        self._secret = secret
        self._hello = Hello(PROTOCOL, me, peer, nonce)

    def hello(self) -> bytes:
        """What to send first."""
        return _encoder.encode(self._hello)

    def prove(self, frame: bytes) -> bytes:
        """Check the challenge; returns what to send last, after which the connection is made.

        Raises HandshakeFailed.
        """
        challenge = _read(_challenge, frame)
        expected = _code(self._secret, b"acceptor", self._hello, challenge.nonce)
        if len(challenge.nonce) != NONCE_BYTES or not hmac.compare_digest(expected, challenge.code):
            raise HandshakeFailed(f"{self._hello.acceptor} does not know the cluster's secret")
        return _encoder.encode(Proof(_code(self._secret, b"dialer", self._hello, challenge.nonce)))


class Acceptor:
    """The side that was called."""

    def __init__(self, secret: bytes, me: str, members: frozenset[str], nonce: bytes) -> None:
        self._secret = secret
        self._me = me
        self._members = members
        self._nonce = nonce
        self._seen: Hello | None = None

    def receive(self, frame: bytes) -> tuple[bytes | None, str | None]:
        """Take a message; returns what to send back, and the member's id once it is proven.

        Raises HandshakeFailed.
        """
        if self._seen is None:
            self._seen = self._check(_read(_hello, frame))
            code = _code(self._secret, b"acceptor", self._seen, self._nonce)
            return _encoder.encode(Challenge(self._nonce, code)), None
        expected = _code(self._secret, b"dialer", self._seen, self._nonce)
        if not hmac.compare_digest(expected, _read(_proof, frame).code):
            raise HandshakeFailed(f"somebody who calls himself {self._seen.dialer!r} does not know the secret")
        return None, self._seen.dialer

    def _check(self, hello: Hello) -> Hello:
        if hello.protocol != PROTOCOL:
            raise HandshakeFailed(f"{hello.dialer!r} speaks protocol {hello.protocol}, we speak {PROTOCOL}")
        if hello.acceptor != self._me or hello.dialer == self._me or hello.dialer not in self._members:
            raise HandshakeFailed(f"{hello.dialer!r} calling {hello.acceptor!r} is no connection of this cluster")
        if len(hello.nonce) != NONCE_BYTES:
            raise HandshakeFailed("nonce of wrong length")
        return hello

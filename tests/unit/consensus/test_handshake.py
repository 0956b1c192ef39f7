"""Members prove that they know the secret; nobody else gets in."""

from __future__ import annotations

import msgspec
import pytest

from depalma.consensus.handshake import Acceptor, Dialer, HandshakeFailed

SECRET = b"the secret of this cluster"
MEMBERS = frozenset(["m1", "m3"])


def dialer(secret: bytes = SECRET, me: str = "m1", peer: str = "m2", nonce: bytes = b"a" * 16) -> Dialer:
    return Dialer(secret, me, peer, nonce)


def acceptor(secret: bytes = SECRET, nonce: bytes = b"b" * 16) -> Acceptor:
    return Acceptor(secret, "m2", MEMBERS, nonce)


def test_two_members_agree() -> None:
    caller, called = dialer(), acceptor()
    challenge, nobody = called.receive(caller.hello())
    assert challenge is not None
    assert nobody is None

    assert called.receive(caller.prove(challenge)) == (None, "m1")


def test_an_acceptor_with_another_secret_is_found_out() -> None:
    caller, called = dialer(), acceptor(secret=b"some other secret")
    challenge, _ = called.receive(caller.hello())
    assert challenge is not None
    with pytest.raises(HandshakeFailed, match="does not know"):
        caller.prove(challenge)


def test_a_dialer_with_another_secret_is_found_out() -> None:
    honest, called = dialer(), acceptor()
    challenge, _ = called.receive(honest.hello())
    assert challenge is not None
    # An impostor would stop at the challenge; one that does not check it still cannot make the proof.
    forged = msgspec.msgpack.encode([bytes(32)])
    with pytest.raises(HandshakeFailed, match="does not know"):
        called.receive(forged)


@pytest.mark.parametrize(
    ("me", "peer"), [("m2", "m2"), ("m9", "m2"), ("m1", "m3"), ("", "m2")], ids=["self", "stranger", "misled", "empty"]
)
def test_only_members_who_want_us_are_heard(me: str, peer: str) -> None:
    with pytest.raises(HandshakeFailed, match="no connection of this cluster"):
        acceptor().receive(dialer(me=me, peer=peer).hello())


def test_a_proof_cannot_be_replayed() -> None:
    caller, called = dialer(), acceptor()
    challenge, _ = called.receive(caller.hello())
    assert challenge is not None
    proof = caller.prove(challenge)
    again = acceptor(nonce=b"c" * 16)
    again.receive(caller.hello())
    with pytest.raises(HandshakeFailed):
        again.receive(proof)


def test_a_challenge_cannot_be_reflected_as_proof() -> None:
    caller, called = dialer(), acceptor()
    challenge, _ = called.receive(caller.hello())
    assert challenge is not None
    code = msgspec.msgpack.decode(challenge)[1]
    with pytest.raises(HandshakeFailed):
        called.receive(msgspec.msgpack.encode([code]))


@pytest.mark.parametrize("frame", [b"", b"\x00", b"GET / HTTP/1.1\r\n", b"\x93\x01\x02\x03", bytes(400)])
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(HandshakeFailed):
        acceptor().receive(frame)
    with pytest.raises(HandshakeFailed):
        dialer().prove(frame)


def test_another_protocol_is_refused_by_number() -> None:
    hello = msgspec.msgpack.encode([99, "m1", "m2", b"a" * 16])
    with pytest.raises(HandshakeFailed, match="speaks protocol 99"):
        acceptor().receive(hello)

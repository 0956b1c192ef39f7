"""The string for joining, and the talk that it begins."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import msgspec
import pytest

from depalma.errors import ConfigError
from depalma.joining import Invitation, NotOurMaster, authority_hash, check_master, hash_of, trusted_context
from depalma.testing.certificates import throwaway_secrets
from depalma.tunnel import Tunnel, TunnelFailed


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    throwaway_secrets(tmp_path / "secrets", ["m1"], cluster="lab")
    return tmp_path / "secrets"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Another cluster of the same name, with an authority of its own."""
    throwaway_secrets(tmp_path / "others", ["m1"], cluster="lab")
    return tmp_path / "others"


def invitation(secrets: Path) -> Invitation:
    return Invitation(
        "lab", "h9", ("http://10.0.0.1:7070",), authority_hash((secrets / "ca.crt").read_bytes()), "S" * 43
    )


def test_the_string_is_one_word_and_comes_back(secrets: Path) -> None:
    made = invitation(secrets)

    assert Invitation.read(f" {made.text()}\n") == made
    assert made.text().split() == [made.text()]
    assert made.secret not in repr(made)
    assert made.secret not in hash_of(made.secret)


@pytest.mark.parametrize("damage", ["", "x", "depalma-join-1.", "depalma-join-1.!!", "depalma-join-1.AAAA"])
def test_a_damaged_string_is_refused_without_being_shown(damage: str) -> None:
    with pytest.raises(ConfigError, match=r"^--join: ") as raised:
        Invitation.read(damage)
    assert not damage or damage == "depalma-join-1." or damage not in str(raised.value).split()


def test_half_a_string_is_refused(secrets: Path) -> None:
    text = invitation(secrets).text()

    for length in range(len(text)):
        with pytest.raises(ConfigError):
            Invitation.read(text[:length])


@pytest.mark.parametrize("change", [{"host": "../x"}, {"host": ""}, {"masters": ()}])
def test_a_string_that_cannot_be_right_is_refused(secrets: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"names no host, or no masters"):
        Invitation.read(msgspec.structs.replace(invitation(secrets), **change).text())


def test_only_the_authority_of_the_string_is_believed(secrets: Path, others: Path) -> None:
    both = (others / "ca.crt").read_bytes() + (secrets / "ca.crt").read_bytes()

    assert len(trusted_context(both, invitation(secrets)).get_ca_certs()) == 1
    for bundle in ((others / "ca.crt").read_bytes(), b"", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"):
        with pytest.raises(NotOurMaster):
            trusted_context(bundle, invitation(secrets))


@pytest.mark.parametrize("uri", ["depalma://lab/master/", "depalma://lab2/master/m1", "depalma://lab/agent/h1", "x"])
def test_only_a_master_of_the_cluster_is_one(uri: str) -> None:
    check_master({"subjectAltName": (("URI", "depalma://lab/master/m1"),)}, "lab")
    for names in ((("URI", uri),), (("URI", "depalma://lab/master/m1"), ("URI", uri)), (("DNS", "lab"),)):
        with pytest.raises(NotOurMaster):
            check_master({"subjectAltName": names}, "lab")


class Wire:
    """Two ends; everything that went through is kept."""

    def __init__(self) -> None:
        self.queues: tuple[asyncio.Queue[bytes], asyncio.Queue[bytes]] = (asyncio.Queue(), asyncio.Queue())
        self.seen = b""

    def end(self, context: ssl.SSLContext, place: int) -> Tunnel:
        async def send(data: bytes) -> None:
            self.seen += data
            await self.queues[1 - place].put(data)

        return Tunnel(context, send, self.queues[place].get, server_side=place == 0)


def server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "master-m1.pem")
    return context


async def test_a_talk_is_secret_and_with_a_master(secrets: Path) -> None:
    wire = Wire()
    master = wire.end(server_context(secrets), 0)
    machine = wire.end(trusted_context((secrets / "ca.crt").read_bytes(), invitation(secrets)), 1)

    async def serve() -> bytes:
        await master.handshake()
        told = await master.read()
        await master.write(b"welcome " * 10_000)
        return told

    serving = asyncio.create_task(serve())
    check_master(await machine.handshake(), "lab")
    await machine.write(b"the secret")

    assert await machine.read() == b"welcome " * 10_000
    assert await serving == b"the secret"
    assert b"the secret" not in wire.seen
    assert b"welcome" not in wire.seen


async def test_who_shows_the_right_authority_but_has_no_key_of_it_is_told_nothing(secrets: Path, others: Path) -> None:
    wire = Wire()
    impostor = wire.end(server_context(others), 0)
    machine = wire.end(trusted_context((secrets / "ca.crt").read_bytes(), invitation(secrets)), 1)
    serving = asyncio.create_task(impostor.handshake())

    with pytest.raises(TunnelFailed, match=r"certificate"):
        await machine.handshake()

    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_garbage_and_a_hang_up_end_the_talk(secrets: Path) -> None:
    wire = Wire()
    master = wire.end(server_context(secrets), 0)
    await wire.queues[0].put(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TunnelFailed):
        await master.handshake()

    wire = Wire()
    master = wire.end(server_context(secrets), 0)
    await wire.queues[0].put(b"")
    with pytest.raises(TunnelFailed, match="hung up"):
        await master.handshake()

"""The TLS of one connection, byte by byte and without a network: who is let in, who is not, and why."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from depalma.certificates import AUTHORITY_FILE, Authority, CertificateFiles, member_file
from depalma.consensus import tls
from depalma.consensus.tls import Channel, Credentials, Reason, Refusal
from depalma.errors import ConfigError

NOW = datetime.now(UTC)


class Lab:
    """A cluster's authority, and what it has made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.make("lab")
        self.believe(self.authority)

    def believe(self, *authorities: Authority) -> None:
        (self.folder / AUTHORITY_FILE).write_bytes(b"".join(one.certificate_pem() for one in authorities))

    def files(self, name: str, pem: bytes | None = None) -> CertificateFiles:
        file = self.folder / member_file(name)
        file.write_bytes(pem or self.authority.issue("lab", name))
        file.chmod(0o600)
        return CertificateFiles.of(self.folder, "lab", name)

    def credentials(self, name: str, pem: bytes | None = None) -> Credentials:
        return tls.load(self.files(name, pem), name)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def connect(dialer: Channel, acceptor: Channel) -> bytes:
    """Carries bytes to and fro until nobody has anything to say; returns what came to the dialer. Raises Refusal."""
    received = b""
    while True:
        there = dialer.take()
        if there:
            acceptor.receive(there)
        back = acceptor.take()
        if back:
            received += dialer.receive(back)
        if not there and not back:
            return received


def pair(dialing: Credentials, accepting: Credentials) -> tuple[Channel, Channel]:
    return Channel(dialing, accepting=False), Channel(accepting, accepting=True)


def test_two_members_learn_each_others_names_and_then_content_flows_both_ways(lab: Lab) -> None:
    dialer, acceptor = pair(lab.credentials("m1"), lab.credentials("m2"))
    assert (dialer.peer, acceptor.peer) == (None, None)
    connect(dialer, acceptor)
    assert (dialer.peer, acceptor.peer) == ("m2", "m1")
    for size in (1, 16_384, 16_385, 3_000_000):
        content = bytes(range(256)) * (size // 256 + 1)
        dialer.send(content)
        assert acceptor.receive(dialer.take()) == content
        acceptor.send(content)
        assert dialer.receive(acceptor.take()) == content


def test_content_that_comes_in_pieces_is_whole_in_the_end(lab: Lab) -> None:
    dialer, acceptor = pair(lab.credentials("m1"), lab.credentials("m2"))
    connect(dialer, acceptor)
    dialer.send(b"x" * 50_000)
    wire = dialer.take()
    received = b"".join(acceptor.receive(wire[start : start + 777]) for start in range(0, len(wire), 777))
    assert received == b"x" * 50_000


def test_a_handshake_byte_by_byte_works(lab: Lab) -> None:
    dialer, acceptor = pair(lab.credentials("m1"), lab.credentials("m2"))
    for sender, receiver in ((dialer, acceptor), (acceptor, dialer), (dialer, acceptor)):
        for byte in sender.take():
            receiver.receive(bytes([byte]))
    assert (dialer.peer, acceptor.peer) == ("m2", "m1")


def test_nothing_but_tls_1_3_is_spoken_and_no_session_is_resumed(lab: Lab) -> None:
    dialer, acceptor = pair(lab.credentials("m1"), lab.credentials("m2"))
    connect(dialer, acceptor)
    assert dialer._tls.version() == "TLSv1.3"
    assert dialer._tls.session is None or not dialer._tls.session.has_ticket


def foreign(name: str) -> Callable[[Lab], bytes]:
    return lambda lab: Authority.make("lab").issue("lab", name)


def make(cluster: str, name: str, *, begin_days: float = 0, days: float = 10) -> Callable[[Lab], bytes]:
    return lambda lab: lab.authority.issue(cluster, name, now=NOW + timedelta(days=begin_days), days=days)


BAD = {
    "other authority": (foreign("m1"), Reason.WRONG_CA),
    "expired": (make("lab", "m1", begin_days=-20), Reason.EXPIRED),
    "not yet valid": (make("lab", "m1", begin_days=5), Reason.EXPIRED),
    "other cluster": (make("other", "m1"), Reason.WRONG_NAME),
}


def loose(lab: Lab, pem: bytes, protocol: int) -> Credentials:
    """Credentials of somebody who does not look at what he shows."""
    file = lab.folder / "loose.pem"
    file.write_bytes(pem)
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols([tls.ALPN])
    context.load_cert_chain(file)
    context.load_verify_locations(lab.folder / AUTHORITY_FILE)
    return Credentials("lab", context, context, 0.0)


@pytest.mark.parametrize("kind", BAD)
def test_a_dialer_with_a_bad_certificate_is_refused(lab: Lab, kind: str) -> None:
    pem, reason = BAD[kind]
    liar = Channel(loose(lab, pem(lab), ssl.PROTOCOL_TLS_CLIENT), accepting=False)
    with pytest.raises(Refusal) as caught:
        connect(liar, Channel(lab.credentials("m2"), accepting=True))
    assert caught.value.reason is reason


@pytest.mark.parametrize("kind", BAD)
def test_an_acceptor_with_a_bad_certificate_is_refused(lab: Lab, kind: str) -> None:
    pem, reason = BAD[kind]
    liar = Channel(loose(lab, pem(lab), ssl.PROTOCOL_TLS_SERVER), accepting=True)
    with pytest.raises(Refusal) as caught:
        connect(Channel(lab.credentials("m1"), accepting=False), liar)
    assert caught.value.reason is reason


def test_who_is_refused_is_told_and_counts_it_as_such(lab: Lab) -> None:
    expired = lab.credentials("m1", make("lab", "m1", begin_days=-20)(lab))
    dialer, acceptor = pair(expired, lab.credentials("m2"))
    acceptor.receive(dialer.take())
    dialer.receive(acceptor.take())
    with pytest.raises(Refusal) as caught:
        acceptor.receive(dialer.take())
    assert (caught.value.reason, str(caught.value)) == (Reason.EXPIRED, "certificate has expired")
    with pytest.raises(Refusal) as caught:
        dialer.receive(acceptor.take())
    assert caught.value.reason is Reason.REFUSED_US
    assert "certificate expired" in str(caught.value)


def client_context(lab: Lab) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(lab.folder / AUTHORITY_FILE)
    context.set_alpn_protocols([tls.ALPN])
    return context


def refusal_of(lab: Lab, context: ssl.SSLContext) -> Reason:
    with pytest.raises(Refusal) as caught:
        connect(
            Channel(Credentials("lab", context, context, 0.0), accepting=False),
            Channel(lab.credentials("m2"), accepting=True),
        )
    return caught.value.reason


def test_tls_without_a_certificate_is_refused(lab: Lab) -> None:
    assert refusal_of(lab, client_context(lab)) is Reason.NO_CERTIFICATE


def test_a_certificate_for_servers_and_names_of_the_internet_is_refused(lab: Lab) -> None:
    stranger = trustme.CA()
    context = client_context(lab)
    stranger.issue_cert("m1", "depalma.example").configure_cert(context)
    assert refusal_of(lab, context) is Reason.WRONG_CA


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_tls_is_refused(lab: Lab) -> None:
    context = client_context(lab)
    context.load_cert_chain(lab.files("m1").member)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refusal_of(lab, context) is Reason.PROTOCOL


@pytest.mark.parametrize("protocols", [[], ["h2"], ["depalma-raft/0"]])
def test_another_version_of_our_messages_is_refused(lab: Lab, protocols: list[str]) -> None:
    context = client_context(lab)
    context.load_cert_chain(lab.files("m1").member)
    context.set_alpn_protocols(protocols)
    assert refusal_of(lab, context) is Reason.PROTOCOL


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x00" * 100, b"\xff", b"SSH-2.0-x"])
def test_plain_text_is_refused_at_the_first_byte(lab: Lab, data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        Channel(lab.credentials("m2"), accepting=True).receive(data)
    assert caught.value.reason is Reason.PLAIN_TEXT


def test_a_handshake_without_end_is_refused(lab: Lab) -> None:
    acceptor = Channel(lab.credentials("m2"), accepting=True)
    # One hello of 128 KiB, the most that OpenSSL takes, in records of 16 KiB.
    hello = b"\x01\x01\xff\xff" + bytes(5 * 16_384 - 4)
    records = b"".join(b"\x16\x03\x03\x40\x00" + hello[i : i + 16_384] for i in range(0, len(hello), 16_384))
    with pytest.raises(Refusal, match="a handshake of more than 65536 bytes") as caught:
        acceptor.receive(records)
    assert caught.value.reason is Reason.PROTOCOL


def test_bytes_that_were_changed_on_their_way_are_noticed(lab: Lab) -> None:
    dialer, acceptor = pair(lab.credentials("m1"), lab.credentials("m2"))
    connect(dialer, acceptor)
    dialer.send(b"content")
    wire = bytearray(dialer.take())
    wire[-1] ^= 1
    with pytest.raises(Refusal, match="bad record mac"):
        acceptor.receive(bytes(wire))


def test_members_of_two_authorities_know_each_other_while_both_are_believed(lab: Lab) -> None:
    old = lab.authority
    new = Authority.make("lab")
    lab.believe(new, old)
    dialer, acceptor = pair(
        lab.credentials("m1", old.issue("lab", "m1")), lab.credentials("m2", new.issue("lab", "m2"))
    )
    connect(dialer, acceptor)
    assert (dialer.peer, acceptor.peer) == ("m2", "m1")


# ---------------------------------------------------------------- loading


def test_the_end_of_the_certificate_is_known_also_when_it_is_over(lab: Lab) -> None:
    for begin, left in ((0, 10), (-20, -10)):
        pem = make("lab", "m1", begin_days=begin)(lab)
        expected = (NOW + timedelta(days=left)).timestamp()
        assert abs(lab.credentials("m1", pem).expires_at - expected) < 2


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (foreign("m1"), r"master-m1\.pem: does not fit .*ca\.crt: .*; a new one is made by: depalmactl cluster init"),
        (make("lab", "m2"), r"is for depalma://lab/master/m2, not for master m1 of 'lab'"),
        (make("other", "m1"), r"is for depalma://other/master/m1, not for master m1 of 'lab'"),
        (lambda lab: b"nothing\n", r"cannot be used"),
        (lambda lab: lab.authority.issue("lab", "m1").split(b"-----BEGIN PRIVATE")[0], r"cannot be used"),
        (
            lambda lab: lab.authority.issue("lab", "m1").split(b"-----BEGIN PRIVATE")[0]
            + b"-----BEGIN PRIVATE" + lab.authority.issue("lab", "m1").split(b"-----BEGIN PRIVATE")[1],
            r"cannot be used: key values mismatch",
        ),
    ],
    ids=["authority", "member", "cluster", "garbage", "no key", "other key"],
)  # fmt: skip
def test_a_certificate_that_others_would_refuse_is_not_used(lab: Lab, pem: Callable[[Lab], bytes], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        lab.credentials("m1", pem(lab))


def test_missing_files_are_named_with_what_makes_them(lab: Lab) -> None:
    files = lab.files("m1")
    files.authority.unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt: is missing; it is made by: depalmactl cluster init -f FILE"):
        tls.load(files, "m1")
    lab.believe(lab.authority)
    files.member.unlink()
    with pytest.raises(ConfigError, match=r"master-m1\.pem: is missing"):
        tls.load(files, "m1")


def test_a_key_that_others_may_read_is_refused(lab: Lab) -> None:
    files = lab.files("m1")
    files.member.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others may read the key; run: chmod 600"):
        tls.load(files, "m1")


def test_the_standard_librarys_own_tls_is_understood(lab: Lab) -> None:
    """What we speak is plain TLS: a blocking socket of the library gets through to a channel."""
    ours, theirs = socket.socketpair()
    acceptor = Channel(lab.credentials("m2"), accepting=True)

    def serve() -> None:
        while not acceptor.peer:
            acceptor.receive(ours.recv(65_536))
            ours.sendall(acceptor.take())
        acceptor.send(b"hello")
        ours.sendall(acceptor.take())

    thread = threading.Thread(target=serve)
    thread.start()
    with ours, lab.credentials("m1").dialing.wrap_socket(theirs, server_hostname="m2") as secured:
        assert secured.recv(5) == b"hello"
        assert secured.selected_alpn_protocol() == tls.ALPN
        thread.join()

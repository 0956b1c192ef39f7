"""Mutual TLS between real replicas: who is kept out and counted, and certificates that change while they work."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from depalma import secretfiles
from depalma.certificates import AUTHORITY_FILE, Authority, load_certificates, member_file
from depalma.consensus import ConsensusError, Replica, ReplicaSettings, tls
from depalma.errors import ConfigError
from depalma.testing.certificates import CLUSTER
from depalma.testing.ledger import Ledger
from depalma.testing.replicas import Replicas, wait_until

IDS = ("m1", "m2", "m3")
TRIES = 5


@pytest.fixture(autouse=True)
def _files_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depalma.consensus.keyring.LOOK_S", 0.05)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Replicas]:
    async with Replicas(tmp_path) as replicas:
        await replicas.start()
        await replicas.propose(b"first")
        await replicas.wait_for_agreement()
        yield replicas
        assert not replicas.fatal


def term(cluster: Replicas) -> int:
    return max(replica.term for replica in cluster.running.values())


# ---------------------------------------------------------------- strangers


def context_of(cluster: Replicas, pem: bytes | None = None) -> ssl.SSLContext:
    """How a client would speak to the Raft port that believes the cluster's authority and shows the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cluster.secrets / AUTHORITY_FILE)
    context.set_alpn_protocols([tls.ALPN])
    if pem is not None:
        file = cluster.secrets.parent / "stranger.pem"
        file.write_bytes(pem)
        context.load_cert_chain(file)
    return context


def other_authority(cluster: Replicas) -> ssl.SSLContext:
    return context_of(cluster, Authority.make(CLUSTER).issue(CLUSTER, "m1"))


def of_the_internet(cluster: Replicas) -> ssl.SSLContext:
    context = context_of(cluster)
    trustme.CA().issue_cert("m1").configure_cert(context)
    return context


def expired(cluster: Replicas) -> ssl.SSLContext:
    begin = datetime.now(UTC) - timedelta(days=10)
    return context_of(cluster, Authority.load(cluster.secrets).issue(CLUSTER, "m1", now=begin, days=9))


def named(cluster_name: str, member: str) -> Callable[[Replicas], ssl.SSLContext]:
    return lambda cluster: context_of(cluster, Authority.load(cluster.secrets).issue(cluster_name, member))


def tls_1_2(cluster: Replicas) -> ssl.SSLContext:
    context = context_of(cluster, Authority.load(cluster.secrets).issue(CLUSTER, "m1"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


STRANGERS: dict[str, tuple[Callable[[Replicas], ssl.SSLContext | None], str]] = {
    "plain text": (lambda _: None, "plain_text"),
    "no certificate": (context_of, "no_certificate"),
    "other authority": (other_authority, "wrong_ca"),
    "of the internet": (of_the_internet, "wrong_ca"),
    "expired": (expired, "expired"),
    "other cluster": (named("other", "m1"), "wrong_name"),
    "no member": (named(CLUSTER, "m4"), "not_a_member"),
    "the one who is called": (named(CLUSTER, "m2"), "not_a_member"),
    "tls 1.2": (tls_1_2, "protocol"),
}


async def is_let_in(cluster: Replicas, name: str, context: ssl.SSLContext | None) -> bool:
    """Whether the replica says anything to one that comes like that."""
    port = next(member.raft_port for member in cluster.members if member.id == name)
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname=None if context is None else ""
            )
            try:
                if context is None:
                    writer.write(b"\x04\x00\x00\x00what")
                return bool(await reader.read(1))
            finally:
                writer.transport.abort()
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.mark.parametrize("kind", STRANGERS)
async def test_no_stranger_is_let_in_and_each_is_counted(cluster: Replicas, kind: str) -> None:
    make, reason = STRANGERS[kind]
    context = make(cluster)
    replica, before = cluster.running["m2"], term(cluster)
    assert set(replica.refused_connections().values()) == {0}

    let_in = [await is_let_in(cluster, "m2", context) for _ in range(TRIES)]

    assert let_in == [False] * TRIES
    await wait_until(lambda: replica.refused_connections()[reason] >= TRIES, what=replica.refused_connections)
    assert {word: count for word, count in replica.refused_connections().items() if count} == {reason: TRIES}
    await cluster.propose(b"last")
    await cluster.wait_for_agreement()
    assert term(cluster) == before


async def test_a_member_is_let_in(cluster: Replicas) -> None:
    """The tests above would pass with a port that lets nobody in."""
    assert await is_let_in(cluster, "m2", named(CLUSTER, "m1")(cluster))
    assert set(cluster.running["m2"].refused_connections().values()) == {0}


async def test_who_says_nothing_hangs_up_or_comes_in_crowds_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.consensus.transport.HANDSHAKE_S", 60.0)
    monkeypatch.setattr("depalma.consensus.transport.MAX_UNPROVEN", 4)
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m2")
        counts = cluster.running["m2"].refused_connections
        idle = [await asyncio.open_connection("127.0.0.1", cluster.members[1].raft_port) for _ in range(10)]
        await wait_until(lambda: counts()["crowded"] == 6, what=counts)
        for _, writer in idle:
            writer.close()
        await wait_until(lambda: counts()["closed"] == 4, what=counts)
        monkeypatch.setattr("depalma.consensus.transport.HANDSHAKE_S", 0.2)
        _, writer = await asyncio.open_connection("127.0.0.1", cluster.members[1].raft_port)
        await wait_until(lambda: counts()["timeout"] == 1, what=counts)
        writer.close()
        monkeypatch.setattr("depalma.consensus.transport.HANDSHAKE_S", 60.0)
        _, writer = await asyncio.open_connection("127.0.0.1", cluster.members[1].raft_port)
        writer.close()
        await wait_until(lambda: counts()["closed"] == 5, what=counts)


async def test_a_false_member_that_is_dialled_is_refused_too(tmp_path: Path) -> None:
    """m3's certificate at m2's address: whoever has one member's key is not another member."""
    async with Replicas(tmp_path) as cluster:
        accepting = tls.load(cluster.certificates("m3"), "m3").accepting
        said: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                said.append(await reader.read(1))
            writer.transport.abort()

        server = await asyncio.start_server(listen, "127.0.0.1", cluster.members[1].raft_port, ssl=accepting)
        async with server:
            await cluster.start("m1")
            counts = cluster.running["m1"].refused_connections
            await wait_until(lambda: counts()["wrong_name"] >= 2, what=counts)
        assert not any(said)


# ---------------------------------------------------------------- certificates that change


class Load:
    """Proposes at the leader without a pause, and keeps what fails."""

    def __init__(self, cluster: Replicas) -> None:
        self.committed = 0
        self.failed: list[ConsensusError] = []
        self._task = asyncio.create_task(self._run(cluster))

    async def _run(self, cluster: Replicas) -> None:
        leader = await cluster.wait_for_leader()
        while True:
            try:
                await leader.propose(b"load")
                self.committed += 1
            except ConsensusError as error:
                self.failed.append(error)
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Returns when so many more are committed."""
        wanted = self.committed + count
        await wait_until(lambda: self.committed >= wanted or self.failed, what=lambda: (self.committed, self.failed))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def shown(cluster: Replicas, name: str) -> int:
    """The serial number of the certificate that a replica shows to a new connection."""
    port = next(member.raft_port for member in cluster.members if member.id == name)
    context = context_of(cluster)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="")
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(certificate["serialNumber"], 16)


async def until_all_show_their_files(cluster: Replicas) -> None:
    for name in IDS:
        (certificate,) = load_certificates(cluster.secrets / member_file(name))
        async with asyncio.timeout(30):
            while await shown(cluster, name) != certificate.serial_number:  # noqa: ASYNC110 - in another's hands
                await asyncio.sleep(0.02)


def authorities_believed(cluster: Replicas) -> list[int]:
    return [len(replica._keyring.credentials.accepting.get_ca_certs()) for replica in cluster.running.values()]


async def reconnect_all(cluster: Replicas) -> None:
    """Cuts every connection between members, one pair after the other, and returns when all stand again."""
    for dialer, acceptor in (("m1", "m2"), ("m1", "m3"), ("m2", "m3")):
        mesh = cluster.running[dialer]._mesh
        old = mesh._connections[acceptor]
        old.abort()
        await wait_until(
            lambda mesh=mesh, acceptor=acceptor, old=old: mesh._connections.get(acceptor) not in (None, old),
            what=cluster.describe,
        )


async def test_certificates_and_then_the_authority_are_replaced_under_load(cluster: Replicas) -> None:
    """No commit fails, no leader changes, and at the end nothing of before is believed."""
    before, load = term(cluster), Load(cluster)
    await load.more(10)
    (old,) = load_certificates(cluster.secrets / AUTHORITY_FILE)

    secretfiles.renew(cluster.secrets, CLUSTER, IDS)
    await until_all_show_their_files(cluster)
    await load.more(10)
    secretfiles.add_new_authority(cluster.secrets, CLUSTER)
    await wait_until(lambda: authorities_believed(cluster) == [2] * 3, what=lambda: authorities_believed(cluster))
    secretfiles.renew(cluster.secrets, CLUSTER, IDS)
    await until_all_show_their_files(cluster)
    secretfiles.drop_old_authorities(cluster.secrets, CLUSTER, IDS)
    await wait_until(lambda: authorities_believed(cluster) == [1] * 3, what=lambda: authorities_believed(cluster))
    await load.more(10)
    assert (load.failed, term(cluster)) == ([], before)

    await reconnect_all(cluster)
    await load.more(10)
    await load.stop()
    assert load.failed == []
    assert old not in load_certificates(cluster.secrets / AUTHORITY_FILE)
    counts = [replica.refused_connections() for replica in cluster.running.values()]
    assert {word for count in counts for word in count if count[word]} == {"no_certificate"}  # it was us who looked


async def test_an_end_breaks_no_connection_that_stands_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections are refused; new certificates bring them back, and nothing has to be started again."""
    async with Replicas(tmp_path) as cluster:
        authority = Authority.load(cluster.secrets)
        for name in IDS:
            (cluster.secrets / member_file(name)).write_bytes(authority.issue(CLUSTER, name, days=15 / 86_400))
        await cluster.start()
        await cluster.propose(b"first")
        await cluster.wait_for_agreement()
        assert 0 < cluster.running["m1"].certificate_seconds_left() < 16
        assert "ends in 0.0 days; renew it with: depalmactl cluster init" in caplog.text
        expired = "has expired: connections that stand go on"
        await wait_until(lambda: caplog.text.count(expired) == 3, within_s=60, what=lambda: caplog.text)
        assert cluster.running["m1"].certificate_seconds_left() < 0

        before = term(cluster)
        await cluster.propose(b"after the end")
        await cluster.wait_for_agreement()
        assert term(cluster) == before

        follower = next(name for name in IDS if name != cluster.leader_name())
        await cluster.stop(follower)
        await cluster.start(follower)

        def refused() -> int:
            return sum(replica.refused_connections()["expired"] for replica in cluster.running.values())

        await wait_until(refused, what=refused)
        await cluster.propose(b"by the two others")
        assert cluster.running[follower].leader_id is None
        secretfiles.renew(cluster.secrets, CLUSTER, IDS)
        await cluster.wait_for_agreement()
        assert term(cluster) == before
        assert cluster.running["m1"].certificate_seconds_left() > 86_400


async def test_new_files_that_are_no_good_are_told_and_not_used(
    cluster: Replicas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = await shown(cluster, "m2")
    file = cluster.secrets / member_file("m2")
    for bad, words in (
        (b"half a file", "cannot be used"),
        (Authority.make(CLUSTER).issue(CLUSTER, "m2"), "does not fit"),
        (Authority.load(cluster.secrets).issue(CLUSTER, "m3"), "not for master m2"),
    ):
        (tmp_path / "bad.pem").touch(0o600)
        (tmp_path / "bad.pem").write_bytes(bad)
        (tmp_path / "bad.pem").rename(file)  # at once: of a half of it somebody would be told, too
        await wait_until(lambda words=words: words in caplog.text, what=lambda: caplog.text)
        assert await shown(cluster, "m2") == good
    file.unlink()
    await wait_until(lambda: "is missing" in caplog.text, what=lambda: caplog.text)
    assert caplog.text.count("the new certificates are not used") == 4  # told once each

    secretfiles.prepare(cluster.secrets, CLUSTER, IDS)
    await until_all_show_their_files(cluster)


# ---------------------------------------------------------------- starting


async def test_a_single_member_needs_a_certificate_of_its_own_and_nobody_else(tmp_path: Path) -> None:
    async with Replicas(tmp_path, size=1) as cluster:
        await cluster.start()
        assert await cluster.propose(b"x") is not None
        assert cluster.running["m1"].certificate_seconds_left() > 86_400


async def test_a_replica_does_not_start_without_its_certificate(tmp_path: Path) -> None:
    async with Replicas(tmp_path, size=1) as cluster:
        (cluster.secrets / member_file("m1")).unlink()
        settings: ReplicaSettings = cluster.settings("m1")
        replica = Replica(settings, Ledger(), certificates=cluster.certificates("m1"), on_fatal=pytest.fail)
        with pytest.raises(ConfigError, match=r"master-m1\.pem: is missing; it is made by: depalmactl cluster init"):
            await replica.start()
        await replica.stop()

"""The Raft port: only members get in, and nobody can hurt it from outside."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from depalma.consensus import Member, Replica, tls
from depalma.consensus.messages import MAX_FRAME_BYTES
from depalma.testing.ledger import Ledger
from depalma.testing.replicas import Replicas, wait_until


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


async def connect(cluster: Replicas, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = next(member.raft_port for member in cluster.members if member.id == name)
    return await asyncio.open_connection("127.0.0.1", port)


async def gets_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, within_s: float = 30.0) -> bool:
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(4096):
                pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


async def unharmed(cluster: Replicas, command: bytes) -> None:
    term = max(replica.term for replica in cluster.running.values())
    await cluster.propose(command)
    await cluster.wait_for_agreement()
    assert max(replica.term for replica in cluster.running.values()) == term
    assert not cluster.fatal


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x01\x31\x01\x00\x01\x2d\x03\x03" + bytes(299),
        framed(b"\x80\x04\x95garbage"),
        framed(msgspec.msgpack.encode([1, "m1", "m2"])),
        struct.pack("<I", 0x7FFFFFFF) + bytes(1000),
        b"\x16\x03\x03\x40\x00\x01\x00\xff\xff" + bytes(70_000),
        b"\x15\x03\x03\x00\x02\x02\x30",
    ],
    ids=["http", "tls", "pickle", "frame", "two-gigabytes", "endless-hello", "alert"],
)
async def test_garbage_is_hung_up_on_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("depalma.consensus.transport.HANDSHAKE_S", 100.0)  # it is not for that that they are closed
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        await cluster.wait_for_leader()
        for name in cluster.running:
            reader, writer = await connect(cluster, name)
            writer.write(data)
            assert await gets_closed(reader, writer)

        await unharmed(cluster, b"x")


async def dialled(cluster: Replicas, me: str, peer: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A proven connection, made by hand."""
    port = next(member.raft_port for member in cluster.members if member.id == peer)
    context = tls.load(cluster.certificates(me), me).dialing
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="")
    assert await reader.readexactly(4) == bytes(4)
    return reader, writer


async def test_an_oversized_frame_of_a_member_closes_its_connection(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m2", "m3")
        await cluster.wait_for_leader()
        reader, writer = await dialled(cluster, "m1", "m2")
        writer.write(struct.pack("<I", MAX_FRAME_BYTES + 1))

        assert await gets_closed(reader, writer)
        await unharmed(cluster, b"x")


async def test_frames_of_a_member_that_are_no_messages_are_dropped(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m2", "m3")
        await cluster.wait_for_leader()
        _, writer = await dialled(cluster, "m1", "m2")
        for data in (
            b"\xc1",
            b"garbage",
            msgspec.msgpack.encode([5, -1, 0, 0, 0, 0, []]),
            msgspec.msgpack.encode([99]),
        ):
            writer.write(framed(data))
        await writer.drain()

        await unharmed(cluster, b"x")
        writer.close()


async def test_a_newer_connection_replaces_an_older_one(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m2", "m3")
        await cluster.wait_for_leader()
        first = await dialled(cluster, "m1", "m2")
        second = await dialled(cluster, "m1", "m2")

        assert await gets_closed(*first)
        assert not await gets_closed(*second, within_s=0.2)


async def test_a_connection_that_says_nothing_is_closed_and_does_not_keep_members_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.consensus.transport.HANDSHAKE_S", 0.5)
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m2")
        idle = [await connect(cluster, "m2") for _ in range(100)]
        await cluster.start("m1", "m3")
        await cluster.propose(b"x")
        await cluster.wait_for_agreement()

        closed = await asyncio.gather(*[gets_closed(*pair, within_s=30.0) for pair in idle])
        assert all(closed)


EXHAUST = """
import asyncio, os, resource, socket, sys
from pathlib import Path
from depalma.testing.replicas import Replicas

async def main():
    async with Replicas(Path(sys.argv[1])) as cluster:
        await cluster.start("m2", "m3")
        await cluster.propose(b"before")
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        spare = []
        try:
            while True:
                spare.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            os.close(spare.pop())
        # One descriptor is left: it goes to our side of a connection that the listener cannot accept.
        stranger = socket.create_connection(("127.0.0.1", cluster.members[1].raft_port))
        await asyncio.sleep(0.3)
        await cluster.propose(b"during")
        for fd in spare:
            os.close(fd)
        stranger.close()
        await cluster.start("m1")
        await cluster.wait_for_agreement()
        assert cluster.ledgers["m1"].entries == [b"before", b"during"], cluster.ledgers["m1"].entries
        assert not cluster.fatal, cluster.fatal

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asyncio.run(main())
print("listens again")
"""


def test_a_full_descriptor_table_does_not_close_the_listener(tmp_path: Path) -> None:
    """m1 dials m2 and m3, so they must still be listening afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", EXHAUST, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "listens again" in done.stdout


async def test_a_silent_peer_is_noticed_by_its_silence(tmp_path: Path) -> None:
    """It holds its connection open and says nothing: no heartbeat, no ping."""
    async with Replicas(tmp_path, connection_timeout_s=0.8) as cluster:
        await cluster.start("m2", "m3")
        await cluster.wait_for_leader()
        reader, writer = await dialled(cluster, "m1", "m2")

        assert await gets_closed(reader, writer, within_s=30.0)
        await wait_until(lambda: cluster.leader() is not None, what=cluster.describe)


async def test_a_name_that_no_look_up_takes_ends_no_dialling(tmp_path: Path) -> None:
    """A task that ended by it would be told to the loop when it is freed, and that stops a master."""
    async with Replicas(tmp_path) as cluster:
        mesh = Replica(
            cluster.settings("m1"), Ledger(), certificates=cluster.certificates("m1"), on_fatal=lambda _: None
        )._mesh
        mesh._keyring.load()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await mesh._dial(Member(id="m2", host="a..b", raft_port=7071))

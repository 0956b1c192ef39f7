"""The API's port speaks TLS: who gets in, who is refused in words, and that nobody is told a secret by mistake."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from depalma import secretfiles
from depalma.agent.joining import CannotJoin, join
from depalma.api import listener as port
from depalma.api.connection import Connections
from depalma.api.listener import Listener, ServerKeys
from depalma.certificates import (
    AUTHORITY_FILE,
    HOSTS_FILE,
    HOSTS_KEY_FILE,
    Authority,
    CertificateFiles,
    host_request,
    host_uri,
    member_file,
)
from depalma.client.client import Client
from depalma.client.connections import HttpConnection
from depalma.client.transport import Request
from depalma.errors import ConfigError, NoLeader, Rejected
from depalma.joining import Invitation, authority_hash
from depalma.testing.certificates import CLUSTER, throwaway_secrets
from depalma.testing.fake_leader import wait_until
from depalma.trust import Trust, role_of, verifying

LONG_AGO = datetime.now(UTC) - timedelta(days=30)
TOKEN = "t" * 40


class Api:
    """A port that answers with the words of whoever asked, by a listener."""

    def __init__(self, secrets: Path, *, plain: bool, tls: bool = True) -> None:
        self.secrets = secrets
        self.trust = Trust(secrets / AUTHORITY_FILE)
        files = CertificateFiles.of(secrets, CLUSTER, "m1")
        app = web.Application(client_max_size=10_000_000)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        self.keys = ServerKeys(files, self.trust)
        self._tls, self._plain = tls, plain

    async def __aenter__(self) -> Api:
        await self._runner.setup()
        assert self._runner.server is not None
        self.listener = Listener(Connections(self._runner.server), self.keys if self._tls else None, plain=self._plain)
        await self.listener.start("127.0.0.1", 0)
        self.port = self.listener.ports[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        role = role_of(request.transport.get_extra_info("peercert"))
        return web.json_response({"scheme": request.scheme, "role": role, "body": len(await request.read())})

    def url(self, scheme: str = "https") -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    async def refused(self) -> dict[str, int]:
        """Returns what was refused, once something was."""
        await wait_until(lambda: any(self.listener.refused.values()), "a refusal")
        return {reason: count for reason, count in self.listener.refused.items() if count}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with Api(throwaway_secrets(tmp_path / "secrets", ["m1"]), plain=False) as made:
        yield made


def ask(url: str, trust: Trust | None, body: bytes = b"") -> bytes:
    """Asks as the synchronous client does."""
    connection = HttpConnection.to(url, trust, timeout_s=10)
    try:
        return connection.exchange(Request("POST", "/v1/x", body), {}).read()
    finally:
        connection.close()


async def test_all_clients_get_through(api: Api) -> None:
    large = bytes(3_000_000)
    assert b'"scheme": "https"' in await asyncio.to_thread(ask, api.url(), api.trust)
    assert b'"body": 3000000' in await asyncio.to_thread(ask, api.url(), api.trust, large)
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            async with http.post(f"{api.url()}/v1/x", data=io.BytesIO(large), ssl=verifying(api.trust)) as answer:
                assert (await answer.json()) == {"scheme": "https", "role": "", "body": 3_000_000}
    assert set(api.listener.refused.values()) == {0}


async def test_other_programs_check_the_address(api: Api, tmp_path: Path) -> None:
    """curl and Prometheus go by the address in the certificate: `cluster init` puts it there."""
    secretfiles.renew(api.secrets, CLUSTER, ["m1"], {"m1": "127.0.0.1"})
    await asyncio.to_thread(api.keys._follow)
    strict = ssl.create_default_context(cafile=api.secrets / AUTHORITY_FILE)
    async with aiohttp.ClientSession() as http, http.get(f"{api.url()}/metrics", ssl=strict) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("tls", [True, False], ids=["allow", "off"])
async def test_where_plain_http_is_allowed_it_works(tmp_path: Path, tls: bool) -> None:
    secrets = throwaway_secrets(tmp_path / "secrets", ["m1"])
    async with Api(secrets, plain=True, tls=tls) as api:
        assert b'"scheme": "http"' in await asyncio.to_thread(ask, api.url("http"), None)
        if tls:
            assert b'"scheme": "https"' in await asyncio.to_thread(ask, api.url(), api.trust)
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|packet length"):
                await asyncio.to_thread(ask, api.url(), api.trust)


async def test_plain_text_is_refused_with_words(api: Api) -> None:
    """A client that was given http:// is told so at once; it is counted, and told in the log."""

    def submit() -> None:
        with Client(api.url("http"), token=TOKEN, deadline_s=5) as client:
            client.jobs()

    with pytest.raises(Rejected, match=r"this port speaks TLS: say https:// and give the certificate") as refused:
        await asyncio.to_thread(submit)
    assert refused.value.code == "tls_needed"
    assert await api.refused() == {"plain_text": 1}


def hosts_of(api: Api) -> Authority:
    return Authority.load(api.secrets, HOSTS_FILE, HOSTS_KEY_FILE)


async def test_the_certificate_of_a_host_is_seen(api: Api, tmp_path: Path) -> None:
    own = tmp_path / "agent.pem"
    key, asked = host_request("h9")
    own.write_bytes(hosts_of(api).sign_host(CLUSTER, "h9", asked) + key)
    assert b'"role": "host"' in await asyncio.to_thread(ask, api.url(), Trust(api.secrets / AUTHORITY_FILE, own))
    changed = bytearray(ssl.PEM_cert_to_DER_cert(asked.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    changed[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(changed)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    with pytest.raises(ValueError, match="not made with its key"):
        hosts_of(api).sign_host(CLUSTER, "h9", forged)


def by_certificate(make: Callable[[Api], bytes]) -> Callable[[Api, Path], ssl.SSLContext]:
    def context_of(api: Api, folder: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        file = folder / "other.pem"
        file.write_bytes(make(api))
        context.load_cert_chain(file)
        return context

    return context_of


def old_tls(api: Api, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (by_certificate(lambda api: Authority.make(CLUSTER).issue(CLUSTER, "m1")), "wrong_ca"),
        (by_certificate(lambda api: hosts_of(api).sign_host(CLUSTER, "h1", now=LONG_AGO, days=9)), "expired"),
        (by_certificate(lambda api: Authority.load(api.secrets).issue(CLUSTER, "m1")), "wrong_ca"),
        (old_tls, "protocol"),
    ],
    ids=["another CA", "expired", "a master's", "TLS 1.2"],
)
async def test_wrong_certificates_and_old_tls_are_refused(
    api: Api, tmp_path: Path, make: Callable[[Api, Path], ssl.SSLContext], reason: str
) -> None:
    """Nobody has to show a certificate; who shows a wrong one does not get in by leaving it out of account."""

    def call() -> bytes:
        with (
            contextlib.suppress(OSError),  # an alert, or an end without one
            socket.create_connection(("127.0.0.1", api.port), timeout=10) as raw,
            context.wrap_socket(raw) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return tls.recv(1)
        return b""

    context = make(api, tmp_path)
    assert await asyncio.to_thread(call) == b"", "it was answered"
    assert await api.refused() == {reason: 1}


async def test_garbage_and_silence_cost_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "HANDSHAKE_S", 0.2)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)  # says nothing
    assert await api.refused() == {"timeout": 1}
    writer.close()
    monkeypatch.setattr(port, "HANDSHAKE_S", 60.0)  # what comes now is not to be late
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"\x16\x03\x01" + b"\xff" * 500)
    await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await wait_until(lambda: api.listener.refused["protocol"], "another refusal")
    assert b"https" in await asyncio.to_thread(ask, api.url(), api.trust)


# ---------------------------------------------------------------- false masters


class FalseMaster:
    """Something that calls itself a master, and notes what it is told after the handshake."""

    def __init__(self, pem: bytes, folder: Path) -> None:
        self.told = b""
        self._context = None
        if pem:
            file = folder / "false.pem"
            file.write_bytes(pem)
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(file)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._server.accept()
            except OSError:
                return
            try:
                with raw:
                    raw.settimeout(10)
                    if self._context is None:
                        raw.recv(4096)
                        raw.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                        continue
                    with self._context.wrap_socket(raw, server_side=True) as tls:
                        while data := tls.recv(4096):
                            self.told += data
            except OSError:
                continue

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.fixture
def false_master(tmp_path: Path) -> Iterator[Callable[[bytes], FalseMaster]]:
    made: list[FalseMaster] = []

    def make(pem: bytes) -> FalseMaster:
        made.append(FalseMaster(pem, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def server(authority: Authority, name: str) -> bytes:
    """A certificate of the true authority for something that is no master, good for servers."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = [ExtendedKeyUsageOID.SERVER_AUTH]
    made = authority._certify(key.public_key(), "x", CLUSTER, name, [], usage, None, 9)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM) + pem


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda authority: Authority.make(CLUSTER).issue(CLUSTER, "m1"), "not to be trusted: .*certificate"),
        (lambda authority: authority.issue(CLUSTER, "m1", now=LONG_AGO, days=9), "not to be trusted: .*expired"),
        (lambda authority: authority.sign_host(CLUSTER, "h1"), "not to be trusted: .*purpose"),
        (
            lambda authority: server(authority, host_uri(CLUSTER, "h1")),
            "is for depalma://test/host/h1, not for a master",
        ),
        (lambda authority: server(authority, "https://m1"), "is for https://m1, not for a master"),
        (lambda authority: b"", "it does not speak TLS"),
    ],
    ids=["forged CA", "expired", "a host", "a host that may serve", "somebody", "plain text"],
)
async def test_a_false_master_is_found_out_before_the_token_is_said(
    tmp_path: Path,
    false_master: Callable[[bytes], FalseMaster],
    make: Callable[[Authority], bytes],
    words: str,
) -> None:
    secrets = throwaway_secrets(tmp_path / "secrets", ["m1"])
    there = false_master(make(Authority.load(secrets)))

    def submit() -> None:
        with Client(there.url, token=TOKEN, ca=secrets / AUTHORITY_FILE, deadline_s=2.0) as client:
            client.jobs()

    with pytest.raises(NoLeader, match=words):
        await asyncio.to_thread(submit)
    async with aiohttp.ClientSession(headers={"Authorization": TOKEN}) as http:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await http.get(there.url, ssl=verifying(Trust(secrets / AUTHORITY_FILE)))
    assert there.told == b""


def test_https_without_an_authority_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPALMA_CA", raising=False)
    with pytest.raises(ConfigError, match=r"https://a:1 \(argument\): https needs the certificate of the cluster's"):
        Client("https://a:1", token=TOKEN)
    with pytest.raises(ConfigError, match=r"nothing.crt: the cluster's authority cannot be used: No such file"):
        Client("https://a:1", token=TOKEN, ca=tmp_path / "nothing.crt")
    (tmp_path / "empty.crt").write_text("")
    with pytest.raises(ConfigError, match=r"empty.crt: the cluster's authority cannot be used"):
        Client("https://a:1", token=TOKEN, ca=tmp_path / "empty.crt")
    with pytest.raises(ConfigError, match="http and https in one list"):
        Client("https://a:1,http://b:1", token=TOKEN, ca=tmp_path / "empty.crt")


# ---------------------------------------------------------------- replacing


async def test_everything_is_replaced_while_it_runs(api: Api) -> None:
    """Another authority in the three steps of docs/operations.md: at no moment is a true client refused."""

    async def works(trust: Trust) -> None:
        trust.refresh()
        await asyncio.to_thread(api.keys._follow)
        assert b"https" in await asyncio.to_thread(ask, api.url(), trust)

    client = Trust(api.secrets / AUTHORITY_FILE)
    first = (api.secrets / member_file("m1")).read_bytes()
    before = Trust(_copy(api.secrets / AUTHORITY_FILE))
    secretfiles.add_new_authority(api.secrets, CLUSTER)
    await works(client)
    secretfiles.renew(api.secrets, CLUSTER, ["m1"])
    await works(client)
    secretfiles.drop_old_authorities(api.secrets, CLUSTER, ["m1"])
    await works(client)
    assert (api.secrets / member_file("m1")).read_bytes() != first
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(ask, api.url(), before)
    (api.secrets / member_file("m1")).write_bytes(b"no certificate")
    with pytest.raises(ConfigError):
        await asyncio.to_thread(api.keys._follow)
    assert b"https" in await asyncio.to_thread(ask, api.url(), client)


def _copy(file: Path) -> Path:
    copy = file.with_name("copy.crt")
    copy.write_bytes(file.read_bytes())
    return copy


# ---------------------------------------------------------------- joining


@pytest.mark.parametrize(
    ("authority_shown", "pem", "words"),
    [
        ("its own", lambda secrets: Authority.make(CLUSTER).issue(CLUSTER, "m1"), "another authority than the string"),
        (
            "the true one",
            lambda secrets: Authority.make(CLUSTER).issue(CLUSTER, "m1"),
            "could not prove to be a master",
        ),
        (
            "the true one",
            lambda secrets: Authority.load(secrets, HOSTS_FILE, HOSTS_KEY_FILE).sign_host(CLUSTER, "h1"),
            "could not prove to be a master",
        ),
    ],
    ids=["forged CA", "true CA, no master", "another host"],
)
async def test_a_man_in_the_middle_does_not_get_the_secret_of_an_invitation(
    tmp_path: Path, authority_shown: str, pem: Callable[[Path], bytes], words: str
) -> None:
    """The string's hash finds him out, or that he is no master of the authority that he shows."""
    secrets = throwaway_secrets(tmp_path / "secrets", ["m1"])
    true = (secrets / AUTHORITY_FILE).read_bytes()
    own = tmp_path / "own.pem"
    own.write_bytes(pem(secrets))
    told: list[bytes] = []

    async def tell(request: web.Request) -> web.Response:
        told.append(await request.read())
        return web.Response(body=true if authority_shown == "the true one" else own.read_bytes())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", tell)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    invitation = Invitation(CLUSTER, "h9", (url,), authority_hash(true), "S" * 43)
    try:
        with pytest.raises(CannotJoin, match=words) as refused:
            await join(invitation, tmp_path / "joined", patience_s=0.1)
    finally:
        await runner.cleanup()
    assert "nothing was told to it" in str(refused.value)
    assert set(told) <= {b""}, "the secret was sent"

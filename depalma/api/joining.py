"""/v1/invitations, /v1/authority, /v1/join: how a machine that has nothing yet gets into the cluster; and
/v1/agent/certificate, by which it stays."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from aiohttp import WSMsgType, web

from depalma.api.auth import AGENT, ANYBODY
from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key, read_body
from depalma.api.problems import Problem
from depalma.api.route import Mode, Route
from depalma.api.shapes import InvitationToMake, Invited
from depalma.certificates import AUTHORITY_FILE, HOSTS_FILE, HOSTS_KEY_FILE, Authority, member_file
from depalma.config import ClusterConfig, HostConfig, MasterConfig
from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import ConfigError, Rejected
from depalma.joining import (
    CertificateAsked,
    CertificateMade,
    JoinAnswer,
    JoinRequest,
    authority_hash,
    hash_of,
    host_token,
)
from depalma.masters import known_masters, urls
from depalma.state.commands import InviteHost, JoinHost
from depalma.tunnel import MESSAGE_BYTES, Tunnel, TunnelFailed

log = logging.getLogger(__name__)

_INVITE = Body(InvitationToMake)
_RENEW = Body(CertificateAsked)
#: For the whole talk of one machine: strangers may begin one.
TALK_S = 15.0
AT_ONCE = 32
#: What a decoder raises for what strangers send; nesting without end is one of it.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_talking: set[object] = set()


async def invite(api: Api, request: web.Request) -> web.StreamResponse:
    """Lets one machine join, once. The cluster is told the hash of the secret only."""
    wanted: InvitationToMake = _INVITE.decode(request, await api.body(request))
    bundle = await _authority(api)
    at = now()
    command = InviteHost(idempotency_key(request), wanted.secret_hash, wanted.host, at + wanted.valid_s, at, wanted.by)
    applied = await api.execute(command)
    config = api.services.config
    kept = api.state.invitations.get(wanted.secret_hash)
    return api.reply(
        request,
        Invited(
            host=wanted.host,
            expires_at=kept.expires_at if kept else at + wanted.valid_s,
            cluster=config.cluster,
            masters=list(urls(api.state, config).values()),
            authority_sha256=authority_hash(bundle),
        ),
        status=201,
        version=applied.version,
    )


async def authority(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows the certificates of the cluster's authority: everybody may have them."""
    return web.Response(body=await _authority(api), content_type="application/x-pem-file")


async def _authority(api: Api) -> bytes:
    """Returns the file as it is now: it is replaced while masters run."""
    file = api.services.secrets.folder / AUTHORITY_FILE
    try:
        return await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        raise Problem("no_authority", f"this master cannot read its {AUTHORITY_FILE}: {error.strerror}") from error


async def join(api: Api, request: web.Request) -> web.StreamResponse:
    """Talks with a machine that has an invitation, through TLS inside a WebSocket."""
    websocket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, compress=False, timeout=1.0)
    if not websocket.can_prepare(request):
        raise Problem("bad_field", f"{request.path} is a WebSocket: send the headers of an upgrade")
    with _talk():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(api.services.secrets.folder / member_file(api.services.master_id))
        try:
            async with asyncio.timeout(TALK_S):
                await websocket.prepare(request)
                tunnel = Tunnel(context, websocket.send_bytes, lambda: _receive(websocket), server_side=True)
                await tunnel.handshake()
                told = msgspec.json.decode(await tunnel.read(), type=JoinRequest)
                answer = await _answer(api, told, request.remote or "")
                await tunnel.write(msgspec.json.encode(answer))
        except (TimeoutError, TunnelFailed, ConnectionError, *_UNREADABLE) as error:
            # A stranger, or it went away: it asks again if it still wants to join.
            log.debug("the talk with %s ended: %s", request.remote, error)
        finally:
            await websocket.close()
    return websocket


@contextmanager
def _talk() -> Iterator[None]:
    """One of those that may talk at once. Errors: Problem crowded."""
    if len(_talking) >= AT_ONCE:
        raise Problem("crowded", f"{AT_ONCE} machines are joining at this moment; ask again", status=503)
    talk = object()
    _talking.add(talk)
    try:
        yield
    finally:
        _talking.discard(talk)


async def join_by_tls(api: Api, request: web.Request) -> web.StreamResponse:
    """Answers a machine that has an invitation, over a connection that is secret by itself."""
    if request.scheme != "https":
        raise Problem("tls_needed", f"{request.path} is for https; who has none uses the WebSocket of the same path")
    with _talk():
        try:
            told = msgspec.json.decode(await read_body(request, MESSAGE_BYTES), type=JoinRequest)
        except _UNREADABLE as error:
            raise Problem("bad_field", f"not what a machine says that joins: {error}") from None
    answer = await _answer(api, told, request.remote or "")
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def renew_certificate(api: Api, request: web.Request) -> web.StreamResponse:
    """Makes a new certificate for the host that asks: by the one that it has, or by its token when that has ended."""
    host = api.authorisation.proven_host(request)
    if not host or request.scheme != "https":
        raise Problem("tls_needed", f"{request.path} is for hosts that joined with a string, by https")
    if host not in api.state.hosts:
        raise Problem("not_authorised", f"host {host} is not in the cluster any more")
    asked: CertificateAsked = _RENEW.decode(request, await api.body(request))
    made = await _certificate(api, host, asked.certificate_request)
    authority_now = (await _authority(api)).decode()
    return api.reply(request, CertificateMade(certificate=made, authority=authority_now))


async def _certificate(api: Api, host: str, request: str) -> str:
    """Returns a host's certificate, made aside: the loop goes on. Errors: Problem."""
    folder, cluster = api.services.secrets.folder, api.services.config.cluster

    def sign() -> str:
        return Authority.load(folder, HOSTS_FILE, HOSTS_KEY_FILE).sign_host(cluster, host, request.encode()).decode()

    try:
        return await asyncio.to_thread(sign)
    except ConfigError as error:
        raise Problem("no_authority", f"this master makes no certificates of hosts: {error}") from error
    except (ValueError, UnicodeEncodeError) as error:
        raise Problem("bad_field", f"certificate_request: {error}") from error


async def _receive(websocket: web.WebSocketResponse) -> bytes:
    message = await websocket.receive()
    return message.data if message.type is WSMsgType.BINARY else b""


async def _answer(api: Api, told: JoinRequest, address: str) -> JoinAnswer:
    """Uses the invitation; only a secret that is known gets into the log."""
    secret_hash = hash_of(told.secret)
    try:
        await api.services.barrier()
        if secret_hash not in api.state.invitations:
            return JoinAnswer(problem="the cluster knows of no such invitation; make another: depalmactl host invite")
        bundle = await _authority(api)
        host, certificate = api.state.invitations[secret_hash].host, ""
        # Made before the invitation is used: one that cannot be answered is not spent. Clusters of before make none.
        if told.certificate_request and (api.services.secrets.folder / HOSTS_KEY_FILE).exists():
            certificate = await _certificate(api, host, told.certificate_request)
        await api.execute(JoinHost(told.id, secret_hash, address, now()))
    except (Rejected, Problem) as error:
        return JoinAnswer(problem=str(error))
    except (NotLeader, OutcomeUnknown) as error:
        return JoinAnswer(problem=str(error), again=True)
    secrets = api.services.secrets
    own_token = host_token(secrets.raft_secret, host)
    return JoinAnswer(
        cluster_file=msgspec.yaml.encode(_config_for(api, host)).decode(),
        agent_token=own_token if told.certificate_request else secrets.agent_token,
        authority=bundle.decode(),
        certificate=certificate,
    )


def _config_for(api: Api, host: str) -> ClusterConfig:
    """Returns a cluster file for one agent: the masters of now, and what the file says of this host."""
    config = api.services.config
    masters = [
        MasterConfig(id=m.id, host=m.host, port=m.port, raft_port=m.raft_port, dir=f"~/.local/state/depalma/{m.id}")
        for m in known_masters(api.state, config)
    ]
    # A file names 1, 3 or 5; while masters change there may be another number. An agent hears of the others.
    some = next(count for count in (5, 3, 1) if count <= len(masters))
    hosts = tuple(each for each in config.hosts if each.name == host) or (HostConfig(name=host),)
    return ClusterConfig(cluster=config.cluster, masters=tuple(masters[:some]), hosts=hosts, settings=config.settings)


ROUTES = (
    Route("POST", "/v1/invitations", invite, Mode.WRITE, "Invite a machine to join as a host, once", body=_INVITE,
          returns=Invited, status=201),
    Route("GET", "/v1/authority", authority, Mode.LOCAL, "The certificates of the cluster's authority (PEM)",
          access=ANYBODY),
    Route("GET", "/v1/join", join, Mode.LEADER, "Join with an invitation (TLS inside a WebSocket)", access=ANYBODY),
    Route("POST", "/v1/join", join_by_tls, Mode.LEADER, "Join with an invitation, by https", access=ANYBODY),
    Route("POST", "/v1/agent/certificate", renew_certificate, Mode.LOCAL, "Renew the certificate of an agent",
          access=AGENT, body=_RENEW, returns=CertificateMade),
)  # fmt: skip

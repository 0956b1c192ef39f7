"""`depalma-agent --join STRING`: gets the cluster file and the token of a machine that has nothing yet.

Nothing is said before the other side has proven to be a master by the authority whose hash the string holds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from depalma.certificates import host_request
from depalma.errors import DepalmaError
from depalma.joining import (
    Invitation,
    JoinAnswer,
    JoinRequest,
    NotOurMaster,
    check_master,
    trusted_context,
)
from depalma.protocol import MAX_FRAME_BYTES
from depalma.tunnel import Tunnel, TunnelFailed

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
TALK_S = 15.0
_PAUSE_S = 0.3
_REQUEST = ".joining"
#: the machine's own certificate and key
OWN_FILE = "secrets/agent.pem"
CLUSTER_FILE = "cluster.yaml"


class CannotJoin(DepalmaError):
    """The cluster does not let this machine join, or could not be reached. `refused`: asking again changes nothing."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


def folder_of(invitation: Invitation) -> Path:
    """Returns where the files of a machine that joined are kept."""
    cluster = re.sub(r"[^A-Za-z0-9_-]", "_", invitation.cluster)  # it may have any name
    return Path("~/.local/state/depalma/joined").expanduser() / cluster / invitation.host


async def join(invitation: Invitation, folder: Path, *, patience_s: float = PATIENCE_S) -> Path:
    """Returns the cluster file, after having joined if that has not been done before. Errors: CannotJoin."""
    file = folder / CLUSTER_FILE
    if file.exists():
        log.info("joined before: %s", file)
        return file
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, asked = await asyncio.to_thread(host_request, invitation.host)
    request = JoinRequest(_request_id(folder / _REQUEST), invitation.secret, asked.decode())
    answer = await _ask_all(invitation, request, time.monotonic() + patience_s)
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    for name, text in (
        ("secrets/agent.token", answer.agent_token + "\n"),
        ("secrets/ca.crt", answer.authority),
        *([(OWN_FILE, answer.certificate + key.decode())] if answer.certificate else []),
        (CLUSTER_FILE, answer.cluster_file),  # the last one: when it is there, all is
    ):
        write(folder / name, text)
    (folder / _REQUEST).unlink(missing_ok=True)
    log.info("joined cluster %s as host %s: %s", invitation.cluster, invitation.host, file)
    return file


def _request_id(file: Path) -> str:
    """Returns the id of this machine's joining: the same after a crash, so that the secret is not spent for nothing."""
    if not file.exists():
        write(file, secrets.token_hex(16))
    return file.read_text()


def write(file: Path, text: str) -> None:
    """Replaces a file as a whole, mode 0600, on the disk."""
    temporary = file.with_name(f".{file.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


async def _ask_all(invitation: Invitation, request: JoinRequest, deadline: float) -> JoinAnswer:
    """Asks one master after the other until the leader answers. Errors: CannotJoin."""
    told: dict[str, str] = {}
    masters = dict.fromkeys(invitation.masters)
    async with aiohttp.ClientSession() as http:
        for number in itertools.count():
            url = list(masters)[number % len(masters)]
            try:
                async with asyncio.timeout(TALK_S):
                    answer = await _ask(http, url, invitation, request, lambda leader: masters.setdefault(leader))
                if not answer.problem:
                    return answer
                if not answer.again:
                    raise CannotJoin(answer.problem, refused=True)
                told[url] = answer.problem
            except NotOurMaster as error:
                told[url] = f"{error}; nothing was told to it"
            except (aiohttp.ClientError, OSError, TimeoutError, TunnelFailed, msgspec.MsgspecError) as error:
                told[url] = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                whole = "; ".join(f"{master}: {text}" for master, text in told.items())
                raise CannotJoin(f"no master let this machine join: {whole}", refused=False)
            await asyncio.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


async def _ask_by_tls(
    http: aiohttp.ClientSession,
    url: str,
    context: ssl.SSLContext,
    request: JoinRequest,
    named: Callable[[str], object],
) -> JoinAnswer:
    """The handshake ends with whoever is no master of that authority, before the secret is sent."""
    try:
        async with http.post(f"{url}/v1/join", data=msgspec.json.encode(request), ssl=context) as response:
            if response.status == 421 and (leader := response.headers.get("Depalma-Leader", "")):
                named(leader.rstrip("/"))
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=JoinAnswer)
    except aiohttp.ClientConnectorCertificateError as error:
        raise NotOurMaster(f"it could not prove to be a master: {error.certificate_error}") from error


async def _ask(
    http: aiohttp.ClientSession,
    url: str,
    invitation: Invitation,
    request: JoinRequest,
    named: Callable[[str], object],
) -> JoinAnswer:
    # Whoever answers this may be anybody: it is told nothing, and what it says is compared with the string's hash.
    async with http.get(f"{url}/v1/authority", ssl=False) as response:
        response.raise_for_status()
        context = trusted_context(await response.content.read(MAX_FRAME_BYTES), invitation)
    if url.startswith("https:"):
        return await _ask_by_tls(http, url, context, request, named)
    try:
        async with http.ws_connect(f"{url}/v1/join", compress=0, max_msg_size=MAX_FRAME_BYTES) as socket:

            async def receive() -> bytes:
                message = await socket.receive()
                return message.data if message.type is aiohttp.WSMsgType.BINARY else b""

            tunnel = Tunnel(context, socket.send_bytes, receive)
            check_master(await tunnel.handshake(), invitation.cluster)
            await tunnel.write(msgspec.json.encode(request))
            return msgspec.json.decode(await tunnel.read(), type=JoinAnswer)
    except aiohttp.WSServerHandshakeError as error:
        if error.headers and (leader := error.headers.get("Depalma-Leader", "")):
            named(leader.rstrip("/"))
        raise

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
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

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
    request = JoinRequest(_request_id(folder / _REQUEST), invitation.secret)
    answer = await _ask_all(invitation, request, time.monotonic() + patience_s)
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    for name, text in (
        ("secrets/agent.token", answer.agent_token + "\n"),
        ("secrets/ca.crt", answer.authority),
        (CLUSTER_FILE, answer.cluster_file),  # the last one: when it is there, all is
    ):
        _write(folder / name, text)
    (folder / _REQUEST).unlink(missing_ok=True)
    log.info("joined cluster %s as host %s: %s", invitation.cluster, invitation.host, file)
    return file


def _request_id(file: Path) -> str:
    """Returns the id of this machine's joining: the same after a crash, so that the secret is not spent for nothing."""
    if not file.exists():
        _write(file, secrets.token_hex(16))
    return file.read_text()


def _write(file: Path, text: str) -> None:
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


async def _ask(
    http: aiohttp.ClientSession,
    url: str,
    invitation: Invitation,
    request: JoinRequest,
    named: Callable[[str], object],
) -> JoinAnswer:
    async with http.get(f"{url}/v1/authority") as response:
        response.raise_for_status()
        context = trusted_context(await response.content.read(MAX_FRAME_BYTES), invitation)
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

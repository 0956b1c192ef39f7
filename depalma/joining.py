"""How a machine that has nothing yet joins: the string that it is given, and what is said through the tunnel.

The API is plain HTTP, so the talk goes through TLS of its own (tunnel.py): the machine knows the hash of the cluster's
authority from the string, and says nothing before the other side has proven to be a master by that authority.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import ssl

import msgspec
from msgspec import Struct

from depalma.certificates import member_of
from depalma.errors import ConfigError, DepalmaError

_PREFIX = "depalma-join-1."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)


class NotOurMaster(DepalmaError):
    """The other side could not prove to be a master of the cluster; nothing was told to it."""


class Invitation(Struct, frozen=True, array_like=True):
    """What the string holds. The secret works once."""

    cluster: str
    host: str
    masters: tuple[str, ...]  #: base URLs
    authority: str  #: SHA-256 of the authority's certificate, in hex
    secret: str

    def text(self) -> str:
        """Returns the string."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode()

    @classmethod
    def read(cls, text: str) -> Invitation:
        """Returns what a string holds. Errors: ConfigError, which does not repeat it."""
        text = text.strip()
        if not text.startswith(_PREFIX):
            raise ConfigError(f"--join: not a string for joining; it begins with {_PREFIX}")
        data = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(data + "=" * (-len(data) % 4), altchars=b"-_", validate=True)
            found = msgspec.msgpack.decode(raw, type=cls)
        except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            raise ConfigError("--join: the string is damaged: was all of it copied?") from None
        if not (_NAME.fullmatch(found.host) and found.masters):  # the name becomes a folder's
            raise ConfigError("--join: the string names no host, or no masters")
        return found

    def __repr__(self) -> str:
        """Leaves the secret out."""
        return f"Invitation({self.cluster!r}, {self.host!r})"


class JoinRequest(Struct, frozen=True):
    """What the machine says. `id` is its own: asked again with it, it gets the same answer."""

    id: str
    secret: str

    def __repr__(self) -> str:
        """Shows none of it."""
        return "JoinRequest()"


class JoinAnswer(Struct, frozen=True):
    """What the leader says; with a `problem` there is nothing else, and `again` says whether asking again may help."""

    cluster_file: str = ""
    agent_token: str = ""
    authority: str = ""
    problem: str = ""
    again: bool = False

    def __repr__(self) -> str:
        """Leaves the token out."""
        return f"JoinAnswer(problem={self.problem!r})"


def hash_of(secret: str) -> str:
    """Returns what the cluster keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def authority_hash(bundle: bytes) -> str:
    """Returns the hash of the newest authority of a PEM file: the first one. Errors: ValueError."""
    found = _PEM.findall(bundle)
    if not found:
        raise ValueError("no certificate")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0].decode())).hexdigest()


def trusted_context(bundle: bytes, invitation: Invitation) -> ssl.SSLContext:
    """Returns what believes in the invitation's authority alone. Errors: NotOurMaster if the bundle lacks it."""
    for pem in _PEM.findall(bundle):
        try:
            if authority_hash(pem) == invitation.authority:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.check_hostname = False  # masters have ids, not DNS names (check_master)
                context.load_verify_locations(cadata=pem.decode())
                return context
        except (ValueError, ssl.SSLError):
            continue
    raise NotOurMaster("it shows another authority than the string names")


def check_master(certificate: object, cluster: str) -> None:
    """Returns if a verified certificate is a master's of the cluster. Errors: NotOurMaster."""
    names = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1 or member_of(uris[0], cluster) is None:
        raise NotOurMaster(f"its certificate is for {', '.join(uris) or 'nobody'}, not for a master of {cluster}")

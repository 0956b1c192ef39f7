"""How a machine that has nothing yet joins: the string that it is given, and what is said through the tunnel.

The machine knows the hash of the cluster's authority from the string, and says nothing before the other side has proven
to be a master by that authority: by the TLS of the API, or where that is plain HTTP by TLS of its own (tunnel.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import ssl

import msgspec
from msgspec import Struct

from depalma.certificates import member_of
from depalma.codetree import sign
from depalma.config import Secrets
from depalma.errors import ConfigError, DepalmaError
from depalma.trust import MastersOnly

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
    #: for a certificate of its own, whose key stays where it is (PEM); without it the machine gets the token of all
    certificate_request: str = ""

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
    certificate: str = ""

    def __repr__(self) -> str:
        """Leaves the token out."""
        return f"JoinAnswer(problem={self.problem!r})"


class CertificateAsked(Struct, frozen=True):
    """What an agent sends to have its certificate renewed; which host it is its connection says."""

    certificate_request: str


class CertificateMade(Struct, frozen=True):
    """A host's new certificate, and the authorities of the masters as they are now (PEM)."""

    certificate: str
    authority: str


def host_token(raft_secret: bytes, host: str) -> str:
    """Returns the token of one host, good for it alone. Masters derive it, so that nothing is to be kept."""
    return hmac.new(raft_secret, f"depalma-host\0{host}".encode(), hashlib.sha256).hexdigest()


def is_signed(secrets: Secrets, host: str, index: int, digest: str, signature: str) -> bool:
    """Returns whether a host has signed for a tree, by its own token or by the one of all."""
    keys = (secrets.agent_token, host_token(secrets.raft_secret, host))
    return any(hmac.compare_digest(sign(key, host, index, digest), signature) for key in keys)


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
                context = MastersOnly(ssl.PROTOCOL_TLS_CLIENT)
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

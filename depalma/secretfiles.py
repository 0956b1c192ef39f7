"""The folder of secrets of a cluster: what is made, renewed and replaced there.

Every file is written as a whole, mode 0600, and appears by one rename, so that a running master reads all or nothing.
What exists is never overwritten, except by the functions whose name says so.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from depalma import certificates
from depalma.certificates import (
    AUTHORITY_FILE,
    AUTHORITY_KEY_FILE,
    AUTHORITY_WANTS_TLS,
    HOSTS_FILE,
    HOSTS_KEY_FILE,
    Authority,
    member_file,
)
from depalma.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

_NO_ADDRESSES: Mapping[str, str] = MappingProxyType({})
TOKEN_FILES = ("token", "agent.token", "raft.secret")


class Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened to one file."""

    file: str
    action: str  #: made, kept, renewed, replaced
    expires_at: float | None = None  #: of a certificate; seconds since 1970
    problem: str = ""  #: why masters will not take a certificate that was kept


def prepare(
    folder: Path,
    cluster: str,
    master_ids: Iterable[str],
    *,
    renew_within_days: float | None = None,
    addresses: Mapping[str, str] = _NO_ADDRESSES,
    api_tls: bool = False,
) -> list[Step]:
    """Makes whatever is missing: tokens, the authority, a certificate for each master, for its address too.

    `api_tls`: a new authority says that the API of its cluster speaks TLS.
    With `renew_within_days`, certificates that end within that time are renewed, and those that masters would refuse.
    Errors: ConfigError, if a certificate has to be made and the authority's key is not here.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise ConfigError(f"{folder}: others may look into it; run: chmod 700 {folder}")
    steps = [_prepare_token(folder / name) for name in TOKEN_FILES]
    steps += _prepare_authority(folder, cluster, api_tls=api_tls)
    steps += _prepare_hosts(folder, cluster)
    for master_id in master_ids:
        steps.append(_prepare_member(folder, cluster, master_id, renew_within_days, addresses.get(master_id, "")))
    return steps


def renew(
    folder: Path, cluster: str, master_ids: Iterable[str], addresses: Mapping[str, str] = _NO_ADDRESSES
) -> list[Step]:
    """Gives every master a new certificate and key. Errors: ConfigError."""
    authority = _authority(folder)
    return [_issue(folder, authority, cluster, name, addresses.get(name, "")) for name in master_ids]


def add_new_authority(folder: Path, cluster: str) -> list[Step]:
    """Makes another authority; the certificates of the one before stay good until `drop_old_authorities`.

    Errors: ConfigError, if there is none yet, or if there are two already.
    """
    known = certificates.load_certificates(folder / AUTHORITY_FILE)
    if len(known) > 1:
        raise ConfigError(f"{folder / AUTHORITY_FILE}: holds two authorities already; first drop the old one")
    authority = Authority.make(cluster)
    # The key first: without its certificate it makes nothing, while a certificate without its key would stay for ever.
    _replace(folder / AUTHORITY_KEY_FILE, authority.key_pem())
    bundle = _mark(folder) + authority.certificate_pem() + certificates.certificate_pem(known[0])
    _replace(folder / AUTHORITY_FILE, bundle)
    return [
        Step(file=AUTHORITY_KEY_FILE, action="replaced"),
        Step(file=AUTHORITY_FILE, action="replaced", expires_at=_end(authority.certificate)),
    ]


def drop_old_authorities(folder: Path, cluster: str, master_ids: Iterable[str]) -> list[Step]:
    """Believes only in the authority whose key is here. Errors: ConfigError, if a master still needs an older one."""
    authority = _authority(folder)
    for master_id in master_ids:
        file = folder / member_file(master_id)
        (certificate, *_) = certificates.load_certificates(file)
        if problem := certificates.problem_of(certificate, [authority.certificate], cluster, master_id):
            raise ConfigError(f"{file}: {problem}; renew the certificates first")
    _replace(folder / AUTHORITY_FILE, _mark(folder) + authority.certificate_pem())
    return [Step(file=AUTHORITY_FILE, action="replaced", expires_at=_end(authority.certificate))]


def sync(folder: Path) -> None:
    """Returns when everything in the folder is on the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prepare_token(file: Path) -> Step:
    if file.exists():
        return Step(file=file.name, action="kept")
    _create(file, secrets.token_urlsafe(32).encode() + b"\n")
    return Step(file=file.name, action="made")


def _mark(folder: Path) -> bytes:
    """Returns what the authority's file says of the API: a new authority says the same."""
    return AUTHORITY_WANTS_TLS if AUTHORITY_WANTS_TLS in (folder / AUTHORITY_FILE).read_bytes() else b""


def _prepare_authority(folder: Path, cluster: str, *, api_tls: bool) -> list[Step]:
    file, key_file = folder / AUTHORITY_FILE, folder / AUTHORITY_KEY_FILE
    if not file.exists():
        if key_file.exists():
            raise ConfigError(
                f"{file}: is missing, though its key {key_file} is there; bring it back, or remove the key"
            )
        authority = Authority.make(cluster)
        _create(key_file, authority.key_pem())
        _create(file, (AUTHORITY_WANTS_TLS if api_tls else b"") + authority.certificate_pem())
        action = "made"
    else:
        action = "kept"
    end = _end(certificates.load_certificates(file)[0])
    steps = [Step(file=AUTHORITY_FILE, action=action, expires_at=end)]
    return [*steps, Step(file=AUTHORITY_KEY_FILE, action=action)] if key_file.exists() else steps


def _prepare_hosts(folder: Path, cluster: str) -> list[Step]:
    """The authority for hosts. Masters use it, so its key must be with its certificate."""
    file, key_file = folder / HOSTS_FILE, folder / HOSTS_KEY_FILE
    action = "kept" if file.exists() else "made"
    if action == "made":
        authority = Authority.make(cluster)
        _replace(key_file, authority.key_pem())  # a key without its certificate has made nothing yet
        _create(file, authority.certificate_pem())
    end = _end(certificates.load_certificates(file)[0])
    steps = [Step(file=HOSTS_FILE, action=action, expires_at=end)]
    return [*steps, Step(file=HOSTS_KEY_FILE, action=action)] if key_file.exists() else steps


def _prepare_member(folder: Path, cluster: str, master_id: str, renew_within_days: float | None, address: str) -> Step:
    file = folder / member_file(master_id)
    if not file.exists():
        return _issue(folder, _authority(folder), cluster, master_id, address)
    (certificate, *_) = certificates.load_certificates(file)
    authorities = certificates.load_certificates(folder / AUTHORITY_FILE)
    problem = certificates.problem_of(certificate, authorities, cluster, master_id)
    if renew_within_days is not None:
        ends = certificate.not_valid_after_utc
        if problem or ends < datetime.now(UTC) + timedelta(days=renew_within_days):
            return _issue(folder, _authority(folder), cluster, master_id, address)
    return Step(file=file.name, action="kept", expires_at=_end(certificate), problem=problem)


def _issue(folder: Path, authority: Authority, cluster: str, master_id: str, address: str) -> Step:
    file = folder / member_file(master_id)
    action = "renewed" if file.exists() else "made"
    _replace(file, authority.issue(cluster, master_id, address=address))
    return Step(file=file.name, action=action, expires_at=_end(certificates.load_certificates(file)[0]))


def _authority(folder: Path) -> Authority:
    if not (folder / AUTHORITY_KEY_FILE).exists():
        raise ConfigError(f"{folder / AUTHORITY_KEY_FILE}: is missing, and without it no certificate can be made")
    return Authority.load(folder)


def _end(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _replace(file: Path, data: bytes) -> None:
    temporary = _temporary(file, data)
    try:
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(file: Path, data: bytes) -> None:
    """Raises ConfigError if somebody else was faster: what exists is not overwritten."""
    temporary = _temporary(file, data)
    try:
        os.link(temporary, file)
    except FileExistsError as error:
        raise ConfigError(f"{file}: somebody else is making it at this moment; try again") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(file: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)  # before it takes the name: a power cut leaves the old file or the new one, no empty one
    return Path(name)

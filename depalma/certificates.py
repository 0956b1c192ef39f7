"""The cluster's own certificate authority, and the certificates by which its masters know each other.

A member's certificate names it in one URI, `depalma://CLUSTER/master/ID` (docs/adr/0007-mutual-tls-between-masters.md).
`cryptography` is used here only, and only where something is made or described: a running master needs none of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from msgspec import Struct

from depalma.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

#: certificates of the authority, or of two while it is being replaced; everybody may have it
AUTHORITY_FILE = "ca.crt"
#: a line before the authority's certificate: whoever has the file speaks TLS on the API unless the cluster file says
#: otherwise. Only clusters that begin with it have it, so that those of before go on as they were.
AUTHORITY_WANTS_TLS = b"# the API of this cluster speaks TLS\n"
#: its key: makes certificates, and is needed by no running master
AUTHORITY_KEY_FILE = "ca.key"
#: another authority with its key, for hosts only: masters have the key, and it makes nothing that masters or clients
#: believe (docs/adr/0011)
HOSTS_FILE, HOSTS_KEY_FILE = "hosts.crt", "hosts.key"
AUTHORITY_DAYS = 20 * 365.0
MEMBER_DAYS = 2 * 365.0
HOST_DAYS = 90.0
#: a certificate is valid from a little before it is made, for clocks that are behind
BACKDATED = timedelta(hours=1)


class CertificateFiles(Struct, frozen=True, kw_only=True):
    """What one member of the cluster needs to prove itself and to know the others."""

    cluster: str
    authority: Path  #: certificates of all authorities that are believed
    member: Path  #: its own certificate and key, in one file, so that both are replaced in one step
    hosts: Path | None = None  #: the authority of the certificates of agents, if there is one

    @classmethod
    def of(cls, folder: Path, cluster: str, member_id: str) -> CertificateFiles:
        """Returns the files of a member in the cluster's folder of secrets."""
        return cls(
            cluster=cluster,
            authority=folder / AUTHORITY_FILE,
            member=folder / member_file(member_id),
            hosts=folder / HOSTS_FILE,
        )


def member_file(member_id: str) -> str:
    """Returns the name of a master's file in the folder of secrets."""
    return f"master-{member_id}.pem"


def member_uri(cluster: str, member_id: str) -> str:
    """Returns the name that the certificate of a master carries."""
    return f"depalma://{quote(cluster, safe='')}/master/{quote(member_id, safe='')}"


def host_uri(cluster: str, host: str) -> str:
    """Returns the name that the certificate of a host carries."""
    return f"depalma://{quote(cluster, safe='')}/host/{quote(host, safe='')}"


def member_of(uri: str, cluster: str) -> str | None:
    """Returns which master of the cluster the name means; None if it is another cluster's, or no master's."""
    member_id = unquote(uri.removeprefix(member_uri(cluster, "")))
    return member_id if member_id and uri == member_uri(cluster, member_id) else None


class Authority:
    """An authority with its key: makes certificates."""

    def __init__(self, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, cluster: str, *, now: datetime | None = None, days: float = AUTHORITY_DAYS) -> Authority:
        """Returns a new one. Its subject is unique, so that two of one cluster can stand in one bundle."""
        from cryptography import x509

        key = _new_key()
        common_name = f"Depalma authority {x509.random_serial_number():040x}"
        builder = _begin(key.public_key(), common_name, cluster, now)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        begin = now or datetime.now(UTC)
        builder = builder.not_valid_after(begin + timedelta(days=days)).issuer_name(_name(common_name, cluster))
        return cls(_sign(builder, key, key.public_key()), key)

    @classmethod
    def load(cls, folder: Path, name: str = AUTHORITY_FILE, key_name: str = AUTHORITY_KEY_FILE) -> Authority:
        """Returns the one whose key is in the folder of secrets. Errors: ConfigError."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        file = folder / key_name
        try:
            key = load_pem_private_key(_read(file), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{file}: is not a key: {error}") from error
        for certificate in load_certificates(folder / name):
            if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
                return cls(certificate, key)
        raise ConfigError(f"{file}: belongs to none of the certificates in {folder / name}")

    def certificate_pem(self) -> bytes:
        """Returns what goes into `ca.crt`."""
        return certificate_pem(self.certificate)

    def key_pem(self) -> bytes:
        """Returns what goes into `ca.key`."""
        return _key_pem(self._key)

    def issue(
        self,
        cluster: str,
        member_id: str,
        *,
        address: str = "",
        now: datetime | None = None,
        days: float = MEMBER_DAYS,
    ) -> bytes:
        """Returns certificate and new key of a member, good for both ends of a connection, as PEM.

        It is valid for `days`, but no longer than the authority itself. Depalma itself goes by the member's name; other
        programs that ask the API (Prometheus, curl) want the address there, which may be a name or a number.
        """
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = _new_key()
        both_ends = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        uri, names = member_uri(cluster, member_id), _addresses(address)
        made = self._certify(key.public_key(), f"master {member_id}", cluster, uri, names, both_ends, now, days)
        return certificate_pem(made) + _key_pem(key)

    def sign_host(
        self,
        cluster: str,
        host: str,
        request: bytes = b"",
        *,
        now: datetime | None = None,
        days: float = HOST_DAYS,
    ) -> bytes:
        """Returns the certificate of an agent, good to call masters and for nothing else, as PEM.

        Of `request` (host_request) only the key counts: what the certificate says we decide. Without one there is a new
        key in the answer. Errors: ValueError, if the request is none, or was not made with its key.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        made_here = None if request else _new_key()
        public = made_here.public_key() if made_here else None
        if public is None:
            asked = x509.load_pem_x509_csr(request)
            found = asked.public_key()
            if not (isinstance(found, ec.EllipticCurvePublicKey) and isinstance(found.curve, ec.SECP256R1)):
                raise ValueError("the key is none of P-256")
            if not asked.is_signature_valid:
                raise ValueError("it was not made with its key")
            public = found
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = self._certify(public, f"host {host}", cluster, host_uri(cluster, host), [], usage, now, days)
        return certificate_pem(certificate) + (_key_pem(made_here) if made_here else b"")

    def _certify(
        self,
        public: EllipticCurvePublicKey,
        common_name: str,
        cluster: str,
        uri: str,
        names: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
        now: datetime | None,
        days: float,
    ) -> x509.Certificate:
        from cryptography import x509

        builder = _begin(public, common_name, cluster, now).issuer_name(self.certificate.subject)
        end = (now or datetime.now(UTC)) + timedelta(days=days)
        builder = builder.not_valid_after(min(end, self.certificate.not_valid_after_utc))
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(usages), False),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *names]), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return _sign(builder, self._key, self._key.public_key())


def host_request(host: str) -> tuple[bytes, bytes]:
    """Returns a new key of a host, and what is sent to have a certificate made for it, both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    key = _new_key()
    asked = x509.CertificateSigningRequestBuilder().subject_name(_name(f"host {host}", "")).sign(key, hashes.SHA256())
    return _key_pem(key), asked.public_bytes(Encoding.PEM)


def load_certificates(file: Path) -> list[x509.Certificate]:
    """Returns the certificates of a PEM file, at least one; keys beside them are passed over. Errors: ConfigError."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_read(file))
    except ValueError as error:
        raise ConfigError(f"{file}: holds no certificate: {error}") from error


def was_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Returns whether the authority has signed the certificate."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def problem_of(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    cluster: str,
    member_id: str,
    *,
    now: datetime | None = None,
) -> str:
    """Returns why the other masters would not take this for the member's certificate; empty if they would."""
    if not any(was_issued_by(certificate, authority) for authority in authorities):
        return "was made by no authority that is believed"
    wanted = member_uri(cluster, member_id)
    if (uris := uris_of(certificate)) != [wanted]:
        return f"is for {', '.join(uris) or 'nobody'}, not for {wanted}"
    if (now or datetime.now(UTC)) > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def uris_of(certificate: x509.Certificate) -> list[str]:
    """Returns the names in a certificate that are URIs."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Returns the certificate as text."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _addresses(address: str) -> list[x509.GeneralName]:
    """Returns the address as names of a certificate; those of this machine always, as tools are run there."""
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for each in dict.fromkeys([address, "localhost", "127.0.0.1"] if address else []):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(each)))
        except ValueError:
            if each.isascii():
                found.append(x509.DNSName(each))
    return found


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str, cluster: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]
    if cluster:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster[:64]))
    return x509.Name(attributes)


def _begin(
    public: EllipticCurvePublicKey, common_name: str, cluster: str, now: datetime | None
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name, cluster))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before((now or datetime.now(UTC)) - BACKDATED)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey, issuer: EllipticCurvePublicKey
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())

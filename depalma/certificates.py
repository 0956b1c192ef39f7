"""The cluster's own certificate authority, and the certificates by which its masters know each other.

A member's certificate names it in one URI, `depalma://CLUSTER/master/ID` (docs/adr/0007-mutual-tls-between-masters.md).
`cryptography` is used here only, and only where something is made or described: a running master needs none of it.
"""

from __future__ import annotations

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
#: its key: makes certificates, and is needed by no running master
AUTHORITY_KEY_FILE = "ca.key"
AUTHORITY_DAYS = 20 * 365.0
MEMBER_DAYS = 2 * 365.0
#: a certificate is valid from a little before it is made, for clocks that are behind
BACKDATED = timedelta(hours=1)


class CertificateFiles(Struct, frozen=True, kw_only=True):
    """What one member of the cluster needs to prove itself and to know the others."""

    cluster: str
    authority: Path  #: certificates of all authorities that are believed
    member: Path  #: its own certificate and key, in one file, so that both are replaced in one step

    @classmethod
    def of(cls, folder: Path, cluster: str, member_id: str) -> CertificateFiles:
        """Returns the files of a member in the cluster's folder of secrets."""
        return cls(cluster=cluster, authority=folder / AUTHORITY_FILE, member=folder / member_file(member_id))


def member_file(member_id: str) -> str:
    """Returns the name of a master's file in the folder of secrets."""
    return f"master-{member_id}.pem"


def member_uri(cluster: str, member_id: str) -> str:
    """Returns the name that the certificate of a master carries."""
    return f"depalma://{quote(cluster, safe='')}/master/{quote(member_id, safe='')}"


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
        builder = _begin(key, common_name, cluster, now).add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        begin = now or datetime.now(UTC)
        builder = builder.not_valid_after(begin + timedelta(days=days)).issuer_name(_name(common_name, cluster))
        return cls(_sign(builder, key, key.public_key()), key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Returns the one whose key is in the folder of secrets. Errors: ConfigError."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        file = folder / AUTHORITY_KEY_FILE
        try:
            key = load_pem_private_key(_read(file), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{file}: is not a key: {error}") from error
        for certificate in load_certificates(folder / AUTHORITY_FILE):
            if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
                return cls(certificate, key)
        raise ConfigError(f"{file}: belongs to none of the certificates in {folder / AUTHORITY_FILE}")

    def certificate_pem(self) -> bytes:
        """Returns what goes into `ca.crt`."""
        return certificate_pem(self.certificate)

    def key_pem(self) -> bytes:
        """Returns what goes into `ca.key`."""
        return _key_pem(self._key)

    def issue(self, cluster: str, member_id: str, *, now: datetime | None = None, days: float = MEMBER_DAYS) -> bytes:
        """Returns certificate and new key of a member, good for both ends of a connection, as PEM.

        It is valid for `days`, but no longer than the authority itself.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = _new_key()
        builder = _begin(key, f"master {member_id}", cluster, now).issuer_name(self.certificate.subject)
        end = (now or datetime.now(UTC)) + timedelta(days=days)
        builder = builder.not_valid_after(min(end, self.certificate.not_valid_after_utc))
        uri = x509.UniformResourceIdentifier(member_uri(cluster, member_id))
        both_ends = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(both_ends), False),
            (x509.SubjectAlternativeName([uri]), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return certificate_pem(_sign(builder, self._key, self._key.public_key())) + _key_pem(key)


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
    key: EllipticCurvePrivateKey, common_name: str, cluster: str, now: datetime | None
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name, cluster))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before((now or datetime.now(UTC)) - BACKDATED)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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

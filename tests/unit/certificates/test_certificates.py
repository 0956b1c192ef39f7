"""The authority and what it makes: names, ends, signatures."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from depalma import certificates
from depalma.certificates import AUTHORITY_FILE, AUTHORITY_KEY_FILE, Authority, member_of, member_uri
from depalma.errors import ConfigError

NAMES = ["m1", "M1", "a.b", "a_b-c", "x" * 63]
CLUSTERS = ["lab", "", "two words", "a/master/b", "Köln", "%2F"]


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_as_it_was_written_and_by_its_own_cluster_only(cluster: str, name: str) -> None:
    uri = member_uri(cluster, name)

    assert uri.isascii()
    assert member_of(uri, cluster) == name
    assert [member_of(uri, other) for other in CLUSTERS if other != cluster] == [None] * (len(CLUSTERS) - 1)


@pytest.mark.parametrize(
    "uri", ["", "depalma://lab/master/", "depalma://lab/agent/m1", "depalma://lab/master/m%31", "https://lab/master/m1"]
)
def test_other_names_are_no_master(uri: str) -> None:
    assert member_of(uri, "lab") is None


def member_certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_a_member_certificate_is_for_both_ends_and_two_years_and_nothing_else() -> None:
    authority = Authority.make("lab")

    made = member_certificate(authority.issue("lab", "m1"))

    assert certificates.problem_of(made, [authority.certificate], "lab", "m1") == ""
    assert certificates.uris_of(made) == ["depalma://lab/master/m1"]
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    lasts = made.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=729) < lasts < timedelta(days=731)
    assert made.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=50)


def test_a_member_certificate_ends_with_its_authority() -> None:
    authority = Authority.make("lab", days=10)

    made = member_certificate(authority.issue("lab", "m1"))

    assert made.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_every_certificate_has_a_key_of_its_own() -> None:
    authority = Authority.make("lab")

    first, second = (member_certificate(authority.issue("lab", "m1")) for _ in range(2))

    assert first.public_key() != second.public_key()
    assert first.serial_number != second.serial_number


def test_what_other_masters_would_refuse_is_said() -> None:
    authority, other = Authority.make("lab"), Authority.make("lab")
    now = datetime.now(UTC)
    good = member_certificate(authority.issue("lab", "m1"))
    old = member_certificate(authority.issue("lab", "m1", now=now - timedelta(days=3), days=1))
    foreign = trustme.CA().issue_cert("m1.example").cert_chain_pems[0].bytes()

    def problem(certificate: x509.Certificate, by: Authority = authority, cluster: str = "lab", who: str = "m1") -> str:
        return certificates.problem_of(certificate, [by.certificate], cluster, who)

    assert problem(good) == ""
    assert problem(good, by=other) == "was made by no authority that is believed"
    assert problem(good, who="m2") == "is for depalma://lab/master/m1, not for depalma://lab/master/m2"
    assert problem(good, cluster="other").startswith("is for depalma://lab/master/m1, not for")
    assert problem(old) == f"expired on {now - timedelta(days=2):%Y-%m-%d}"
    assert "no authority" in problem(member_certificate(foreign))
    assert certificates.problem_of(good, [other.certificate, authority.certificate], "lab", "m1") == ""


def test_an_authority_is_loaded_with_its_key_also_out_of_two(tmp_path: Path) -> None:
    old, new = Authority.make("lab"), Authority.make("lab")
    (tmp_path / AUTHORITY_FILE).write_bytes(new.certificate_pem() + old.certificate_pem())
    (tmp_path / AUTHORITY_KEY_FILE).write_bytes(old.key_pem())

    loaded = Authority.load(tmp_path)

    assert loaded.certificate == old.certificate
    made = member_certificate(loaded.issue("lab", "m1"))
    assert certificates.was_issued_by(made, old.certificate)
    assert not certificates.was_issued_by(made, new.certificate)


def test_a_key_of_another_authority_or_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / AUTHORITY_FILE).write_bytes(Authority.make("lab").certificate_pem())
    with pytest.raises(ConfigError, match=r"ca\.key: cannot be read"):
        Authority.load(tmp_path)
    (tmp_path / AUTHORITY_KEY_FILE).write_bytes(Authority.make("lab").key_pem())
    with pytest.raises(ConfigError, match=r"ca\.key: belongs to none of the certificates"):
        Authority.load(tmp_path)
    (tmp_path / AUTHORITY_KEY_FILE).write_text("hunter2")
    with pytest.raises(ConfigError, match=r"ca\.key: is not a key") as caught:
        Authority.load(tmp_path)
    assert "hunter2" not in str(caught.value)
    (tmp_path / AUTHORITY_FILE).write_text("nothing")
    with pytest.raises(ConfigError, match=r"ca\.crt: holds no certificate"):
        certificates.load_certificates(tmp_path / AUTHORITY_FILE)


def test_openssl_agrees_in_its_strict_mode(tmp_path: Path) -> None:
    authority = Authority.make("x" * 100)
    (tmp_path / "m1.pem").write_bytes(authority.issue("x" * 100, "y" * 63))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority.certificate_pem().decode())
    context.load_cert_chain(tmp_path / "m1.pem")

    assert context.get_ca_certs()[0]["subject"][1] == (("organizationName", "x" * 64),)

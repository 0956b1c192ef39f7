"""What the API shows as its certificate: only what its clients believe, also while files are replaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from depalma.api.listener import ServerKeys
from depalma.certificates import Authority, CertificateFiles
from depalma.errors import ConfigError
from depalma.testing.certificates import CLUSTER, throwaway_secrets
from depalma.trust import Trust

LONG_AGO = datetime.now(UTC) - timedelta(days=30)


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return CertificateFiles.of(throwaway_secrets(tmp_path / "secrets", ["m1"]), CLUSTER, "m1")


def put(file: Path, data: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(0o600)
    new.rename(file)


@pytest.mark.parametrize("wrong", ["another cluster's", "a host's", "half"])
def test_a_certificate_that_no_client_believes_is_not_shown(files: CertificateFiles, wrong: str) -> None:
    keys, good = ServerKeys(files, Trust(files.authority)), files.member.read_bytes()
    shown = keys.context
    put(
        files.member,
        {
            "another cluster's": Authority.make(CLUSTER).issue(CLUSTER, "m1"),
            "a host's": Authority.load(files.authority.parent).sign_host(CLUSTER, "h1"),
            "half": good[: len(good) // 2],
        }[wrong],
    )
    with pytest.raises(ConfigError, match=str(files.member)):
        keys._follow()
    assert keys.context is shown
    put(files.member, good)
    keys._follow()
    assert keys.context is not shown


def test_one_of_a_new_authority_is_shown_as_soon_as_that_is_known(files: CertificateFiles) -> None:
    keys, new = ServerKeys(files, Trust(files.authority)), Authority.make(CLUSTER)
    shown = keys.context
    put(files.member, new.issue(CLUSTER, "m1"))
    with pytest.raises(ConfigError):
        keys._follow()
    put(files.authority, new.certificate_pem() + files.authority.read_bytes())
    keys._follow()
    assert keys.context is not shown


def test_one_that_has_expired_is_no_reason_not_to_start(files: CertificateFiles) -> None:
    put(files.member, Authority.load(files.authority.parent).issue(CLUSTER, "m1", now=LONG_AGO, days=1))
    ServerKeys(files, Trust(files.authority))

"""The folder of secrets: made complete, private and random; kept, renewed and replaced as told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from depalma import certificates, secretfiles
from depalma.certificates import AUTHORITY_FILE, AUTHORITY_KEY_FILE, HOSTS_FILE, HOSTS_KEY_FILE, Authority, member_file
from depalma.errors import ConfigError

IDS = ("m1", "m2", "m3")
MEMBERS = tuple(member_file(name) for name in IDS)
ALL = {"token", "agent.token", "raft.secret", AUTHORITY_FILE, AUTHORITY_KEY_FILE, HOSTS_FILE, HOSTS_KEY_FILE, *MEMBERS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secretfiles.prepare(tmp_path / "secrets", "lab", IDS)
    return tmp_path / "secrets"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def problems(folder: Path) -> list[str]:
    """Returns what the masters would say of each other's certificates."""
    authorities = certificates.load_certificates(folder / AUTHORITY_FILE)
    return [
        certificates.problem_of(certificates.load_certificates(folder / member_file(name))[0], authorities, "lab", name)
        for name in IDS
    ]


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    after = contents(folder)
    assert after.keys() == before.keys()
    return {name for name in after if after[name] != before[name]}


def test_all_is_made_private_different_and_good(folder: Path) -> None:
    assert contents(folder).keys() == ALL
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert len(set(contents(folder).values())) == len(ALL)
    assert problems(folder) == [""] * 3
    secretfiles.sync(folder)


def test_a_second_time_everything_is_kept_and_what_is_missing_is_made(folder: Path) -> None:
    before = contents(folder)
    assert {step.action for step in secretfiles.prepare(folder, "lab", IDS)} == {"kept"}
    assert changed(before, folder) == set()
    (folder / MEMBERS[1]).unlink()
    (folder / "token").unlink()

    steps = secretfiles.prepare(folder, "lab", IDS)

    assert {step.file for step in steps if step.action == "made"} == {MEMBERS[1], "token"}
    assert changed(before, folder) == {MEMBERS[1], "token"}


def test_renewing_touches_the_members_only(folder: Path) -> None:
    before = contents(folder)
    steps = secretfiles.renew(folder, "lab", IDS)
    assert [(step.file, step.action) for step in steps] == [(name, "renewed") for name in MEMBERS]
    assert changed(before, folder) == set(MEMBERS)
    assert problems(folder) == [""] * 3


def test_certificates_near_their_end_and_bad_ones_are_renewed_where_that_is_wanted(folder: Path) -> None:
    authority = Authority.load(folder)
    (folder / MEMBERS[0]).write_bytes(authority.issue("lab", "m1", days=20))
    (folder / MEMBERS[1]).write_bytes(authority.issue("other", "m2"))
    told = secretfiles.prepare(folder, "lab", IDS)
    assert [step.problem for step in told if step.file in MEMBERS] == [
        "", "is for depalma://other/master/m2, not for depalma://lab/master/m2", "",
    ]  # fmt: skip

    steps = secretfiles.prepare(folder, "lab", IDS, renew_within_days=30)

    assert [step.action for step in steps if step.file in MEMBERS] == ["renewed", "renewed", "kept"]
    assert problems(folder) == [""] * 3


def test_an_authority_is_replaced_in_three_steps_each_of_which_all_masters_can_stay_at(folder: Path) -> None:
    before = contents(folder)
    secretfiles.add_new_authority(folder, "lab")
    assert changed(before, folder) == {AUTHORITY_FILE, AUTHORITY_KEY_FILE}
    assert len(certificates.load_certificates(folder / AUTHORITY_FILE)) == 2
    assert problems(folder) == [""] * 3  # by the old one, still believed

    with pytest.raises(ConfigError, match="two authorities already"):
        secretfiles.add_new_authority(folder, "lab")
    with pytest.raises(ConfigError, match=r"master-m1\.pem: .*renew the certificates first"):
        secretfiles.drop_old_authorities(folder, "lab", IDS)

    secretfiles.renew(folder, "lab", IDS)
    assert problems(folder) == [""] * 3
    secretfiles.drop_old_authorities(folder, "lab", IDS)
    assert problems(folder) == [""] * 3
    assert before[AUTHORITY_FILE] not in contents(folder)[AUTHORITY_FILE]
    assert len(certificates.load_certificates(folder / AUTHORITY_FILE)) == 1


def test_without_the_authoritys_key_nothing_is_made_in_its_name(folder: Path) -> None:
    (folder / AUTHORITY_KEY_FILE).unlink()
    assert {step.action for step in secretfiles.prepare(folder, "lab", IDS)} == {"kept"}
    with pytest.raises(ConfigError, match=r"ca\.key: is missing, and without it no certificate can be made"):
        secretfiles.renew(folder, "lab", IDS)
    with pytest.raises(ConfigError, match=r"ca\.key: is missing"):
        secretfiles.prepare(folder, "lab", [*IDS, "m4"])


def test_an_authority_without_its_certificate_is_not_replaced_by_another(folder: Path) -> None:
    (folder / AUTHORITY_FILE).unlink()
    with pytest.raises(ConfigError, match=r"ca\.crt: is missing, though its key"):
        secretfiles.prepare(folder, "lab", IDS)


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets").chmod(0o755)
    with pytest.raises(ConfigError, match=r"secrets: others may look into it; run: chmod 700"):
        secretfiles.prepare(tmp_path / "secrets", "lab", IDS)
    assert list((tmp_path / "secrets").iterdir()) == []


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would else leave an empty certificate, or an authority without a key."""
    synced: set[int] = set()
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checked_replace(source: Path, target: Path) -> None:
        assert source.stat().st_ino in synced, target
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", checked_replace)
    secretfiles.renew(folder, "lab", IDS)
    secretfiles.add_new_authority(folder, "lab")

"""Secrets of a cluster that nobody will miss: for tests with real replicas and real masters."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable
from pathlib import Path

from depalma import secretfiles
from depalma.certificates import AUTHORITY_FILE, HOSTS_FILE, member_file

CLUSTER = "test"


def throwaway_secrets(folder: Path, member_ids: Iterable[str], *, cluster: str = CLUSTER) -> Path:
    """Makes whatever is missing of a cluster's secrets and returns their folder.

    Several processes may ask at once. When nothing is missing, this costs next to nothing.
    """
    ids = list(member_ids)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [*secretfiles.TOKEN_FILES, AUTHORITY_FILE, HOSTS_FILE, *(member_file(member_id) for member_id in ids)]
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((folder / name).exists() for name in names):
            secretfiles.prepare(folder, cluster, ids)
    return folder

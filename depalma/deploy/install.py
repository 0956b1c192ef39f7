"""Runs on a machine under its own Python, standard library only: makes the environment of one release.

What stands on stdin behind this program is a tar with the wheels. Arguments: the environment's folder, `index` (take
what is needed from the machine's package index) or `wheels` (from the tar alone). The environment is used only once
its file `complete` is there, so that a broken connection leaves nothing that looks good.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

KEPT_S = 86_400.0  #: an environment that no daemon uses stays for a day


def main() -> int:
    """Returns the exit code; the last lines of stderr say what went wrong."""
    target, way = Path(sys.argv[1]).expanduser(), sys.argv[2]
    os.umask(0o077)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if works(target):
            return 0
        for left in (target, *target.parent.glob(".wheels-*")):  # of one that was cut off
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheels-") as wheels:
            unpack(Path(wheels))
            # Without pip: Debian's Python has none for environments unless python3-venv was installed.
            venv.create(target, with_pip=False, symlinks=True)
            code = install(target, Path(wheels), way)
        if code == 0:
            (target / "complete").touch()
            prune(target)
        else:
            shutil.rmtree(target, ignore_errors=True)
        return code


def works(target: Path) -> bool:
    """Returns whether somebody else has made it meanwhile."""
    return (target / "complete").exists() and subprocess.call([target / "bin/python", "-c", ""]) == 0


def unpack(folder: Path) -> None:
    """Takes plain files only; they came over ssh from whoever may run anything here."""
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isfile() else None
            if source is not None:
                (folder / Path(member.name).name).write_bytes(source.read())


def install(target: Path, wheels: Path, way: str) -> int:
    """Runs pip, out of its own wheel, and looks whether the result can be imported."""
    (pip,) = wheels.glob("pip-*.whl")
    (own,) = wheels.glob("depalma-*.whl")
    python = str(target / "bin/python")
    words = [python, str(pip / "pip"), "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    words += ["--no-cache-dir", "--no-warn-script-location"]
    words += ["--no-index", "--find-links", str(wheels)] if way == "wheels" else ["--retries", "0", "--timeout", "5"]
    code = subprocess.call([*words, str(own)], stdout=sys.stderr)
    return code or subprocess.call([python, "-c", "import depalma.master, depalma.remote"], stdout=sys.stderr)


def prune(target: Path) -> None:
    """Removes the environments of earlier releases that no daemon on record uses."""
    records = target.parent.parent.glob("clusters/*/*/process.json")
    used = {str(Path(json.loads(record.read_text())["argv"][0]).parents[1]) for record in records}
    for other in target.parent.iterdir():
        old = other.is_dir() and other.stat().st_mtime < time.time() - KEPT_S
        if old and other != target and str(other) not in used and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)


sys.exit(main())

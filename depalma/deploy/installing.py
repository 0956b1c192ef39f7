"""Brings this very release to a machine: what is sent there, and what its Python does with it (install.py)."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from depalma import __version__
from depalma.deploy import wheels
from depalma.deploy.ssh import HostFailed, Ssh
from depalma.errors import ConfigError

INSTALL_S = 600.0
NOT_INSTALLED, NO_PYTHON, ORPHANED = 90, 91, 92
_PYTHON = "depalma-python "
#: `$1` the release, `$2` an interpreter to try first, `$3` any: an environment of another release will do.
KEEPER = (
    'S=$HOME/.local/state/depalma; D=$S/env; A=; if [ "$3" ]; then A=$(ls -dt "$D"/*/ 2>/dev/null); fi; '
    'for E in "$D/$1-$(uname -m)" $A; do '
    'if [ -f "$E/complete" ] && "$E/bin/python" -c "" </dev/null 2>/dev/null; then '
    'exec "$E/bin/python" -P -m depalma.deploy.keeper; fi; done; '
    f'if [ "$3" ] && ls "$S"/clusters/*/*/process.json >/dev/null 2>&1; then exit {ORPHANED}; fi; '
    "for P in $2 python3 python3.13 python3.12 python3.11 python3.14 $HOME/.pyenv/versions/3.1[1-9]*/bin/python; do "
    'F=$($P -c "import sys,sysconfig,venv; assert sys.version_info >= (3,11); '
    'print(sys.implementation.cache_tag, sysconfig.get_platform(), sys.executable)" 2>/dev/null </dev/null) '
    f'&& {{ echo "{_PYTHON}$F"; exit {NOT_INSTALLED}; }}; done; exit {NO_PYTHON}'
)
#: `$1` the interpreter, `$2` the release, `$3` the way. install.py comes first on stdin, behind its length.
_INSTALL = (
    'exec "$1" -c "import sys; n=int(sys.stdin.buffer.readline()); exec(sys.stdin.buffer.read(n))" '
    '"$HOME/.local/state/depalma/env/$2-$(uname -m)" $3'
)


class Facts(Struct, frozen=True):
    """The Python of a machine on which nothing is installed yet."""

    tag: str  #: cpython-311
    platform: str  #: linux-x86_64
    python: str  #: its path

    @classmethod
    def read(cls, output: bytes) -> Facts | None:
        """Returns what the machine said."""
        for line in output.decode("utf-8", "replace").splitlines():
            if line.startswith(_PYTHON) and len(words := line.removeprefix(_PYTHON).split(None, 2)) == 3:
                return cls(*words)
        return None


def release() -> str:
    """Returns what the environments of this very release are called."""
    return f"{__version__}-{wheels.own_digest()}"


class Parcels:
    """What is sent; each kind is made once, when the first machine needs it. Use it as a context."""

    def __init__(self, wheelhouse: Path | None, *, offline: bool = False) -> None:
        self._wheelhouse = wheelhouse
        self.offline = offline or wheelhouse is not None  #: nothing is to come from a machine's own index
        self._made: dict[object, Path] = {}
        self._lock = threading.Lock()
        if wheelhouse is not None and not any(wheelhouse.glob("*.whl")):
            raise ConfigError(f"--wheelhouse: {wheelhouse} holds no wheel")

    def __enter__(self) -> Parcels:
        self._temporary = tempfile.TemporaryDirectory(prefix="depalma-wheels-")
        self._folder = Path(self._temporary.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def without_dependencies(self) -> Path:
        """Returns the parcel for a machine that reaches a package index."""
        with self._lock:
            return self._parcel("index", list)

    def with_dependencies(self, facts: Facts) -> Path:
        """Returns the parcel that has everything. Errors: HostFailed if it cannot be made for such a machine."""
        with self._lock:
            if self._wheelhouse is not None:
                given = [path for path in self._wheelhouse.glob("*.whl") if not path.name.startswith("depalma-")]
                return self._parcel("wheelhouse", lambda: given)
            return self._parcel((facts.tag, facts.platform), lambda: self._gather(facts))

    def _parcel(self, kind: object, gather: object) -> Path:
        if kind not in self._made:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            contents = [wheels.pack_own(folder), *gather()]  # type: ignore[operator]
            if not any(path.name.startswith("pip-") for path in contents):
                contents.append(wheels.pack_pip(folder))
            self._made[kind] = _pack(folder / "parcel", contents)
        return self._made[kind]

    def _gather(self, facts: Facts) -> list[Path]:
        """Returns the wheels of all dependencies: packed from this environment, or fetched for another Python."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        if (facts.tag, facts.platform) == (sys.implementation.cache_tag, sysconfig.get_platform()):
            return wheels.pack_dependencies(folder)
        return _fetch(facts, folder)


def _fetch(facts: Facts, folder: Path) -> list[Path]:
    """Asks this machine's package index for wheels that fit the other one.

    What is the same for all machines may be what is installed here: some projects publish no wheels.
    """
    here = Path(tempfile.mkdtemp(dir=folder))
    own = wheels.pack_own(here)
    for wheel in wheels.pack_dependencies(here):
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
    version = facts.tag.removeprefix("cpython-")
    machine = facts.platform.removeprefix("linux-")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    words += ["--only-binary=:all:", "--find-links", str(here), "--dest", str(folder)]
    words += ["--implementation", "cp", "--python-version", version]
    for glibc in range(17, 29):
        words += ["--platform", f"manylinux_2_{glibc}_{machine}"]
    words += ["--platform", f"manylinux2014_{machine}", str(own)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise HostFailed(
            f"it reaches no package index, and its Python ({facts.tag}, {facts.platform}) is not the one here; "
            f"give --wheelhouse (pip download: {lines[-1] if lines else done.returncode})"
        )
    return [path for path in folder.glob("*.whl") if not path.name.startswith("depalma-")]


def _pack(file: Path, contents: Iterable[Path]) -> Path:
    program = Path(__file__).with_name("install.py").read_bytes()
    with file.open("wb") as stream:
        stream.write(f"{len(program)}\n".encode() + program)
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            for path in contents:
                archive.add(path, arcname=path.name)
    return file


def install(ssh: Ssh, facts: Facts, name: str, parcels: Parcels) -> None:
    """Makes the environment on the machine. Errors: HostFailed with pip's reason."""
    if not parcels.offline:
        with parcels.without_dependencies().open("rb") as parcel:
            done = ssh.run(_INSTALL, facts.python, name, "index", stdin=parcel, timeout_s=INSTALL_S)
        if done.code == 0:
            return
    with parcels.with_dependencies(facts).open("rb") as parcel:
        done = ssh.run(_INSTALL, facts.python, name, "wheels", stdin=parcel, timeout_s=INSTALL_S)
    if done.code:
        raise HostFailed(f"cannot install: {done.last_error()}")

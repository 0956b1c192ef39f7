"""Wheels out of what is installed here: for machines that reach no package index, and of this very release.

A wheel is a zip of files that a distribution's record names; it is made without any build tool, and twice the same.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import depalma
from depalma.errors import DepalmaError

_OWN = "depalma"
#: Of zip files: no wheel depends on when it was made.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LEFT_OUT = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})


class CannotPack(DepalmaError):
    """A wheel cannot be made of what is installed here."""


Member = tuple[str, Path]


def own_digest() -> str:
    """Returns a short digest of this release as it is installed, or checked out, here."""
    whole = hashlib.sha256()
    for name, path in sorted(_own_files()):
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def pack_own(folder: Path) -> Path:
    """Makes the wheel of this release. Errors: CannotPack."""
    distribution = _distribution(_OWN)
    about = [member for member in _installed(distribution) if ".dist-info/" in member[0]]
    return _pack(distribution, [*_own_files(), *about], folder)


def required(name: str, *, deep: bool = False) -> list[str]:
    """Returns what a distribution needs of what is installed here, with `deep` also what these need, and so on."""
    found: list[str] = []
    todo = [name]
    while todo:
        for needed in _requirements(_distribution(todo.pop())):
            # What is not here is needed on other systems or Pythons only.
            if needed not in found and needed != name and _is_installed(needed):
                found.append(needed)
                todo += [needed] if deep else []
    return found


def pack_dependencies(folder: Path) -> list[Path]:
    """Makes a wheel of each distribution that this release needs, as they are installed here. Errors: CannotPack."""
    found = map(_distribution, required(_OWN, deep=True))
    return [_pack(distribution, list(_installed(distribution)), folder) for distribution in found]


def pack_pip(folder: Path) -> Path:
    """Makes pip's wheel, which installs the others on machines whose Python comes without. Errors: CannotPack."""
    try:
        distribution = importlib.metadata.distribution("pip")
        return _pack(distribution, list(_installed(distribution)), folder)
    except PackageNotFoundError:
        pass
    spec = importlib.util.find_spec("ensurepip")
    places = [Path(spec.origin).parent / "_bundled"] if spec and spec.origin else []
    for place in (*places, Path("/usr/share/python-wheels")):
        for wheel in sorted(place.glob("pip-*.whl")):
            target = folder / wheel.name
            target.write_bytes(wheel.read_bytes())
            return target
    raise CannotPack("there is no pip here that could be sent to the machines: python -m ensurepip, or install pip")


def _distribution(name: str) -> Distribution:
    try:
        return importlib.metadata.distribution(name)
    except PackageNotFoundError as error:
        raise CannotPack(f"{name} is not installed here, it is only on the path: pip install it") from error


def _own_files() -> Iterator[Member]:
    root = Path(depalma.__file__).parent
    for path in root.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{_OWN}/{path.relative_to(root).as_posix()}", path


def _installed(distribution: Distribution) -> Iterator[Member]:
    """What goes into the wheel: not what pip makes itself (scripts, compiled files, its notes)."""
    if distribution.files is None:
        raise CannotPack(f"{distribution.metadata['Name']} has no record of its files here: give --wheelhouse")
    for file in distribution.files:
        if file.parts[0] == ".." or "__pycache__" in file.parts or file.suffix == ".pth":
            continue
        if file.parts[0].endswith(".dist-info") and file.name in _LEFT_OUT:
            continue
        path = Path(str(distribution.locate_file(file)))
        if path.is_file():
            yield file.as_posix(), path


def _requirements(distribution: Distribution) -> Iterator[str]:
    """Names of what it needs, extras left out."""
    for line in distribution.requires or ():
        requirement, _, marker = line.partition(";")
        if (name := _NAME.match(requirement.strip())) and "extra" not in marker:
            yield re.sub(r"[-_.]+", "-", name[0]).lower()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _pack(distribution: Distribution, members: Iterable[Member], folder: Path) -> Path:
    name = re.sub(r"[-_.]+", "_", distribution.metadata["Name"])
    stem = f"{name}-{distribution.version}"
    wheel = folder / f"{stem}-{_tags(distribution)}.whl"
    about = next((member.partition("/")[0] for member, _ in members if ".dist-info/" in member), f"{stem}.dist-info")
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, path in sorted(members):
            data = path.read_bytes()
            _add(archive, member, data, path.stat().st_mode)
            checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{member},sha256={checksum},{len(data)}\n")
        _add(archive, f"{about}/RECORD", "".join((*record, f"{about}/RECORD,,\n")).encode(), 0o644)
    return wheel


def _add(archive: zipfile.ZipFile, member: str, data: bytes, mode: int) -> None:
    info = zipfile.ZipInfo(member, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (0o100000 | (0o755 if mode & 0o100 else 0o644)) << 16
    archive.writestr(info, data)


def _tags(distribution: Distribution) -> str:
    """Returns the last part of the wheel's name, from its list of tags."""
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(":")[2].strip().split("-") for line in lines if line.startswith("Tag:")]
    if not tags:
        raise CannotPack(f"{distribution.metadata['Name']} was not installed from a wheel here: give --wheelhouse")
    return "-".join(".".join(dict.fromkeys(tag[place] for tag in tags)) for place in range(3))

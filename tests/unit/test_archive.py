"""Packing repeats exactly; unpacking survives enemies."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from depalma.archive import MODULE_MEMBER, ArchiveError, Limits, pack, unpack


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "mypkg"
    (root / "sub").mkdir(parents=True)
    (root / "__init__.py").write_text("A = 1\n")
    (root / "sub/mod.py").write_text("B = 2\n")
    (root / "sub/data.bin").write_bytes(bytes(range(256)) * 10)
    (root / "empty").mkdir()
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    for junk in ("__pycache__/x.pyc", ".git/config", ".hidden", "sub/old.pyc", "x.egg-info/PKG-INFO"):
        (root / junk).parent.mkdir(exist_ok=True)
        (root / junk).write_text("junk")
    return root


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_folder_comes_back_as_it_was(package: Path, tmp_path: Path) -> None:
    name, kind, data = pack(package)
    target = tmp_path / "store/abc"

    before = os.umask(0o022)
    try:
        unpack(data, target)
    finally:
        os.umask(before)

    assert (name, kind) == ("mypkg", "folder")
    assert files(target) == {
        "__init__.py": b"A = 1\n",
        "run.sh": b"#!/bin/sh\n",
        "sub/data.bin": bytes(range(256)) * 10,
        "sub/mod.py": b"B = 2\n",
    }
    assert (target / "empty").is_dir()
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (target / "sub/mod.py").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["abc"]


def test_a_module_comes_back_as_it_was(tmp_path: Path) -> None:
    module = tmp_path / "words.py"
    module.write_text("X = 1\n")

    name, kind, data = pack(module)
    unpack(data, tmp_path / "out")

    assert (name, kind) == ("words.py", "module")
    assert files(tmp_path / "out") == {MODULE_MEMBER: b"X = 1\n"}
    assert pack(module, "other") == ("other.py", "module", data)


def test_equal_code_gives_equal_bytes(package: Path) -> None:
    first = pack(package)[2]
    for path in package.rglob("*"):
        os.utime(path, (1, 1))
    moved = package.rename(package.parent / "elsewhere")

    assert pack(moved, "mypkg") == ("mypkg", "folder", first)


def test_a_known_archive_keeps_its_digest(tmp_path: Path) -> None:
    """If this changes, every cluster's code is sent again after an upgrade: say so in the CHANGELOG."""
    module = tmp_path / "words.py"
    module.write_text("X = 1\n")

    plain = gzip.decompress(pack(module)[2])

    assert hashlib.sha256(plain).hexdigest() == KNOWN_DIGEST


KNOWN_DIGEST = "df4e375a0c6db4676e23beb081910993957555bcbebaddc13b2e806ab237dab4"


def test_the_ignore_file_is_obeyed(package: Path, tmp_path: Path) -> None:
    (package / ".depalmaignore").write_text("# large things\n*.bin\n/empty/\nsub/mod.py\n")

    unpack(pack(package)[2], tmp_path / "out")

    assert sorted(files(tmp_path / "out")) == ["__init__.py", "run.sh"]
    assert not (tmp_path / "out/empty").exists()


def test_the_ignore_file_can_take_back(package: Path, tmp_path: Path) -> None:
    (package / "sub/.config").write_text("needed")
    (package / ".depalmaignore").write_text("/sub/**\n!sub/.config\n")

    unpack(pack(package)[2], tmp_path / "out")

    assert sorted(files(tmp_path / "out")) == ["__init__.py", "run.sh", "sub/.config"]


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_wheel_comes_back_as_what_it_would_install(tmp_path: Path) -> None:
    path = wheel(
        tmp_path / "my_tool-1.2-py2.py3-none-any.whl",
        {
            "tool/__init__.py": b"A = 1\n",
            "tool/data.txt": b"data",
            "my_tool-1.2.dist-info/METADATA": b"Name: my-tool\n",
            "my_tool-1.2.data/purelib/more.py": b"B = 2\n",
            "my_tool-1.2.data/scripts/run": b"#!python\n",
        },
    )

    name, kind, data = pack(path)
    unpack(data, tmp_path / "out")

    assert (name, kind) == ("my_tool", "wheel")
    assert sorted(files(tmp_path / "out")) == [
        "more.py",
        "my_tool-1.2.dist-info/METADATA",
        "tool/__init__.py",
        "tool/data.txt",
    ]
    assert pack(path, "other") == ("other", "wheel", data)


PURE = "x-1-py3-none-any.whl"


@pytest.mark.parametrize(
    ("file", "members", "words"),
    [
        ("x.whl", {}, "not the name of a wheel"),
        ("x-1-cp311-cp311-linux_x86_64.whl", {}, "made for cp311-cp311-linux_x86_64; allowed: py3-none-any"),
        ("x-1-py2-none-any.whl", {}, "made for py2-none-any"),
        (PURE, {"../evil.py": b""}, "'..'"),
        (PURE, {"/tmp/evil.py": b""}, "an absolute path"),
        (PURE, {"x-1.data/purelib/../../evil.py": b""}, "'..'"),
        (PURE, {"a\\..\\b": b""}, "backslash"),
    ],
)
def test_wheels_that_are_not_packed(tmp_path: Path, file: str, members: dict[str, bytes], words: str) -> None:
    path = wheel(tmp_path / "in" / file, members)

    with pytest.raises(ArchiveError, match=re.escape(words)):
        pack(path)

    assert [p.name for p in tmp_path.rglob("*")] == ["in", file]


def test_a_wheel_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / PURE
    path.write_bytes(b"no zip file")
    with pytest.raises(ArchiveError, match="not a sound wheel"):
        pack(path)
    data = bytearray(wheel(tmp_path / PURE, {"a.py": b"x" * 5000}).read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="not a sound wheel"):
        pack(path)


def test_links_inside_are_followed_and_those_that_lead_out_are_not(package: Path, tmp_path: Path) -> None:
    (package / "again.py").symlink_to("__init__.py")
    unpack(pack(package)[2], tmp_path / "out")
    assert not (tmp_path / "out/again.py").is_symlink()
    assert (tmp_path / "out/again.py").read_text() == "A = 1\n"

    (package / "secret.py").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match=r"secret\.py: the link leads out"):
        pack(package)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "no such file"),
        (lambda root: touched(root / "x.txt"), "ends in .py"),
        (lambda root: os.mkfifo(root / "pkg/pipe") or root / "pkg", "neither a file nor a folder"),
        (lambda root: os.symlink("/etc", root / "pkg/etc") or root / "pkg", "links to folders"),
    ],
)
def test_what_cannot_be_packed_is_named(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    (tmp_path / "pkg").mkdir()

    with pytest.raises(ArchiveError, match=words):
        pack(make(tmp_path))


def touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("name", ["a/b/", "..", ".", "x\ny", "/etc"])
def test_names_are_plain_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "pkg").mkdir()

    with pytest.raises(ArchiveError):
        pack(tmp_path / "pkg", name)


# ---------------------------------------------------------------- enemies


def tar(*members: tuple[str, object], **fields: object) -> bytes:
    """Packs (name, bytes) or (name, (type,)) pairs, the last one with more fields set."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for position, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if position == len(members) - 1:
                for field, value in fields.items():
                    setattr(info, field, value)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                (info.type,) = content  # type: ignore[misc]
                archive.addfile(info)
    return gzip.compress(plain.getvalue(), mtime=0)


def nested_headers(depth: int) -> bytes:
    one = tarfile.TarInfo("x")
    one.type, one.size = tarfile.XHDTYPE, 512
    block = one.tobuf(tarfile.USTAR_FORMAT) + b"12 path=abcd" + bytes(500)
    return gzip.compress(block * depth + bytes(1024))


def huge_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22))


HOSTILE: dict[str, bytes] = {
    "absolute": tar(("/tmp/evil", b"x")),
    "parent": tar(("../evil", b"x")),
    "parent in the middle": tar(("a/../../evil", b"x")),
    "parent folder": tar(("..", (tarfile.DIRTYPE,))),
    "dot": tar(("./evil", b"x")),
    "empty part": tar(("a//evil", b"x")),
    "symbolic link": tar(("evil", (tarfile.SYMTYPE,)), linkname="/etc/passwd"),
    "symbolic link inside": tar(("a", b"x"), ("evil", (tarfile.SYMTYPE,)), linkname="a"),
    "write through a link": tar(("d", (tarfile.SYMTYPE,)), ("d/evil", b"x")),
    "hard link": tar(("evil", (tarfile.LNKTYPE,)), linkname="/etc/passwd"),
    "character device": tar(("evil", (tarfile.CHRTYPE,)), devmajor=1, devminor=3),
    "block device": tar(("evil", (tarfile.BLKTYPE,))),
    "fifo": tar(("evil", (tarfile.FIFOTYPE,))),
    "sparse": tar(("evil", (tarfile.GNUTYPE_SPARSE,))),
    "contiguous": tar(("evil", (tarfile.CONTTYPE,))),
    "set-uid": tar(("evil", b"x"), mode=0o4755),
    "twice": tar(("a", b"x"), ("a", b"y")),
    "case clash": tar(("a.py", b"x"), ("A.py", b"y")),
    "unicode clash": tar(("\u00e4", b"x"), ("a\u0308", b"y")),
    "below a file": tar(("a", b"x"), ("a/b", b"y")),
    "file over a folder": tar(("a/b", b"x"), ("a", b"y")),
    "control sign": tar(("a\nb", b"x")),
    "backslash": tar(("a\\..\\b", b"x")),
    "not UTF-8": tar(("a\udcff", b"x")),
    "long name": tar(("a" * 300, b"x")),
    "long path": tar(("/".join(["a" * 200] * 20), b"x")),
    "deep": tar(("/".join("a" * 60), b"x")),
    "not gzip": b"plain text",
    "empty": b"",
    "not tar": gzip.compress(b"plain text" * 1000),
    "cut short": tar(("a", b"x" * 10_000))[:-20],
    "trailing data": tar(("a", b"x")) + b"more",
    "second stream": tar(("a", b"x")) + tar(("b", b"x")),
    "after the end": gzip.compress(gzip.decompress(tar(("a", b"x"))) + b"evil" * 256),
    "nested headers": nested_headers(3000),
    "huge header": huge_header(),
    "bomb": gzip.compress(gzip.decompress(tar(("a", bytes(40_000_000))))),
    "many members": tar(*[(f"m{number}", b"") for number in range(300)]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "store" / "target"

    with pytest.raises(ArchiveError):
        unpack(HOSTILE[kind], target, Limits(members=200))

    assert sorted(p.name for p in tmp_path.rglob("*")) == ["store"]
    assert not Path("/tmp/evil").exists()


def test_a_bomb_costs_little_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 30
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as stream:
        stream.write(info.tobuf())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ArchiveError, match="times its size"):
        unpack(packed.getvalue(), tmp_path / "target")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_the_size_limit_counts_all_files(tmp_path: Path) -> None:
    archive = tar(*[(f"f{number}", os.urandom(1000)) for number in range(100)])

    with pytest.raises(ArchiveError, match="unpacks to more than 50000 bytes"):
        unpack(archive, tmp_path / "target", Limits(size_bytes=50_000, members=150))
    unpack(archive, tmp_path / "other", Limits(size_bytes=100_000, members=150))


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()

    with pytest.raises(FileExistsError):
        unpack(tar(("a", b"x")), tmp_path / "target")

    assert list((tmp_path / "target").iterdir()) == []


def test_archives_are_read_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tar(("a/b", b"x")))

    unpack(tmp_path / "archive", tmp_path / "target")

    assert files(tmp_path / "target") == {"a/b": b"x"}

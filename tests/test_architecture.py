"""The rules of the house (docs/architecture.md), read from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "depalma"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 450

IMPURE = frozenset(["time", "random", "uuid", "os", "socket", "threading", "asyncio", "subprocess", "logging"])
PURE = (
    "model.py", "lease.py", "dispatcher.py", "policies/", "codetree.py", "items.py", "protocol.py", "client/wire.py",
    "state/",
    "agent/core.py", "agent/execution.py", "agent/lanes.py", "agent/events.py", "leader/leases.py", "leader/history.py",
    "agent/loadring.py", "leader/laggards.py", "ignoring.py", "requirements.py", "ownership.py", "agent/yielding.py",
    "consensus/append_filter.py", "consensus/replication.py", "consensus/messages.py", "consensus/envelope.py",
    "cron.py", "orderviews.py", "tails.py", "gpuparts.py", "alternatives.py", "visits.py",
    "accounting.py", "jobarchive/record.py", "jobarchive/usage.py", "jobarchive/search.py", "jobarchive/ranges.py",
)  # fmt: skip
#: Third-party package → where it may be imported (prefixes below depalma/).
HOMES = {
    "pysyncobj": ("consensus/",),
    "rich": ("ctl/",),
    "psutil": ("remote.py", "monitor.py", "agent/"),
    "click": ("ctl/",),
    "uvloop": ("master.py", "consensus/"),
    "yaml": ("yamltext.py", "client/contexts.py", "ctl/", "local/"),
    "cloudpickle": ("client/", "agent/"),
    "cryptography": ("certificates.py",),
    "sqlite3": ("jobarchive/",),
}
#: Part → parts of depalma that it must not import.
CLOSED = {
    "client/": ("consensus", "state", "master", "leader", "api", "agent", "ctl", "testing"),
    "ctl/": ("consensus", "state", "master", "leader", "api", "agent", "testing"),
    "agent/": ("consensus", "state", "master", "leader", "api", "client", "ctl", "testing"),
    "remote.py": ("consensus", "state", "master", "leader", "api", "client", "ctl", "testing"),
    "monitor.py": ("consensus", "state", "master", "leader", "api", "client", "ctl", "testing"),
    "deploy/": ("consensus", "state", "master", "leader", "api", "agent", "ctl", "testing"),
    "local/": ("consensus", "state", "master", "leader", "api", "ctl", "testing"),
    "state/": ("consensus", "leader", "api", "agent", "client", "ctl", "testing", "dispatcher", "master", "config"),
    "consensus/": ("state", "leader", "api", "agent", "client", "ctl", "dispatcher", "master", "model", "testing"),
    "policies/": ("consensus", "leader", "api", "agent", "client", "ctl", "testing", "master", "dispatcher"),
    "dispatcher.py": ("consensus", "leader", "api", "agent", "client", "ctl", "testing", "master"),
    "jobarchive/": ("consensus", "leader", "api", "agent", "client", "ctl", "testing", "master"),
    "leader/": ("api", "agent", "ctl", "testing", "master"),
    "api/": ("agent", "ctl", "testing", "master"),
    "testing/": ("ctl",),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def imports_of(path: Path) -> list[tuple[int, str]]:
    """Returns line and full name of everything that the file imports at run time, wherever in the file it stands."""
    return list(_imports(path, tree_of(path)))


def _imports(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ("depalma", *path.relative_to(PACKAGE).parts)[: -node.level]
                base = ".".join((*here, base)).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def offences(allowed: object) -> str:
    return "\n  ".join(["", *map(str, allowed)])  # type: ignore[call-overload]


def test_the_package_is_there() -> None:
    """The other tests would pass on an empty list."""
    assert len(MODULES) > 10


@pytest.mark.parametrize("rule", PURE)
def test_pure_modules_import_nothing_that_touches_the_world(rule: str) -> None:
    found = [
        f"depalma/{name_of(path)}:{line} imports {name}"
        for path in MODULES
        if name_of(path).startswith(rule)
        for line, name in imports_of(path)
        if name.split(".")[0] in IMPURE
    ]

    assert not found, offences(found)


@pytest.mark.parametrize("package", HOMES)
def test_third_party_packages_stay_at_home(package: str) -> None:
    found = [
        f"depalma/{name_of(path)}:{line} imports {name}"
        for path in MODULES
        if not name_of(path).startswith(HOMES[package])
        for line, name in imports_of(path)
        if name.split(".")[0] == package
    ]

    assert not found, offences(found)


@pytest.mark.parametrize("part", CLOSED)
def test_parts_do_not_reach_into_each_other(part: str) -> None:
    found = [
        f"depalma/{name_of(path)}:{line} imports {name}"
        for path in MODULES
        if name_of(path).startswith(part)
        for line, name in imports_of(path)
        if name.startswith("depalma.") and name.split(".")[1] in CLOSED[part]
    ]

    assert not found, offences(found)


def test_imports_are_of_known_packages() -> None:
    """A new dependency needs a record in docs/adr and a line in pyproject.toml (yarl is aiohttp's own URL type)."""
    known = {
        "depalma", "pysyncobj", "psutil", "yaml", "rich", "aiohttp", "msgspec", "click", "cloudpickle", "cryptography",
        "uvloop", "yarl", *sys.stdlib_module_names,
    }  # fmt: skip
    found = [
        f"depalma/{name_of(path)}:{line} imports {name}"
        for path in MODULES
        for line, name in imports_of(path)
        if name.split(".")[0] not in known
    ]

    assert not found, offences(found)


def test_files_stay_short() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in (*MODULES, *TESTS)
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }

    assert not long


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or ast.unparse(name) in ("Exception", "BaseException") for name in names)


def test_no_error_is_swallowed() -> None:
    """`except Exception: pass` hides the bug that the next reader looks for."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (*MODULES, *TESTS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and is_broad(node)
        and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    found += [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (*MODULES, *TESTS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("suppress")
        and any(ast.unparse(argument) in ("Exception", "BaseException") for argument in node.args)
    ]

    assert not found, offences(found)


def sleeps_in(function: ast.AST) -> Iterator[int]:
    """Yields the lines of sleeps in the function itself, not in functions within it (those run as tasks, or wait)."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.While) and "monotonic" in ast.unparse(node):
            continue  # a wait with a deadline
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep"):
            argument = node.args[0] if node.args else None
            if not (isinstance(argument, ast.Constant) and argument.value == 0):
                yield node.lineno
        yield from sleeps_in(node)


def test_tests_wait_for_what_they_need_and_do_not_sleep() -> None:
    """A test that sleeps is slow on a fast machine and wrong on a slow one."""
    found = [
        f"{path.relative_to(ROOT)}:{line} in {node.name}"
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for line in sleeps_in(node)
    ]

    assert not found, offences(found)


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


# One letter of each is in brackets, so that this file does not find itself.
FOREIGN = re.compile(
    r"/[w]ork/(main|shared|steering|\.)"
    r"|/[r]oot/"
    r"|/[h]ome/(?!(user|you|me|USER|ada|alice|bob)\b)[a-z]"
    r"|/tmp/[b]rief"
    r"|[p]ypi\.(org|python)|[f]iles\.pythonhosted|[r]egistry\.npmjs|[i]ndex-url\s*="
)


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked_files():
        if not path.is_file():
            continue  # deleted, not committed yet
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if FOREIGN.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")

    assert not found, offences(found)


def test_the_package_imports_next_to_nothing() -> None:
    """`import depalma` loads no server, no event loop and no drawing."""
    heavy = ["aiohttp", "asyncio", "psutil", "pysyncobj", "rich", "click", "yaml", "msgspec"]
    program = f"import sys, depalma; print(*[name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == ""

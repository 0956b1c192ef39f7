"""What a forked process inherits stays shared: to write to it costs a copy of its page, and a page fault each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from depalma.agent.worker import new_modules, newest_module

#: Many objects and modules, then a fork that does what is asked and says how many pages it has written to.
FORKED = """
import gc, os, resource, sys, types
from depalma.agent.worker import after_fork, new_modules, newest_module

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = [[number] for number in range(200_000)]
for number in range(2000):
    name = f"made{number}"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = types.SimpleNamespace(origin=f"/somewhere/{name}.py")
if os.fork() == 0:
    before = faults()
    %s
    print(faults() - before, flush=True)
    os._exit(0)
os.wait()
"""


def faults_of(what: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FORKED % what], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    return int(done.stdout)


def test_a_collection_in_a_forked_process_leaves_alone_what_was_there() -> None:
    assert faults_of("gc.collect()") > 1000
    assert faults_of("after_fork(); gc.collect()") < 200


def test_a_look_for_new_modules_leaves_the_old_ones_alone() -> None:
    assert faults_of("[getattr(module, '__spec__', None) for module in list(sys.modules.values())]") > 300
    look = "newest = newest_module(); sys.modules['fresh'] = os; assert [name for name, _ in new_modules(newest)]"
    assert faults_of(f"{look} == ['fresh']") < 100


def test_new_modules_are_those_that_came_since_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "inner_new.py").write_text("")
    (tmp_path / "outer_new.py").write_text("import inner_new")
    newest = newest_module()
    assert new_modules(newest) == []
    __import__("outer_new")
    try:
        found = new_modules(newest)
        assert found == [(name, str(tmp_path / f"{name}.py")) for name in ("inner_new", "outer_new")]
        assert newest_module() == "outer_new"
        assert "sys" in dict(new_modules("no longer there"))  # then everything may be new
    finally:
        del sys.modules["outer_new"], sys.modules["inner_new"]

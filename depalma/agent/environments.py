"""Python environments for code with requirements, and the host-wide commands that may use one.

An environment is named by its lock: the digests of the requirements files and the Python that it is for. It is made at
its final path, as environments do not move, and counts once `.complete` is in it. What the agent's own Python can
import is visible behind it, so that workers find what they need.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from depalma.agent.aside import Aside
from depalma.agent.blobs import Blobs
from depalma.agent.codefolder import CodeFolder
from depalma.codetree import CodeEntry
from depalma.errors import DepalmaError

_COMPLETE = ".complete"
_FETCH_FOR_S = 60.0
_INSTALL_FOR_S = 1800.0
#: A failed installation is not tried again before, unless somebody asks for it.
_FAILED_FOR_S = 10.0
_LAST_LINES = 8


class EnvironmentFailed(DepalmaError):
    """The requirements cannot be installed here; the message ends with the installer's last lines."""


class CommandFailed(DepalmaError):
    """A host-wide command failed here; it is not run again by itself."""

    def __init__(self, index: int, reason: str, exit_code: int, output: str) -> None:
        super().__init__(f"command {index}: {reason}")
        self.index, self.exit_code, self.output = index, exit_code, output


class Environments:
    """The environments of this host, the newest few kept."""

    def __init__(self, folder: CodeFolder, blobs: Blobs, aside: Aside, keep: int) -> None:
        self._folder = folder
        self._root = folder.root / "envs"
        self._blobs = blobs
        self._aside = aside
        self._keep = keep
        self._locks: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, tuple[float, EnvironmentFailed]] = {}
        self._root.mkdir(mode=0o700, exist_ok=True)
        for left in self._root.iterdir():
            if left.is_dir() and not (left / _COMPLETE).exists():
                shutil.rmtree(left, ignore_errors=True)  # of an agent that was killed

    @staticmethod
    def lock_of(needs: Iterable[str]) -> str:
        """Returns the name of the environment for requirements files with these digests."""
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return hashlib.sha256("\n".join([python, *needs]).encode()).hexdigest()[:32]

    def path(self, needs: tuple[str, ...]) -> Path | None:
        """Returns where the environment is, None if none is needed."""
        return self._root / self.lock_of(needs) if needs else None

    def variables(self, needs: tuple[str, ...], inherited_path: str) -> dict[str, str]:
        """Returns what makes a command use the environment; nothing when none is needed."""
        path = self.path(needs)
        if path is None:
            return {}
        return {"VIRTUAL_ENV": str(path), "PATH": os.pathsep.join([f"{path}/bin", inherited_path])}

    def try_again(self) -> None:
        """Forgets what failed a moment ago."""
        self._failed.clear()

    async def have(self, needs: tuple[str, ...]) -> None:
        """Installs the environment if need be. Errors: EnvironmentFailed, BlobUnavailable, Interrupted, OSError."""
        name = self.lock_of(needs)
        path = self._root / name
        async with self._locks.setdefault(name, asyncio.Lock()):
            if (path / _COMPLETE).exists():
                os.utime(path / _COMPLETE)
                return
            at, error = self._failed.get(name, (0.0, None))
            if error is not None and time.monotonic() < at + _FAILED_FOR_S:
                raise error
            try:
                await self._install(path, needs)
            except EnvironmentFailed as error:
                self._failed[name] = (time.monotonic(), error)
                raise
            finally:
                if not (path / _COMPLETE).exists():
                    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def _install(self, path: Path, needs: tuple[str, ...]) -> None:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        files: list[str] = []
        for digest in needs:
            file = self._root / f"{digest}.txt"
            await self._blobs.fetch(digest, file, _FETCH_FOR_S)
            files += ["-r", str(file)]
        python = f"{path}/bin/python"
        uv = _uv()
        if uv:
            steps = [
                [uv, "venv", "--quiet", "--python", sys.executable, str(path)],
                [uv, "pip", "install", "--python", python, *files],
            ]
        else:
            steps = [
                [sys.executable, "-m", "venv", str(path)],
                [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *files],
            ]
        log = self._folder.runs / f"{path.name}.log"
        for step in steps:
            done = await self._aside.run(step, log, cwd=self._root, variables={}, timeout_s=_INSTALL_FOR_S)
            if done.exit_code:
                lines = "\n".join(done.output.strip().splitlines()[-_LAST_LINES:])
                raise EnvironmentFailed(f"the requirements cannot be installed: {done.reason}\n{lines}".strip())
        site = next(path.glob("lib/python*/site-packages"))
        (site / "zz_depalma.pth").write_text("".join(f"{line}\n" for line in _own_path()))
        (path / _COMPLETE).touch()

    def evict(self, in_use: Collection[str]) -> list[str]:
        """Removes those that were unused longest, beyond the number to keep (blocks). Returns their names."""
        found = sorted(
            ((mark.stat().st_mtime, mark.parent) for mark in self._root.glob(f"*/{_COMPLETE}")), reverse=True
        )
        gone = [path for _, path in found[self._keep :] if path.name not in in_use]
        for path in gone:
            (path / _COMPLETE).unlink()
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in gone]

    async def run_command(self, entry: CodeEntry, needs: tuple[str, ...]) -> tuple[int, str]:
        """Runs a host-wide command. Returns (0, its last lines). Errors: CommandFailed, Interrupted."""
        tree = str(self._folder.root / "trees" / str(entry.index))
        python_path = os.pathsep.join(filter(None, [tree, os.environ.get("PYTHONPATH", "")]))
        variables = {
            "DEPALMA_CODE_INDEX": str(entry.index),
            "DEPALMA_CODE_DIR": tree,
            "PYTHONPATH": python_path,
            **self.variables(needs, os.environ.get("PATH", os.defpath)),
        }
        log = self._folder.runs / f"{entry.index}.log"
        done = await self._aside.run(
            list(entry.argv), log, cwd=self._folder.runs, variables=variables, timeout_s=entry.timeout_s
        )
        if done.exit_code:
            raise CommandFailed(entry.index, done.reason, done.exit_code, done.output)
        return 0, done.output


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv") or ""


def _own_path() -> list[str]:
    """Returns the folders from which this process imports packages that do not come with Python."""
    own = str(Path(__file__).resolve().parents[2])
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*installed, own]))

"""File systems of our own: small ones that fill up, and disks of which a power cut can be taken."""

from __future__ import annotations

from pathlib import Path

from depalma.testing.chaos.marks import is_left_over
from depalma.testing.chaos.shell import run
from depalma.testing.chaos.waiting import wait_until


class Mounts:
    """File systems mounted below a folder; all are taken away by `close`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounted: list[Path] = []

    def tmpfs(self, folder: Path, size_bytes: int) -> None:
        """Mounts a small file system in memory on the folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "depalma-chaos", str(folder))
        self._mounted.append(folder)

    def disk(self, folder: Path, image: Path, *, size_mib: int = 64) -> None:
        """Mounts a disk (a new one unless the image is there) that writes back only what is synced, or after 30 s."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(size_mib << 20)
            run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(image))
        run("mount", "-o", "loop,commit=30,noatime", str(image), str(folder))
        self._mounted.append(folder)

    def unmount(self, folder: Path) -> None:
        """Takes one file system away; its loop device goes with it."""
        wait_until(lambda: _unmounted(folder), within_s=5.0, what=f"{folder} unmounted", every_s=0.05)
        self._mounted.remove(folder)

    def close(self, *, keep: bool = False) -> None:
        """Unmounts everything; with `keep` the contents of file systems in memory are copied first."""
        while self._mounted:
            folder = self._mounted.pop()
            if keep:
                run("cp", "-a", str(folder), f"{folder}.kept", check=False)
            run("umount", "-l", str(folder), check=False)


def _unmounted(folder: Path) -> bool:
    """Returns whether it worked; others (a search through all files, say) may hold it for a moment."""
    run("umount", str(folder), check=False)
    return not mounted_below(folder)


def mounted_below(directory: Path) -> list[Path]:
    """Returns the mount points below a folder, deepest first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    points = [Path(line.split()[1].encode().decode("unicode_escape")) for line in lines]
    return sorted((point for point in points if point.is_relative_to(directory)), reverse=True)


def sweep() -> None:
    """Unmounts what runs that were killed have left; their folders carry the mark of the run."""
    for point in mounted_below(Path("/")):
        if any(map(is_left_over, point.parts)):
            run("umount", "-l", str(point), check=False)


def power_cut(image: Path, copy: Path) -> None:
    """Copies what has reached the disk by now, and nothing of what the kernel still holds back."""
    run("cp", "--sparse=always", str(image), str(copy))

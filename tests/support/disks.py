"""Small file systems of their own, filled to the brim: what a full disk does is not simulated."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BALLAST = "ballast"
_PIECE = bytes(1 << 20)


@contextmanager
def small_disk(place: Path, *, mebibytes: int) -> Iterator[Path]:
    """Mount a file system of that size at `place`, made if absent; gone at the end."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}M", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def free_bytes(place: Path) -> int:
    """Return how much an ordinary process may still write."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def fill(place: Path, *, leave: int = 0) -> None:
    """Write one file until no more than `leave` bytes are free (whole pages)."""
    with open(place / BALLAST, "ab", buffering=0) as file:
        while (room := free_bytes(place) - leave) > 0:
            try:
                file.write(_PIECE[: max(min(room, len(_PIECE)) // 4096 * 4096, 4096)])
            except OSError:
                return


def make_room(place: Path) -> None:
    """Take that file away."""
    (place / BALLAST).unlink(missing_ok=True)


def remount(place: Path, option: str) -> None:
    """Change a mounted file system: `ro`, `rw`, `size=2M`."""
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)

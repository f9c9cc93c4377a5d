"""A tree on disk under edit: entries are chosen at random and reached name by name."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
Names = tuple[bytes, ...]
"""The names from the top down to an entry."""


@dataclass(frozen=True)
class Day:
    """The tree under edit: a descriptor of its top, and the source of choices."""

    top: int
    rng: random.Random
    privileged: bool

    def entries(self) -> list[tuple[Names, os.stat_result]]:
        """Return every entry below the top with what lstat says, in order of names."""
        return list(walk(self.top, ()))

    def choose(self, *kinds: Callable[[int], bool]) -> Names | None:
        """Return the names of a random entry of one of `kinds`, or None."""
        found = [
            names for names, info in self.entries() if any(kind(info.st_mode) for kind in kinds)
        ]
        return self.rng.choice(found) if found else None

    def folder(self) -> Names:
        """Return the names of a random directory; () is the top."""
        found = [names for names, info in self.entries() if stat.S_ISDIR(info.st_mode)]
        return self.rng.choice([(), *found])

    def new_name(self) -> bytes:
        """Return a name that nothing has."""
        return b"new \xff %016x" % self.rng.getrandbits(64)

    def content(self, bytes_max: int) -> bytes:
        """Return between one and `bytes_max` random bytes."""
        return self.rng.randbytes(self.rng.randint(1, bytes_max))

    @contextmanager
    def at(self, folder: Names) -> Iterator[int]:
        """Hold a descriptor of `folder`, opened name by name."""
        here = os.dup(self.top)
        try:
            for name in folder:
                below = os.open(name, DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    @contextmanager
    def opened(self, names: Names) -> Iterator[int]:
        """Hold a descriptor of a regular file, for reading and writing."""
        with self.at(names[:-1]) as parent:
            if not os.access(names[-1], os.W_OK, dir_fd=parent):
                os.chmod(names[-1], 0o640, dir_fd=parent)
            here = os.open(names[-1], WRITE, dir_fd=parent)
        try:
            yield here
        finally:
            os.close(here)


def walk(folder: int, above: Names) -> Iterator[tuple[Names, os.stat_result]]:
    """Yield every entry below a descriptor with what lstat says, in order of names."""
    for name in sorted(map(os.fsencode, os.listdir(folder))):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield (*above, name), info
        if stat.S_ISDIR(info.st_mode):
            here = os.open(name, DIRECTORY, dir_fd=folder)
            try:
                yield from walk(here, (*above, name))
            finally:
                os.close(here)


def shown(names: Names) -> str:
    """Return the end of a path for a message."""
    return repr(b"/".join(names)[-200:])


def remove_all(parent: int, name: bytes) -> None:
    """Remove one entry with all below it."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    here = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        for child in map(os.fsencode, os.listdir(here)):
            remove_all(here, child)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=parent)


def write_new(parent: int, name: bytes, content: bytes) -> None:
    """Make a regular file."""
    here = os.open(name, WRITE | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=parent)
    try:
        os.write(here, content)
    finally:
        os.close(here)

"""What the agent may touch at all, and which of its own files it leaves alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from holdfast_agent.sources.descent import Descent, components
from holdfast_agent.sources.directory import Directory, Identity
from holdfast_agent.sources.findings import Finding, Reason, joined
from holdfast_agent.tree.entry import Stat
from holdfast_contract.errors import InvalidInput, OutsideRoots


def normal_path(path: bytes) -> bytes:
    """Return an absolute path without empty names and trailing slashes.

    Names are never resolved: `..` is refused, since with symlinks it has no lexical meaning.

    Raises:
        InvalidInput: it is relative, or has `.`, `..` or NUL in it.
    """
    names = components(path)
    if not path.startswith(b"/") or b"\0" in path or b"." in names or b".." in names:
        raise InvalidInput("a path must be absolute, without . or ..", hint="Give the full path.")
    return b"/" + b"/".join(names)


@dataclass(frozen=True, slots=True)
class Root:
    """One configured root."""

    shown: bytes
    """As configured: the paths of snapshots begin with it."""
    real: bytes
    """Without symlinks; what is opened. Resolved once, from the pod's own configuration: a symlink
    that is made later leads nowhere."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories that an agent may read, or restore to."""

    roots: tuple[Root, ...]

    @classmethod
    def configured(cls, paths: Iterable[bytes]) -> Self:
        """Return the roots of a configuration; they need not exist.

        Raises:
            InvalidInput: a path is not absolute and plain.
        """
        shown = dict.fromkeys(normal_path(path) for path in paths)
        return cls(tuple(Root(path, os.path.realpath(path)) for path in shown))

    def check(self, path: bytes) -> bytes:
        """Return `path` in its normal form if it is a root or below one.

        Raises:
            OutsideRoots: it is not.
            InvalidInput: it is no absolute and plain path.
        """
        wanted = normal_path(path)
        self._root_of(wanted)
        return wanted

    def real(self, path: bytes) -> bytes:
        """Return what is to be opened for `path`, which may be below a root given by a symlink.

        Raises:
            OutsideRoots: it is outside.
            InvalidInput: it is no absolute and plain path.
        """
        wanted = normal_path(path)
        root = self._root_of(wanted)
        if is_within(wanted, root.shown):
            return joined(root.real, wanted[len(root.shown) :].lstrip(b"/"))
        return wanted

    def _root_of(self, path: bytes) -> Root:
        for root in self.roots:
            if is_within(path, root.shown):
                return root
        for root in self.roots:
            if is_within(path, root.real):
                return root
        raise OutsideRoots(
            "the path is outside the roots that this agent is configured for",
            hint="Its roots are set in the pod (HOLDFAST_ROOTS, HOLDFAST_RESTORE_ROOTS).",
        )


def is_within(path: bytes, root: bytes) -> bool:
    """Return whether `path` is `root` or below it, name by name."""
    return path == root or path.startswith(root if root.endswith(b"/") else root + b"/")


class OwnFiles:
    """The agent's state directory and its key and token files: never read, never overwritten.

    They are told by what they are (device and inode), so that another path to them, a hard link or
    a bind mount, is left alone too; and by their paths, in case they are made anew.
    """

    def __init__(self, paths: Iterable[bytes]) -> None:
        self._given = tuple(paths)
        self._paths: frozenset[bytes] = frozenset()
        self._names: frozenset[bytes] = frozenset()
        self._identities: frozenset[Identity] = frozenset()
        self._inodes: frozenset[int] = frozenset()
        self.refresh()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to guard."""
        return not self._given

    @property
    def facts(self) -> frozenset[object]:
        """What they are told by; equal where nothing about them has changed."""
        return self._identities | self._paths

    def refresh(self) -> None:
        """Look at the files again: a Secret's files are replaced when it changes."""
        real = [os.path.realpath(path) for path in self._given]
        found: set[Identity] = set()
        for path in real:
            try:
                info = os.stat(path)
            except OSError:
                continue
            found.add((info.st_dev, info.st_ino))
        self._paths = frozenset(real)
        self._names = frozenset(os.path.basename(path) for path in real)
        self._identities = frozenset(found)
        self._inodes = frozenset(inode for _, inode in found)

    def is_own(self, identity: Identity) -> bool:
        """Return whether the thing with this (device, inode) is one of them."""
        return identity in self._identities

    def holds(self, directory: Directory, name: bytes, inode: int) -> bool:
        """Return whether `name`, scanned with `inode`, is one of them; cheap for all others."""
        if inode not in self._inodes:
            return False
        info = directory.status(name)
        return not isinstance(info, Finding) and (info.st_dev, info.st_ino) in self._identities

    def among(self, where: Descent, entries: Iterable[Stat]) -> list[bytes]:
        """Return the names of those `entries` of the current directory that are left out."""
        inodes, names = self._inodes, self._names
        return [
            entry.name
            for entry in entries
            if (entry.inode in inodes or entry.name in names)
            and self.leaves_out(where, entry.name, entry.inode)
        ]

    def leaves_out(self, where: Descent, name: bytes, inode: int) -> bool:
        """Return whether the walk is to leave out `name` in the directory it stands in."""
        if self.holds(where.current, name, inode):
            return True
        return name in self._names and joined(where.real_path(), name) in self._paths


def own_file_note(path: bytes) -> Finding:
    """Return the note that one of the agent's own files at `path` is left out."""
    return Finding(path, Reason.OWN_FILE, "the agent's own state or key; left out")

"""--delete: removing what the snapshot's directory does not have, and nothing that it hides."""

from __future__ import annotations

import os
import stat

from holdfast_agent.ports import Cancel
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.removal import MOUNTED, remove
from holdfast_agent.restore.selection import Hidden
from holdfast_agent.restore.steps import Level
from holdfast_agent.restore.tally import Tally
from holdfast_agent.restore.target import Place, Target
from holdfast_agent.snapshots.snapshot import joined
from holdfast_agent.sources.findings import Reason

_DEPTH_MAX = 200
"""Deeper directories are removed as a whole, or kept where something may be hidden in them."""
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char-device",
    stat.S_IFBLK: "block-device",
}


class Deletion:
    """Removes names of a target, or with `dry_run` only counts them."""

    def __init__(self, tally: Tally, cancel: Cancel, *, dry_run: bool) -> None:
        self._tally = tally
        self._cancel = cancel
        self._dry_run = dry_run

    def remove_extraneous(self, hidden: Hidden, level: Level) -> None:
        """Remove what stands in the directory and is not in the snapshot's.

        Nothing is removed where not all of the snapshot's names could be read.
        """
        assert level.seen is not None
        if not level.is_whole or level.spot is None or level.spot.target is None:
            return
        if self._dry_run and not level.exists:
            return
        target, place = level.target, level.place
        for name in target.directory(place).names():
            if name not in level.seen:
                self.remove(hidden, target, place, name, joined(level.path, name))

    def remove(
        self, hidden: Hidden, target: Target, place: Place, name: bytes, path: bytes, depth: int = 0
    ) -> bool:
        """Remove `name` in the directory at `place`, and all below; tell whether it is gone.

        What is hidden, another file system or the agent's own stays, and what holds it; `path` is
        the name's path as the snapshot would have it.
        """
        self._cancel.check()
        directory = target.directory(place)
        info = directory.status(name)
        if info is None:
            return True
        is_directory = stat.S_ISDIR(info.st_mode)
        if hidden.holds(path, is_directory=is_directory):
            return False
        if directory.own.is_own((info.st_dev, info.st_ino)):
            return False
        whole = depth >= _DEPTH_MAX
        if is_directory and (whole or not self._emptied(hidden, target, place, name, path, depth)):
            return whole and hidden.is_empty and self._take(target, place, name, path, info)
        return self._take(target, place, name, path, info)

    def _emptied(
        self, hidden: Hidden, target: Target, place: Place, name: bytes, path: bytes, depth: int
    ) -> bool:
        below = (*place, name)
        try:
            child = target.directory(below)
            if child.is_mount or child.device != target.directory(place).device:
                self._tally.differs(path, Reason.UNREADABLE, MOUNTED)
                return False
            names = child.names()
        except EntryFailed as failure:
            self._tally.failed(path, failure)
            return False
        gone = [
            self.remove(hidden, target, below, one, joined(path, one), depth + 1) for one in names
        ]
        return all(gone)

    def _take(
        self, target: Target, place: Place, name: bytes, path: bytes, info: os.stat_result
    ) -> bool:
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "file")
        if not self._dry_run:
            target.forget((*place, name))
            done = remove(target.directory(place), name)
            for kept in done.kept:
                self._tally.differs(
                    joined(path, kept.path) if kept.path != name else path,
                    kept.reason,
                    f"not deleted: {kept.message}",
                )
            if done.kept:
                return False
        self._tally.removed(path, kind, info.st_size if kind == "file" else 0)
        return True

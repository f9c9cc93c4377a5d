"""What a pod holds right now: the rows of `holdfast browse`."""

from __future__ import annotations

import os
from io import BytesIO
from typing import NamedTuple

from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.descent import Descent
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.findings import Finding, Reason, joined
from holdfast_agent.sources.names import Names
from holdfast_agent.sources.roots import Roots
from holdfast_agent.sources.scan import stat_of
from holdfast_agent.tree.entry import EntryType
from holdfast_contract.errors import NotFound, Refused


class LiveRow(NamedTuple):
    """One name as it is now."""

    path: bytes
    """Absolute, beginning with the root as it is configured."""
    type: EntryType
    mode: int
    """Permission bits, 0 to 0o7777."""
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    """Of a symlink."""


class LivePage(NamedTuple):
    """A part of a directory's rows."""

    rows: list[LiveRow]
    """Sorted by name."""
    more: bool
    """Whether names follow: ask again with `after` = the last row's name."""


class LiveView:
    """Looks into the roots, without following symlinks."""

    def __init__(self, roots: Roots, *, clock: FileClock, filesystems: Filesystems) -> None:
        self._roots = roots
        self._clock = clock
        self._filesystems = filesystems

    def browse(self, path: bytes, *, after: bytes = b"", rows_max: int) -> LivePage:
        """Return the entries of the directory `path`; of anything else its own row.

        An empty path lists the roots, those that exist.

        Raises:
            OutsideRoots: `path` is outside.
            NotFound: nothing is there, or something above it is no directory.
            Refused: it may not be read.
        """
        if not path:
            return LivePage(
                [row for root in self._roots.roots for row in self._own(root.shown)], False
            )
        shown = self._roots.check(path)
        opened = Descent.open(
            self._roots.real(shown), clock=self._clock, filesystems=self._filesystems
        )
        if isinstance(opened, Finding):
            return LivePage([self._single(shown, opened)], False)
        with opened as where:
            return self._page(where.current, shown, after, rows_max)

    def _page(self, directory: Directory, shown: bytes, after: bytes, rows_max: int) -> LivePage:
        names = Names(directory, BytesIO, lambda name, _: name <= after)
        try:
            if names.findings and not names.has():
                raise Refused(f"the directory cannot be read: {names.findings[0].message}")
            found = names.take(None, rows_max)
            rows = [_row(directory, name, joined(shown, name)) for name in found]
            return LivePage([row for row in rows if row is not None], names.has())
        finally:
            names.close()

    def _own(self, shown: bytes) -> list[LiveRow]:
        """Return the row of `shown` itself; none when it is not there."""
        above, _, name = self._roots.real(shown).rpartition(b"/")
        opened = Descent.open(
            above or b"/", clock=self._clock, filesystems=self._filesystems, listing=False
        )
        if isinstance(opened, Finding):
            return []
        with opened as where:
            row = _row(where.current, name or b".", shown)
            return [] if row is None else [row]

    def _single(self, shown: bytes, finding: Finding) -> LiveRow:
        """Return the row of what is no directory that can be opened, or raise what is wrong."""
        rows = self._own(shown)
        if not rows:
            raise NotFound("there is no such path now")
        if rows[0].type is EntryType.DIRECTORY or finding.reason is Reason.DENIED:
            raise Refused(f"the directory cannot be read: {finding.message}")
        return rows[0]


def _row(directory: Directory, name: bytes, path: bytes) -> LiveRow | None:
    """Return what `name` is now; None when it has vanished."""
    info = directory.status(name)
    if isinstance(info, Finding):
        return None
    entry = stat_of(directory, name, info)
    return LiveRow(
        path,
        EntryType(entry.type),
        entry.mode,
        info.st_uid,
        info.st_gid,
        entry.size,
        entry.mtime_ns,
        _target(directory, name) if entry.type == EntryType.SYMLINK else b"",
    )


def _target(directory: Directory, name: bytes) -> bytes:
    try:
        return os.readlink(name, dir_fd=directory.descriptor)
    except OSError:
        return b""

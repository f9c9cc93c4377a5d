"""What a backup counts and lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from holdfast_agent.engine.entries import EntryDraft
from holdfast_agent.engine.source import Row
from holdfast_agent.tree.entry import Content, EntryFlag, Stat
from holdfast_contract.limits import MIB, REPORTED_NAMES_MAX

_GROUPS_MAX: Final = 500_000
"""Hard-link groups remembered, about 50 MB; names beyond count their bytes each."""
_ROWS_BYTES_MAX: Final = 32 * MIB
"""Of all rows together: who shares the volume makes names as long and as many as he likes."""
_ROW_BYTES: Final = 160
"""What a row takes beside its path."""


@dataclass
class Tally:
    """Counts of one round of the walk; the words are those of the summary."""

    files: int = 0
    """Entries that are no directories, one for each name."""
    dirs: int = 0
    """Directories, implied ones not counted."""
    bytes_logical: int = 0
    """Logical bytes, once for each inode."""
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    files_skipped: int = 0
    bytes_changed: int = 0
    """Logical bytes of new and changed files: what a dry run tells."""
    rows: list[Row] = field(default_factory=list)
    more_rows: int = 0
    """Rows beyond the limit: only counted."""
    notes: list[Row] = field(default_factory=list)
    """What was left out on purpose: no skips."""
    _groups: set[bytes] = field(default_factory=set)
    _room: int = _ROWS_BYTES_MAX

    def list_row(self, row: Row) -> None:
        """Add a row to the report."""
        size = len(row.path) + _ROW_BYTES
        if len(self.rows) < REPORTED_NAMES_MAX and size <= self._room:
            self._room -= size
            self.rows.append(row)
        else:
            self.more_rows += 1

    @property
    def skipped(self) -> int:
        """Number of rows."""
        return len(self.rows) + self.more_rows

    def add_bytes(self, size: int, link_group: bytes) -> int:
        """Count a file's bytes unless another name of it was counted; return what was counted."""
        if link_group:
            if link_group in self._groups:
                return 0
            if len(self._groups) < _GROUPS_MAX:
                self._groups.add(link_group)
        self.bytes_logical += size
        return size

    def take_over(self, earlier: Tally) -> None:
        """Make this round's counts say what differs from the parent, as `earlier` found out.

        This round compared with the tree of the earlier one, not with the parent's.
        """
        known = self.files - self.files_skipped
        self.files_new = min(earlier.files_new + self.files_new, known)
        self.files_changed = min(earlier.files_changed, known - self.files_new)
        self.files_unmodified = known - self.files_new - self.files_changed


def is_unmodified(entry: EntryDraft) -> bool:
    """Tell whether content and metadata equal the parent's; every id has to be known.

    Inode and time of change alone are no modification: `cp -a` makes an equal file.
    """
    assert entry.old is not None
    stat, content = entry.old
    if stat.flags & EntryFlag.SKIPPED or _facts(entry.stat) != _facts(stat):
        return False
    if entry.parts is None:
        return entry.content == content
    if _attributes(entry.content) != _attributes(content):
        return False
    if content.spill or content.xattr_blocks:
        # What lies in blocks is not at hand: the kernel's word has to do.
        return entry.stat.ctime_ns == stat.ctime_ns
    if entry.content.content_id or content.content_id:
        return True
    return tuple(entry.parts.extents()) == content.extents


def _facts(stat: Stat) -> tuple[int, int, int, int]:
    return stat.type, stat.mode, stat.size, stat.mtime_ns


def _attributes(content: Content) -> tuple[object, ...]:
    blocks = content.xattr_blocks
    return (
        (content.uid, content.gid, content.user, content.group, content.content_id),
        (content.link_group, content.target, content.device),
        () if blocks else content.xattrs,
    )

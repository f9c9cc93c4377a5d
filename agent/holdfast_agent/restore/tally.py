"""What a restore did, or would do: counts, and one row for everything that is not as it was."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from holdfast_agent.ports import Progress
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.metadata import Loss
from holdfast_agent.snapshots.snapshot import Found, joined
from holdfast_agent.tree.entry import EntryType, Stat
from holdfast_contract import limits
from holdfast_contract.errors import Damaged
from holdfast_contract.protocol.http import path_fields

TYPE_NAMES: dict[int, str] = {
    EntryType.FILE: "file",
    EntryType.DIRECTORY: "directory",
    EntryType.SYMLINK: "symlink",
    EntryType.FIFO: "fifo",
    EntryType.SOCKET: "socket",
    EntryType.CHAR_DEVICE: "char-device",
    EntryType.BLOCK_DEVICE: "block-device",
}
"""Words of `ls`, `diff` and plans."""
_OBJECTS_NAMED_MAX = 8
_ROWS_BYTES_MAX = 16 * limits.MIB
"""Of all rows together: paths may be longer than 4,096 bytes each, a result has 64 MiB."""
_ROW_BYTES = 160
"""What a row takes beside its path."""


class Action(StrEnum):
    """What becomes of one name of the target."""

    CREATE = "create"
    OVERWRITE = "overwrite"
    METADATA = "metadata"
    """The content is right; owner, mode, times or attributes are not."""
    UNCHANGED = "unchanged"
    """All is right, or the overwrite mode leaves it alone."""
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class NotExactRow:
    """One entry that is not as in the snapshot."""

    path: bytes
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """One file that a damaged chunk touches."""

    path: bytes
    object: str
    chunk: str


@dataclass
class Tally:
    """Counts and rows of one restore; lists end at what may be relayed, the rest is counted."""

    progress: Progress
    wants_plan: bool = False
    files: int = 0
    dirs: int = 0
    logical_bytes: int = 0
    created: int = 0
    overwritten: int = 0
    unchanged: int = 0
    deleted: int = 0
    not_exact: list[NotExactRow] = field(default_factory=list)
    not_exact_count: int = 0
    damaged: list[DamagedRow] = field(default_factory=list)
    damaged_count: int = 0
    objects: list[str] = field(default_factory=list)
    """The first damaged objects, each once."""
    plan: list[dict[str, Any]] = field(default_factory=list)
    _room: int = _ROWS_BYTES_MAX

    def done(self, action: Action, found: Found, *, counts_bytes: bool = True) -> None:
        """Count one entry of the snapshot; `counts_bytes` is false for a further name of a file."""
        stat = found.entry.stat
        size = stat.size if counts_bytes else 0
        if stat.type == EntryType.DIRECTORY:
            self.dirs += 1
        else:
            self.files += 1
            self.logical_bytes += size
        if action is Action.CREATE:
            self.created += 1
        elif action is Action.UNCHANGED:
            self.unchanged += 1
        else:
            self.overwritten += 1
        self._tell(action, found.path, TYPE_NAMES[stat.type], size)
        self.progress.add(files=int(stat.type != EntryType.DIRECTORY), bytes=size, moved=1)

    def wrote(self, directory: bytes, stats: Sequence[Stat]) -> None:
        """Count new files of one directory, each a file of its own."""
        count, size = len(stats), sum([stat.size for stat in stats])
        self.files += count
        self.logical_bytes += size
        self.created += count
        if self.wants_plan:
            for stat in stats:
                path = joined(directory, stat.name)
                self._tell(Action.CREATE, path, TYPE_NAMES[stat.type], stat.size)
        self.progress.add(files=count, bytes=size, moved=count)

    def removed(self, path: bytes, kind: str, size: int) -> None:
        """Count one deleted name of the target."""
        self.deleted += 1
        self._tell(Action.DELETE, path, kind, size)
        self.progress.add(moved=1)

    def lost(self, path: bytes, losses: list[Loss]) -> None:
        """List what an entry lost."""
        for loss in losses:
            self.differs(path, loss.what, loss.message)

    def failed(self, path: bytes, failure: EntryFailed) -> None:
        """List an entry that was not restored."""
        self.differs(path, failure.reason, failure.message)

    def differs(self, path: bytes, reason: str, message: str) -> None:
        """List one thing that is not as in the snapshot."""
        self.not_exact_count += 1
        if self._has_room(self.not_exact, path):
            self.not_exact.append(NotExactRow(path, reason, message))

    def broke(self, path: bytes, damage: Damaged) -> None:
        """List what damage of stored data kept from being restored."""
        name, chunk = str(damage.details.get("object", "")), str(damage.details.get("chunk", ""))
        row = DamagedRow(path, name, chunk)
        if self.damaged and self.damaged[-1] == row:
            return
        self.damaged_count += 1
        if name and name not in self.objects and len(self.objects) < _OBJECTS_NAMED_MAX:
            self.objects.append(name)
        if self._has_room(self.damaged, path):
            self.damaged.append(row)

    def _tell(self, action: Action, path: bytes, kind: str, size: int) -> None:
        if not self.wants_plan or action is Action.UNCHANGED:
            return
        if self._has_room(self.plan, path):
            row = {"action": action.value, **path_fields(path), "type": kind, "bytes": size}
            self.plan.append(row)

    def _has_room(self, rows: Sized, path: bytes) -> bool:
        """Take the room for one more row; False when it is only to be counted."""
        size = len(path) + _ROW_BYTES
        if len(rows) >= limits.REPORTED_NAMES_MAX or size > self._room:
            return False
        self._room -= size
        return True

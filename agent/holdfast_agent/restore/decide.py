"""Deciding for one name that is no directory: create, overwrite, mend its metadata, or leave it."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable

import msgspec

from holdfast_agent.restore.comparison import (
    ContentCheck,
    gives_privilege,
    is_of_type,
    metadata_differs,
    placed,
    policy_takes_away,
    standing_of,
)
from holdfast_agent.restore.destination import Spot
from holdfast_agent.restore.failures import EntryFailed, InTheWay, Vanished
from holdfast_agent.restore.metadata import What
from holdfast_agent.restore.steps import (
    FileWork,
    Level,
    LinkGroup,
    LinkName,
    Node,
    Part,
    Piece,
    Portion,
    Step,
    Touch,
    Whole,
)
from holdfast_agent.restore.tally import Action, Tally
from holdfast_agent.restore.writer import ExistingFile
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sources.directory import Identity, open_handle, status_by_name
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, Entry, EntryType, Extent, Stat
from holdfast_contract.errors import Damaged
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import Overwrite

_PIECE_PARTS_MAX = 256
_PIECE_BYTES = 4 * MIB
_FILE = int(EntryType.FILE)
_DEVICES = (int(EntryType.CHAR_DEVICE), int(EntryType.BLOCK_DEVICE))


def leaves_alone(overwrite: Overwrite, info: os.stat_result, stat: Stat) -> bool:
    """Tell whether the mode keeps what stands there."""
    return overwrite is Overwrite.NEVER or (
        overwrite is Overwrite.IF_NEWER and info.st_mtime_ns >= stat.mtime_ns
    )


def whole_content(snapshot: Snapshot, entry: Entry) -> Content:
    """Return the content part with all attributes in it, wherever they stand.

    Raises:
        Damaged: they cannot be read.
    """
    if not entry.content.xattr_blocks:
        return entry.content
    return msgspec.structs.replace(
        entry.content, xattrs=snapshot.attributes(entry), xattr_blocks=()
    )


class Decider:
    """Compares entries with what stands in the target, and emits what has to be done."""

    def __init__(
        self,
        check: ContentCheck,
        *,
        overwrite: Overwrite,
        tally: Tally,
        emit: Callable[[Step], None],
        dry_run: bool,
    ) -> None:
        self._check = check
        self._overwrite = overwrite
        self._tally = tally
        self._emit = emit
        self._dry_run = dry_run
        self._kept: set[Identity] = set()
        """Files that stay and have further names: no second group may take them for its own."""

    # --- looking
    def stands(self, spot: Spot) -> bool:
        """Tell whether a directory is there."""
        if spot.target is None:
            return False
        try:
            spot.target.directory(spot.place)
        except EntryFailed:
            return False
        return True

    def status(self, level: Level, name: bytes) -> os.stat_result | None:
        """Return what `name` is in the directory; None when nothing is there.

        Raises:
            EntryFailed: it cannot be told.
        """
        if not level.exists:
            return None
        try:
            return level.target.directory(level.place).status(name)
        except Vanished:
            return None

    def touches_directory(self, descriptor: int, stat: Stat) -> bool:
        """Tell whether an existing directory gets the snapshot's metadata."""
        if self._overwrite is Overwrite.IF_NEWER:
            return os.fstat(descriptor).st_mtime_ns < stat.mtime_ns
        return self._overwrite is not Overwrite.NEVER

    # --- deciding
    def decide(self, portion: Portion, level: Level, found: Found) -> None:
        """Emit the steps for an entry that is no directory.

        Raises:
            EntryFailed: it cannot be restored.
            Damaged: what the snapshot says of it cannot be read.
        """
        stat, content = found.entry.stat, found.entry.content
        if stat.type in _DEVICES and not portion.policy.special:
            raise EntryFailed(What.DEVICE, "a device of another client's snapshot: left out")
        if content.xattr_blocks:
            content = whole_content(portion.snapshot, found.entry)
        work = FileWork(portion, level, found, content, Action.CREATE)
        info = self.status(level, stat.name) if level.exists else None
        if info is not None:
            work.action = Action.OVERWRITE
            if leaves_alone(self._overwrite, info, stat):
                work.action = Action.UNCHANGED
                self._emit(Touch(work, applies=False))
                return
            if modes.S_ISDIR(info.st_mode):
                self._clear(work)
                info = None
        if content.link_group and self._link(work, info):
            return
        if stat.type != _FILE:
            self._node(work, info)
        elif info is None:
            self._pieces(work, None)
        else:
            self._file(work, info)

    def _clear(self, work: FileWork) -> None:
        if work.portion.hidden is None:
            raise InTheWay("a directory is in the way; --delete would remove it")
        work.clears = True

    def _link(self, work: FileWork, info: os.stat_result | None) -> bool:
        """Emit a further name of a file; False for the first one, which is noted."""
        group = work.portion.groups.get(work.content.link_group)
        if group is None:
            work.group = LinkGroup(level=work.level, name=work.name)
            work.portion.groups[work.content.link_group] = work.group
            return False
        work.group, work.is_further = group, True
        if info is not None and group.kept == (info.st_dev, info.st_ino):
            work.action = Action.UNCHANGED
            self._emit(Touch(work, applies=False))
        else:
            self._emit(LinkName(work))
        return True

    def _may_stay(
        self, work: FileWork, descriptor: int, info: os.stat_result, *, is_handle: bool = False
    ) -> bool:
        """Tell whether the file may be this entry's: no name of something else hangs on it.

        Where it has other names, one of them may lie outside of all that may be written: such a
        file stays only if nothing of it is to be changed.
        """
        if info.st_nlink == 1:
            return True
        if work.group is None or (info.st_dev, info.st_ino) in self._kept:
            return False
        stat, policy = work.found.entry.stat, work.portion.policy
        return not policy_takes_away(stat, work.content, policy) and not metadata_differs(
            descriptor, stat, work.content, policy, is_handle=is_handle
        )

    def _keep(self, work: FileWork, info: os.stat_result) -> None:
        if work.group is not None:
            work.group.kept = work.group.written = (info.st_dev, info.st_ino)
            self._kept.add(work.group.kept)

    def _mend(self, work: FileWork, descriptor: int, *, is_handle: bool) -> None:
        """The content is right: emit what its metadata needs."""
        stat, policy = work.found.entry.stat, work.portion.policy
        info = os.fstat(descriptor)
        work.standing = standing_of(info)
        self._keep(work, info)
        if metadata_differs(descriptor, stat, work.content, policy, is_handle=is_handle):
            work.action = Action.METADATA
            self._emit(Touch(work, applies=True))
            return
        work.action = Action.UNCHANGED
        self._emit(Touch(work, applies=policy_takes_away(stat, work.content, policy)))

    # --- regular files
    def _file(self, work: FileWork, info: os.stat_result) -> None:
        if not modes.S_ISREG(info.st_mode):
            self._pieces(work, None)
            return
        directory = work.level.target.directory(work.level.place)
        existing = directory.open_existing(work.name)
        if existing is None:
            self._pieces(work, None)
            return
        with existing:
            if self._may_be_mended(work, existing) and self._is_right(work, existing):
                self._mend(work, existing.descriptor, is_handle=False)
            else:
                self._pieces(work, existing)

    def _may_be_mended(self, work: FileWork, existing: ExistingFile) -> bool:
        if not self._may_stay(work, existing.descriptor, existing.info):
            return False
        stat, policy = work.found.entry.stat, work.portion.policy
        return not gives_privilege(stat, work.content, policy) or not metadata_differs(
            existing.descriptor, stat, work.content, policy
        )

    def _is_right(self, work: FileWork, existing: ExistingFile) -> bool:
        stat, info = work.found.entry.stat, existing.info
        trusted = self._overwrite is Overwrite.IF_CHANGED
        if trusted and (info.st_size, info.st_mtime_ns) == (stat.size, stat.mtime_ns):
            return True
        return self._check.is_right(existing, work.portion.snapshot, work.found.entry)

    def _pieces(self, work: FileWork, existing: ExistingFile | None) -> None:
        content = work.content
        if existing is None and not content.spill and len(content.extents) <= 1:
            # Most files: new and in one part, of a length that decoding its page has checked.
            if content.content_id and content.extents[0].chunk != HOLE_CHUNK:
                self._emit(Whole(work, content.extents[0]))
            else:
                self._emit(Piece(work, [Part(extent, False) for extent in content.extents], True))
            return
        if not self._dry_run:
            try:
                parts = self._all_but_last(work, existing)
            except Damaged:
                # What was written of it so far goes away with the last piece.
                work.failed = True
                self._emit(Piece(work, (), is_last=True))
                raise
        else:
            parts = []
        self._emit(Piece(work, parts, is_last=True))

    def _all_but_last(self, work: FileWork, existing: ExistingFile | None) -> list[Part]:
        parts: list[Part] = []
        pending = 0
        for extent, offset in placed(work.portion.snapshot.extents(work.found.entry)):
            there = self._is_there(work, existing, extent, offset)
            length = 0 if there or extent.chunk == HOLE_CHUNK else extent.length
            if parts and (len(parts) >= _PIECE_PARTS_MAX or pending + length > _PIECE_BYTES):
                self._emit(Piece(work, parts, is_last=False))
                parts, pending = [], 0
            parts.append(Part(extent, there))
            pending += length
        return parts

    def _is_there(
        self, work: FileWork, existing: ExistingFile | None, extent: Extent, offset: int
    ) -> bool:
        if existing is None or extent.chunk == HOLE_CHUNK or work.content.content_id:
            return False
        return self._check.has_part(existing, extent, offset)

    # --- symlinks, FIFOs, sockets, devices
    def _node(self, work: FileWork, info: os.stat_result | None) -> None:
        if info is None or not is_of_type(info, work.found.entry.stat):
            self._emit(Node(work))
            return
        directory = work.level.target.directory(work.level.place)
        try:
            handle = open_handle(directory.descriptor, work.name)
        except OSError:
            self._emit(Node(work))
            return
        try:
            if self._is_same_node(work, handle):
                self._mend(work, handle, is_handle=True)
            else:
                self._emit(Node(work))
        finally:
            os.close(handle)

    def _is_same_node(self, work: FileWork, handle: int) -> bool:
        stat = work.found.entry.stat
        info = status_by_name(
            work.level.target.directory(work.level.place).descriptor, work.name, handle
        )
        if info is None or not is_of_type(info, stat):
            return False
        if not self._may_stay(work, handle, info, is_handle=True):
            return False
        if stat.type in _DEVICES:
            return info.st_rdev == work.content.device
        if stat.type != EntryType.SYMLINK:
            return True
        try:
            return os.readlink(b"", dir_fd=handle) == work.content.target
        except OSError:
            return False

"""Doing what was planned: the one place of a restore that changes the target, in one thread."""

from __future__ import annotations

import os
import stat as modes

from holdfast_agent.crypto.keys import ContentHasher, DomainKeys, content_id
from holdfast_agent.ports import Cancel
from holdfast_agent.restore.bundles import Bundles, Data
from holdfast_agent.restore.comparison import ContentCheck, metadata_differs, standing_of
from holdfast_agent.restore.deletion import Deletion
from holdfast_agent.restore.dictation import Dictation
from holdfast_agent.restore.directory import TargetDirectory
from holdfast_agent.restore.failures import KERNEL_ERRORS, EntryFailed
from holdfast_agent.restore.metadata import Loss, What, apply
from holdfast_agent.restore.nodes import make_link, make_node
from holdfast_agent.restore.pipeline import Opened, part_of
from holdfast_agent.restore.removal import remove
from holdfast_agent.restore.steps import (
    Bundle,
    Enter,
    FileWork,
    Leave,
    Level,
    LinkName,
    Node,
    Part,
    Piece,
    Step,
    Touch,
    Whole,
)
from holdfast_agent.restore.tally import Action, Tally
from holdfast_agent.restore.target import IMPLIED_MODE
from holdfast_agent.restore.writer import Writer
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Found, joined
from holdfast_agent.sources.directory import open_handle, status_by_name
from holdfast_agent.sources.findings import Reason
from holdfast_agent.tree.entry import HOLE_CHUNK, Entry, EntryType, Extent
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import ChunkType

_OWN_MODE = 0o700
"""Of a new directory until its own metadata is applied."""


class Prediction:
    """Counts what the steps would do: a dry run."""

    def __init__(self, tally: Tally, deletion: Deletion) -> None:
        self._tally = tally
        self._deletion = deletion

    def __call__(self, step: Step) -> None:
        """Count one step."""
        if isinstance(step, Enter):
            if step.level.counts:
                self._tally.done(step.level.action, step.level.found)
            return
        if isinstance(step, Bundle):
            self._tally.wrote(step.level.path, step.stats)
            return
        try:
            if isinstance(step, Leave):
                if step.portion.hidden is not None and step.level.seen is not None:
                    self._deletion.remove_extraneous(step.portion.hidden, step.level)
            elif not step.work.failed and _cleared(step.work, self._deletion):
                work = step.work
                self._tally.done(work.action, work.found, counts_bytes=not work.is_further)
        except EntryFailed as failure:
            place = step.level if isinstance(step, Leave) else step.work.found
            self._tally.failed(place.path, failure)


class Execution:
    """Executes steps; what goes wrong for one entry is listed, and the next one follows."""

    def __init__(
        self,
        tally: Tally,
        deletion: Deletion,
        *,
        keys: DomainKeys,
        reader: ChunkReader,
        check: ContentCheck,
        cancel: Cancel,
        dictation: Dictation,
    ) -> None:
        self._tally = tally
        self._deletion = deletion
        self._keys = keys
        self._reader = reader
        self._check = check
        self._bundles = Bundles(
            tally, keys, dictation, cancel, long_way=self._long_way, leave=self._leave
        )
        self._loosened: list[Level] = []
        self._writer: Writer | None = None

    def __call__(self, step: Step, opened: Opened) -> None:
        """Do one step with its chunks at hand, bundles until `settle` returns.

        Raises:
            NoSpace, Refused: the target is full or read-only.
            Cancelled: in the middle of a bundle.
        """
        if isinstance(step, Bundle):
            if not step.level.is_lost:
                self._bundles.write(step, opened.get(step.chunk))
        elif isinstance(step, Enter):
            self._enter(step.level)
        elif isinstance(step, Leave):
            self._bundles.leave(step)
        elif not step.work.level.is_lost:
            self._entry(step, opened)

    def settle(self) -> None:
        """Do what was begun: chunks of earlier steps are not needed any more once this returns.

        Raises:
            NoSpace, Refused, Cancelled: as for one step.
        """
        self._bundles.settle()

    def close(self) -> None:
        """Remove an unfinished file, and give directories back the modes they had."""
        self._bundles.close()
        if self._writer is not None:
            self._writer.abort()
        for level in self._loosened:
            self._tighten(level)

    # --- directories
    def _enter(self, level: Level) -> None:
        if level.is_lost:
            return
        try:
            if level.clears:
                remove(level.target.directory(level.place[:-1]), level.place[-1])
            mode = _OWN_MODE if level.is_own else IMPLIED_MODE
            directory = level.target.directory(level.place, create=True, mode=mode)
            level.was_created = directory.created and not level.exists
            if level.exists:
                self._open_existing(level, directory)
        except EntryFailed as failure:
            level.failed = True
            self._tally.failed(level.path, failure)
            return
        if level.counts:
            self._tally.done(level.action, level.found)

    def _open_existing(self, level: Level, directory: TargetDirectory) -> None:
        former = modes.S_IMODE(os.fstat(directory.descriptor).st_mode)
        if directory.allow_writing():
            level.former_mode = former
            self._loosened.append(level)
        directory.remove_leftovers()

    def _leave(self, step: Leave) -> None:
        level = step.level
        if level.is_lost:
            return
        try:
            if step.portion.hidden is not None and level.seen is not None:
                self._deletion.remove_extraneous(step.portion.hidden, level)
            self._give_metadata(step)
        except EntryFailed as failure:
            self._tally.failed(level.path, failure)

    def _give_metadata(self, step: Leave) -> None:
        level, policy = step.level, step.portion.policy
        stat, content = level.found.entry.stat, level.content
        directory = level.target.directory(level.place)
        applies = level.counts and (level.was_created or not level.exists or level.touches)
        if level.former_mode is not None:
            self._tighten(level)
            self._loosened.remove(level)
        if applies and (
            not level.exists
            or metadata_differs(directory.descriptor, stat, content, policy)
            or not policy.special
        ):
            self._tally.lost(level.path, directory.apply(stat, content, policy))

    def _tighten(self, level: Level) -> None:
        assert level.former_mode is not None
        try:
            os.fchmod(level.target.directory(level.place).descriptor, level.former_mode)
        except (OSError, EntryFailed):
            return

    # --- entries
    def _entry(self, step: Whole | Piece | LinkName | Node | Touch, opened: Opened) -> None:
        work = step.work
        try:
            if isinstance(step, Whole):
                self._whole(work, step.extent, opened)
            elif isinstance(step, Piece):
                self._piece(step, opened)
            elif isinstance(step, LinkName):
                self._link(work)
            elif isinstance(step, Node):
                self._node(work)
            else:
                self._touch(step)
        except EntryFailed as failure:
            self._give_up(work)
            self._tally.failed(work.found.path, failure)
        except Damaged as damage:
            self._give_up(work)
            self._tally.broke(work.found.path, damage)

    def _give_up(self, work: FileWork) -> None:
        work.failed = True
        if work.writer is not None:
            work.writer.abort()
            work.writer = self._writer = None

    def _counted(self, work: FileWork) -> None:
        self._tally.done(work.action, work.found, counts_bytes=not work.is_further)

    def _home(self, work: FileWork) -> TargetDirectory:
        return work.level.target.directory(work.level.place)

    def _long_way(self, bundle: Bundle, number: int, data: Data) -> None:
        """Write a file of a bundle like one that is none of its files, or tell why not."""
        stat, content = bundle.stats[number], bundle.contents[number]
        found = Found(joined(bundle.level.path, stat.name), Entry(stat, content))
        work = FileWork(bundle.portion, bundle.level, found, content, Action.CREATE)
        opened: Opened = {} if data is None else {bundle.chunk: data}
        self._entry(Whole(work, content.extents[0]), opened)

    def _whole(self, work: FileWork, extent: Extent, opened: Opened) -> None:
        """Write a file of one part, and give it its name if that is its content."""
        if not _cleared(work, self._deletion):
            raise EntryFailed(Reason.REPLACED, "a directory is in the way")
        content = work.content
        data = part_of(opened.get(extent.chunk) or self._fetched(extent), extent)
        writer = work.writer = self._writer = self._home(work).create_file(work.name)
        # Copied first, then hashed: another core has opened it, and the copy fetches it faster.
        writer.write(data, 0)
        if (
            extent.length != work.found.entry.stat.size
            or content_id(self._keys, data) != content.content_id
        ):
            raise _wrong_content(work)
        self._named(work, writer)

    def _piece(self, step: Piece, opened: Opened) -> None:
        work = step.work
        if work.failed:
            self._give_up(work)
            return
        if work.writer is None:
            if not _cleared(work, self._deletion):
                raise EntryFailed(Reason.REPLACED, "a directory is in the way")
            work.writer = self._writer = self._home(work).create_file(work.name)
            work.hasher = ContentHasher(self._keys) if work.content.content_id else None
        for part in step.parts:
            self._part(work, work.writer, part, opened)
        if step.is_last:
            self._finish(work, work.writer)

    def _part(self, work: FileWork, writer: Writer, part: Part, opened: Opened) -> None:
        extent = part.extent
        if extent.chunk == HOLE_CHUNK:
            if work.hasher is not None:
                work.hasher.hole(extent.length)
        elif not (part.is_there and self._cloned(work, writer, extent)):
            data = part_of(opened.get(extent.chunk) or self._fetched(extent), extent)
            writer.write(data, work.offset)
            if work.hasher is not None:
                work.hasher.update(data)
        work.offset += extent.length
        self._tally.progress.add(moved=extent.length)

    def _fetched(self, extent: Extent) -> bytes:
        """The existing file has changed since it was compared: the chunk is needed after all."""
        return self._reader.read_one(ChunkType.CONTENT, extent.chunk)

    def _cloned(self, work: FileWork, writer: Writer, extent: Extent) -> bool:
        """Copy a part from the existing file; what counts is what then stands in the new one."""
        existing = self._home(work).open_existing(work.name)
        if existing is None:
            return False
        with existing:
            try:
                writer.clone(existing, work.offset, extent.length)
            except EntryFailed:
                return False
        return self._check.range_id(writer, work.offset, extent.length) == extent.chunk

    def _finish(self, work: FileWork, writer: Writer) -> None:
        stat = work.found.entry.stat
        if work.hasher is not None and work.hasher.digest() != work.content.content_id:
            raise _wrong_content(work)
        if work.offset != stat.size:
            raise _wrong_content(work)
        self._named(work, writer)

    def _named(self, work: FileWork, writer: Writer) -> None:
        """Give a file whose content is right its metadata, and its name."""
        stat = work.found.entry.stat
        losses = writer.finish(stat.size, stat, work.content, work.portion.policy)
        identity = None if work.group is None else writer.identity()
        writer.commit()
        work.writer = self._writer = None
        if work.group is not None:
            work.group.written = identity
            work.group.level, work.group.name = work.level, work.name
        self._counted(work)
        if losses:
            self._tally.lost(work.found.path, losses)

    def _link(self, work: FileWork) -> None:
        group = work.group
        assert group is not None and group.level is not None
        if not _cleared(work, self._deletion):
            raise EntryFailed(Reason.REPLACED, "a directory is in the way")
        work.clears = False
        if group.written is not None:
            try:
                source = group.level.target.directory(group.level.place)
                kind = EntryType(work.found.entry.stat.type)
                make_link(self._home(work), work.name, source, group.name, group.written, kind)
                self._counted(work)
                return
            except EntryFailed as failure:
                self._tally.differs(
                    work.found.path, What.LINK, f"a file of its own: {failure.message}"
                )
        # Nothing to link to: this name is written, and the next ones are linked to it.
        if work.found.entry.stat.type == EntryType.FILE:
            self._piece(self._all_of(work), {})
        else:
            self._node(work)

    def _all_of(self, work: FileWork) -> Piece:
        extents = work.portion.snapshot.extents(work.found.entry)
        return Piece(work, [Part(extent, is_there=False) for extent in extents], is_last=True)

    def _node(self, work: FileWork) -> None:
        if not _cleared(work, self._deletion):
            raise EntryFailed(Reason.REPLACED, "a directory is in the way")
        stat = work.found.entry.stat
        made = make_node(self._home(work), stat, work.content, work.portion.policy)
        if work.group is not None:
            work.group.written = made.identity
            work.group.level, work.group.name = work.level, work.name
        self._counted(work)
        self._tally.lost(work.found.path, made.losses)

    def _touch(self, step: Touch) -> None:
        work = step.work
        if step.applies:
            self._tally.lost(work.found.path, self._touched(work))
        self._counted(work)

    def _touched(self, work: FileWork) -> list[Loss]:
        stat, home = work.found.entry.stat, self._home(work)
        home.guard(work.name)
        if stat.type == EntryType.FILE:
            existing = home.open_existing(work.name)
            if existing is None:
                raise _exchanged()
            with existing:
                return self._applied(work, existing.descriptor, is_handle=False)
        with KERNEL_ERRORS:
            handle = open_handle(home.descriptor, work.name)
        try:
            return self._applied(work, handle, is_handle=True)
        finally:
            os.close(handle)

    def _applied(self, work: FileWork, descriptor: int, *, is_handle: bool) -> list[Loss]:
        with KERNEL_ERRORS:
            info = status_by_name(self._home(work).descriptor, work.name, descriptor)
            if info is None:
                raise _exchanged()
            if standing_of(info) != work.standing or info.st_nlink != 1:
                raise _exchanged()
            stat, policy = work.found.entry.stat, work.portion.policy
            return apply(descriptor, stat, work.content, policy, is_handle=is_handle)


def _exchanged() -> EntryFailed:
    return EntryFailed(Reason.CHANGED, "it was exchanged while it was restored")


def _cleared(work: FileWork, deletion: Deletion) -> bool:
    """Remove the directory in the way; True when there is none (any more)."""
    if not work.clears:
        return True
    assert work.portion.hidden is not None
    level = work.level
    path = joined(level.path, work.name)
    return deletion.remove(work.portion.hidden, level.target, level.place, work.name, path)


def _wrong_content(work: FileWork) -> Damaged:
    extents = work.found.entry.content.extents
    chunk = extents[0].chunk.hex() if extents else ""
    return Damaged("the content is not the file's", object=chunk, chunk=chunk, reason="content-id")

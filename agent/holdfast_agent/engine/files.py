"""The content of one regular file: already known, bundled with others, or cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from holdfast_agent.crypto.keys import ContentHasher, content_id
from holdfast_agent.engine.bundles import Bundler
from holdfast_agent.engine.content_index import BundledFiles, PageContents
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.cutting import LargeFile
from holdfast_agent.engine.drafts import ChunkDraft, Part, Parts, holes_of, parts_of
from holdfast_agent.engine.entries import EntryDraft, OldEntry
from holdfast_agent.engine.memory import Slab, SlabPool
from holdfast_agent.engine.rehash import OldContent, Rehashing, old_chunks
from holdfast_agent.engine.runs import DataRuns
from holdfast_agent.engine.shipping import Piece, Shipping
from holdfast_agent.engine.source import Reader
from holdfast_agent.tree.block import extents_of
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, EntryType, Extent, Stat
from holdfast_agent.tree.known import KnownTree
from holdfast_agent.tree.page import Page
from holdfast_contract.errors import Cancelled, HoldfastError, NotFound
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.ids import ChunkId
from holdfast_contract.logs import get_logger

_log = get_logger(__name__)
_TOLD_BYTES: Final = 256 * 1024
"""Read in small files before the progress is told."""
PLAIN_BYTES_MAX: Final = 128 * 1024
"""Small files that are read in one go, into memory that stays in the core's cache: they are hashed
there before they are copied into a bundle. A larger one is read into the bundle alone."""
_replaced: Final = msgspec.structs.replace


class FileContent(NamedTuple):
    """What was read."""

    parts: Parts
    content_id: bytes
    size: int
    """Logical bytes; other than the file's size only where it changed meanwhile."""
    is_parents: bool = False
    """A large file that came out chunk by chunk as the parent has it."""


class FileContents:
    """Reads files for one backup and ships what is not known of them."""

    def __init__(
        self,
        context: BackupContext,
        shipping: Shipping,
        known: KnownTree,
        bundled: BundledFiles,
        avoid: frozenset[bytes],
    ) -> None:
        self._keys = context.keys
        self.small_max = context.small_file_bytes_max
        """Files up to this size are bundled."""
        self._shipping = shipping
        self._known = known
        self._bundled = bundled
        self._cutter = context.cutter
        self._trees = context.trees
        self._relatives = context.relatives
        self._finds_stored = known.has_contents() or not (
            context.relatives is None or context.relatives.is_empty
        )
        """Whether a small file can be one that is stored: what nobody knows is not asked for."""
        self._rehashing = Rehashing(context.keys, context.workers)
        self._cancel = context.cancel
        self._progress = context.progress
        plan = context.plan
        self._slabs = SlabPool(plan.slabs, plan.slab_bytes)
        bundle_slabs = SlabPool(plan.bundles, plan.bundle_bytes)
        self._bundler = Bundler(
            bytes_max=plan.bundle_bytes,
            get_slab=lambda: bundle_slabs.get(self._cancel, shipping.hurry),
            submit=self._submit,
        )
        self._batch = memoryview(bytearray(PLAIN_BYTES_MAX))
        self._pages = PageContents()
        self._untold = 0
        """Bytes of small files that the progress has not been told."""
        self.avoid = avoid
        """Chunks that nothing may refer to unless they are sent again."""

    @property
    def bundles_made(self) -> list[tuple[ChunkDraft, int]]:
        """Every bundle so far, with its length."""
        return self._bundler.made

    def close_bundle(self) -> None:
        """End the open bundle: ids in it are waited for."""
        self._tell()
        self._bundler.close()

    def read(self, reader: Reader, old: OldEntry | None) -> FileContent:
        """Return the content of an open file, shipped where it is not known.

        Raises:
            Unreadable: reading failed in the middle.
            Cancelled, or the first error of the shipping threads.
        """
        size = reader.entry.size
        if size == 0:
            return FileContent(Parts(), b"", 0)
        if size <= self.small_max:
            return self._read_small(reader, size, old)
        return self._read_large(reader, size, old)

    # --- small files ---
    def room(self, size: int) -> memoryview:
        """Return a buffer for small files of `size` bytes together, to be given to `keep_plain`."""
        return self._batch[:size] if size <= PLAIN_BYTES_MAX else self._bundler.room(size)

    def keep_plain(
        self,
        stats: Sequence[Stat],
        contents: Sequence[Content],
        data: memoryview,
        old: OldEntry | None = None,
    ) -> list[EntryDraft]:
        """Return the entries of files without holes that were read into `room` one after the other.

        `contents` are owners and attributes of as many of them as were read. Nearly every file that
        a first backup reads comes here: few calls, nothing made in vain.
        """
        drafts: list[EntryDraft] = []
        key, find = self._keys.content, self._bundled.find
        finds_stored, add = self._finds_stored, self._bundled.add
        keep = self._bundler.put if len(data) <= PLAIN_BYTES_MAX else self._bundler.keep
        at = 0
        for stat, content in zip(stats, contents, strict=False):
            size = stat.size
            if not size:
                drafts.append(EntryDraft(stat, content, None, None, old))
                continue
            plain = data[at : at + size]
            at += size
            found = blake3(plain, key=key).digest()
            if old is not None and self._fits(old[1], found, ()):
                parts = parts_of(old[1].extents)
            elif (part := find(found)) is not None:
                parts = Parts((part,))
            elif finds_stored and (stored := self._find_stored(found, size, ())) is not None:
                parts = parts_of(stored.extents)
            else:
                draft, offset = keep(plain, found)
                add(found, draft, offset, size)
                parts = Parts(((draft, offset, size),))
            drafts.append(EntryDraft(stat, _replaced(content, content_id=found), parts, None, old))
        self._untold += at
        if self._untold >= _TOLD_BYTES:
            self._tell()
        return drafts

    def _tell(self) -> None:
        if self._untold:
            self._progress.add(bytes=self._untold)
            self._untold = 0

    def _read_small(self, reader: Reader, size: int, old: OldEntry | None) -> FileContent:
        buffer = self._bundler.room(size)
        runs: list[tuple[int, int]] = []
        filled = 0
        for offset, length in reader.data_runs():
            whole = length == size
            got = reader.read_into(buffer if whole else buffer[filled : filled + length], offset)
            if got:
                runs.append((offset, got))
            filled += got
            if got < length:
                size = offset + got
                break
        self._progress.add(bytes=size, moved=1)
        if size == 0:
            return FileContent(Parts(), b"", 0)
        if filled == size:
            found = content_id(self._keys, buffer[:size])
            holes: tuple[tuple[int, int], ...] = ()
        else:
            found = self._content_id(buffer[:filled], runs, size)
            holes = _holes_between(runs, size)
        parts = self._find(found, holes, old, size)
        if parts is None:
            parts = self._bundle(found, runs, size, buffer[:filled])
        return FileContent(parts, found, size)

    def _content_id(self, data: memoryview, runs: list[tuple[int, int]], size: int) -> bytes:
        hasher = ContentHasher(self._keys)
        position = used = 0
        for offset, length in runs:
            hasher.hole(offset - position)
            hasher.update(data[used : used + length])
            used += length
            position = offset + length
        hasher.hole(size - position)
        return hasher.digest()

    def _bundle(
        self, found: bytes, runs: list[tuple[int, int]], size: int, data: memoryview
    ) -> Parts:
        if not data:
            return Parts(((HOLE_CHUNK, 0, size),))
        draft, at = self._bundler.keep(data, found)
        if len(data) == size:
            self._bundled.add(found, draft, at, size)
            return Parts(((draft, at, size),))
        parts: list[Part] = []
        position = 0
        for offset, length in runs:
            if offset > position:
                parts.append((HOLE_CHUNK, 0, offset - position))
            parts.append((draft, at, length))
            at += length
            position = offset + length
        if position < size:
            parts.append((HOLE_CHUNK, 0, size - position))
        return Parts(parts)

    # --- what is known already ---
    def _find(
        self, found: bytes, holes: tuple[tuple[int, int], ...], old: OldEntry | None, size: int
    ) -> Parts | None:
        """Return where this content lies already, with the same holes; never in `avoid`."""
        if old is not None and self._fits(old[1], found, holes):
            return parts_of(old[1].extents)
        if not holes:
            part = self._bundled.find(found)
            if part is not None:
                return Parts((part,))
        stored = self._find_stored(found, size, holes) if self._finds_stored else None
        return None if stored is None else parts_of(stored.extents)

    def _find_stored(
        self, found: bytes, size: int, holes: tuple[tuple[int, int], ...]
    ) -> Content | None:
        """Return the content part of a file of the parent, or of a reference, that fits."""

        def fits(content: Content) -> bool:
            return self._fits(content, found, holes)

        content = self._pages.find(found, fits)
        if content is not None:
            return content
        for row in self._known.rows_with_content(found):
            content = self._pages.find_in(row, found, fits, self._page)
            if content is not None:
                return content
        return None if self._relatives is None else self._relatives.find(found, size, fits)

    def _fits(self, content: Content, found: bytes, holes: tuple[tuple[int, int], ...]) -> bool:
        return (
            content.content_id == found
            and not content.spill
            and holes_of(content.extents) == holes
            and not self.touches_avoid(content.extents)
        )

    def touches_avoid(self, extents: tuple[Extent, ...]) -> bool:
        """Tell whether one of the extents lies in a chunk that is to be avoided."""
        return bool(self.avoid) and any(extent.chunk in self.avoid for extent in extents)

    def _page(self, row: int) -> Page | None:
        known = self._known.page(row)
        return None if known is None else known.decoded()

    # --- large files ---
    def _read_large(self, reader: Reader, size: int, old: OldEntry | None) -> FileContent:
        before = frozenset[bytes]()
        if old is not None and not old[1].spill:
            before = frozenset(extent.chunk for extent in old[1].extents) - self.avoid
        runs = DataRuns(reader.data_runs())
        old_content = None if old is None else self._old_content(reader, runs, old)
        large = LargeFile(
            self._counted(reader.read_into),
            runs,
            cutter=self._cutter,
            get_slab=lambda: self._slabs.get(self._cancel, self._shipping.hurry),
            ship=lambda draft, data, slab: self._submit(draft, data, slab, before),
            old=old_content,
        )
        try:
            large.read(size)
        finally:
            # The file is closed next: no thread may still read it.
            if old_content is not None:
                old_content.end()
        self._progress.add(bytes=large.bytes_kept)
        is_parents = (
            old is not None
            and old_content is not None
            and old_content.is_used_up
            and not (large.is_cut or self.avoid)
            and large.size == old[0].size
        )
        return FileContent(large.parts, b"", large.size, is_parents)

    def _old_content(self, reader: Reader, runs: DataRuns, old: OldEntry) -> OldContent | None:
        """Return what the parent has of a large file, None where it has nothing that could fit."""
        stat, content = old
        if stat.type != EntryType.FILE or content.content_id or not content.extents:
            return None

        def read_into(buffer: memoryview, offset: int) -> int:
            self._cancel.check()
            self._progress.add(moved=1)
            return reader.read_into(buffer, offset)

        return OldContent(
            old_chunks(self._old_extents(stat, content)),
            self._rehashing,
            read_into=read_into,
            runs=runs,
            avoid=self.avoid,
        )

    def _old_extents(self, stat: Stat, content: Content) -> Iterator[Extent]:
        """Yield the parent's extents of a file, as far as they can be read."""
        if not content.spill:
            yield from content.extents
            return
        try:
            yield from extents_of(stat, content, self._block)
        except HoldfastError as exc:
            if isinstance(exc, Cancelled):
                raise
            _log.info("a list of old extents cannot be read: cut anew", reason=exc.message)

    def _block(self, extent: Extent) -> tuple[Buffer, ChunkId, int]:
        if self._trees is None:
            raise NotFound("no trees can be read")
        return self._trees.read_part(extent), ChunkId(extent.chunk), extent.offset

    def close(self) -> None:
        """End the threads that hash old chunks."""
        self._rehashing.close()

    def _counted(
        self, read_into: Callable[[memoryview, int], int]
    ) -> Callable[[memoryview, int], int]:
        def read(buffer: memoryview, offset: int) -> int:
            self._cancel.check()
            got = read_into(buffer, offset)
            self._progress.add(bytes=got, moved=1)
            return got

        return read

    def _submit(
        self,
        draft: ChunkDraft,
        data: memoryview,
        slab: Slab,
        known: frozenset[bytes] = frozenset(),
    ) -> None:
        self._shipping.submit(Piece(ChunkType.CONTENT, draft, data, slab.let_go, known))


def _holes_between(runs: list[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of what lies between and behind the runs."""
    holes = []
    position = 0
    for offset, length in runs:
        if offset > position:
            holes.append((position, offset - position))
        position = offset + length
    if position < size:
        holes.append((position, size - position))
    return tuple(holes)

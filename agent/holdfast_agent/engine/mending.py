"""Chunks that the store has lost, made again from what they were made of and sent once more.

The parent's tree tells which parts of which files a bundle or a piece of a large file holds, and
the cached pages are what a tree chunk holds. Where all of it is still the same the id comes out the
same, and every snapshot that needs the chunk is whole again. The walk alone would often store the
same files in other bundles and groups: enough for the new snapshot, of no use to the older ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.drafts import ChunkDraft
from holdfast_agent.engine.memory import Slab, SlabPool
from holdfast_agent.engine.paging import path_below
from holdfast_agent.engine.shipping import Piece, Shipping
from holdfast_agent.engine.source import Place, Source, Unreadable
from holdfast_agent.tree.entry import EntryType
from holdfast_agent.tree.known import KnownPage, KnownTree, KnownTreeLost
from holdfast_agent.tree.page import decode_page, page_ids
from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX

_PARTS_MAX: Final = 32_768
"""Parts remembered at once, about 10 MB; chunks beyond are left to the walk and the next time."""
_SLABS: Final = 2
"""One is sent while the next is filled; the walk, which needs its own, has not begun."""


class _Part(NamedTuple):
    """Where bytes of a lost chunk can be had; sorts by their place in the chunk."""

    offset: int
    length: int
    path: bytes
    """The file that has them; empty: they are a cached page."""
    source: int
    """Position in the file, or number of the page."""


def mend(
    context: BackupContext,
    source: Source,
    shipping: Shipping,
    known: KnownTree,
    lost: frozenset[bytes],
) -> frozenset[bytes]:
    """Send what can be made again of the chunks `lost`; return their ids: they are durable now.

    Raises:
        KnownTreeLost: the cache broke on the way.
        Cancelled, or the first error of the shipping threads.
    """
    if not lost:
        return frozenset()
    pool = SlabPool(_SLABS, CHUNK_PLAIN_BYTES_MAX)
    mended = set()
    for chunk, parts in _plan(known, lost).items():
        context.cancel.check()
        slab = pool.get(context.cancel, shipping.hurry)
        kind = ChunkType.CONTENT if parts[0].path else ChunkType.TREE
        data = slab.view[: _fill(slab, sorted(parts), source, known)]
        if not data or chunk_id(context.keys, kind, data) != chunk:
            slab.let_go()
            continue
        draft = ChunkDraft()
        draft.id = chunk
        shipping.submit(Piece(kind, draft, data, slab.let_go))
        context.progress.add(moved=1)
        mended.add(chunk)
    shipping.flush()
    return frozenset(mended)


def _plan(known: KnownTree, lost: frozenset[bytes]) -> dict[bytes, list[_Part]]:
    """Return of what each lost chunk consists, as far as the parent's tree tells."""
    plan: dict[bytes, list[_Part]] = {}
    count = 0
    for page, directory in known.everything():
        found = []
        if page.chunk in lost:
            found.append((page.chunk, _Part(page.offset, len(page.data), b"", page.row)))
        if not lost.isdisjoint(page_ids(page.data)):
            found += _parts_in(page, directory, lost)
        count += len(found)
        if count > _PARTS_MAX:
            break
        for chunk, part in found:
            plan.setdefault(chunk, []).append(part)
    return plan


def _parts_in(
    page: KnownPage, directory: bytes, lost: frozenset[bytes]
) -> list[tuple[bytes, _Part]]:
    try:
        decoded = decode_page(page.data, ChunkId(page.chunk), page.offset)
    except HoldfastError as exc:
        raise KnownTreeLost("a cached page cannot be decoded") from exc
    found = []
    for stat, content in zip(decoded.stats, decoded.contents, strict=True):
        # Extents in blocks are not in the cache: such files are left to the walk.
        if stat.type != EntryType.FILE or content.spill:
            continue
        path, position = path_below(directory, stat.name), 0
        for extent in content.extents:
            if extent.chunk in lost:
                part = _Part(extent.offset, extent.length, path, position)
                found.append((extent.chunk, part))
            position += extent.length
    return found


def _fill(slab: Slab, parts: Sequence[_Part], source: Source, known: KnownTree) -> int:
    """Put the parts in their places; return the bytes from the start without a gap, 0: no use."""
    end = 0
    for part in parts:
        if part.offset > end:
            return 0
        if part.offset + part.length <= end:
            continue
        room = slab.view[part.offset : part.offset + part.length]
        if len(room) != part.length or not _read(room, part, source, known):
            return 0
        end = part.offset + part.length
    return end


def _read(room: memoryview, part: _Part, source: Source, known: KnownTree) -> bool:
    """Fill `room`; tell whether all of it could be had."""
    if not part.path:
        page = known.page(part.source)
        if page is None or len(page.data) != len(room):
            return False
        room[:] = page.data
        return True
    try:
        return _read_file(room, part, source)
    except Unreadable:
        return False


def _read_file(room: memoryview, part: _Part, source: Source) -> bool:
    top = next((top for top in source.tops() if _is_below(part.path, top)), None)
    if top is None:
        return False
    place = source.open_top(top)
    try:
        names = part.path.removeprefix(place.path().rstrip(b"/")).strip(b"/").split(b"/")
        if not all(place.enter(name) for name in names[:-1]):
            return False
        return _read_open(room, part.source, place, names[-1])
    finally:
        source.close_top(place)


def _read_open(room: memoryview, position: int, place: Place, name: bytes) -> bool:
    stat = place.look(name)
    if stat.type != EntryType.FILE:
        return False
    reader = place.open(stat)
    try:
        return reader.read_into(room, position) == len(room)
    finally:
        reader.close()


def _is_below(path: bytes, top: bytes) -> bool:
    return top in (path, b"/") or path.startswith(top + b"/")

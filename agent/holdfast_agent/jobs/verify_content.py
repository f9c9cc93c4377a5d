"""Content of files held against what a snapshot says of it; its chunks are fetched ahead."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from holdfast_agent.crypto.keys import ContentHasher, DomainKeys, content_id
from holdfast_agent.ports import Cancel
from holdfast_agent.restore.pipeline import Need, Opened, Pipeline, batch_bytes, part_of
from holdfast_agent.restore.tally import Tally
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, Extent, Stat
from holdfast_contract.errors import Damaged
from holdfast_contract.limits import MIB

_PART_EXTENTS_MAX: Final = 256
_PART_BYTES: Final = 4 * MIB


class _File(msgspec.Struct, eq=False):
    """A file under way; its parts share it."""

    path: bytes
    stat: Stat
    content: Content
    hasher: ContentHasher | None
    offset: int = 0
    is_broken: bool = False


class _Part(msgspec.Struct, frozen=True):
    """Some extents of a file, in order."""

    file: _File
    extents: Sequence[Extent]
    is_last: bool


class ContentProof:
    """Takes files in the order of the walk and opens every chunk of them, two batches ahead.

    A context manager; `finish` before its end looks at what is left. Damage goes to the tally,
    once for each file: a damaged chunk does not keep the others from being opened.
    """

    def __init__(
        self, keys: DomainKeys, snapshot: Snapshot, tally: Tally, *, cancel: Cancel, memory_max: int
    ) -> None:
        self._keys = keys
        self._snapshot = snapshot
        self._tally = tally
        self._pipeline = Pipeline(
            snapshot.chunks, _need_of, self._check, cancel=cancel, bytes_max=batch_bytes(memory_max)
        )

    @property
    def chunks(self) -> int:
        """So many were asked for: one that lies in files far apart counts again."""
        return self._pipeline.chunks

    def put(self, found: Found, *, is_broken: bool) -> None:
        """Take the next regular file; now and then this looks at earlier ones.

        `is_broken`: it is in the tally already, and its chunks are opened all the same.

        Raises:
            Cancelled: somebody asked for the end.
        """
        content = found.entry.content
        extents: Sequence[Extent] = content.extents
        is_short = not content.spill and len(extents) <= 1
        is_hashed_once = is_short and HOLE_CHUNK not in (extent.chunk for extent in extents)
        hasher = ContentHasher(self._keys) if content.content_id and not is_hashed_once else None
        file = _File(found.path, found.entry.stat, content, hasher, is_broken=is_broken)
        if not is_short:
            try:
                extents = self._all_but_last(file, found)
            except Damaged as damage:
                self._break(file, damage)
                extents = ()
        self._pipeline.put(_Part(file, extents, True))

    def finish(self) -> None:
        """Look at everything that was put.

        Raises:
            Cancelled: somebody asked for the end.
        """
        self._pipeline.drain()

    def _all_but_last(self, file: _File, found: Found) -> list[Extent]:
        extents: list[Extent] = []
        pending = 0
        for extent in self._snapshot.extents(found.entry):
            length = 0 if extent.chunk == HOLE_CHUNK else extent.length
            is_full = len(extents) >= _PART_EXTENTS_MAX or pending + length > _PART_BYTES
            if extents and is_full:
                self._pipeline.put(_Part(file, extents, False))
                extents, pending = [], 0
            extents.append(extent)
            pending += length
        return extents

    # --- looking at what has come
    def _check(self, part: _Part, opened: Opened) -> None:
        file, progress = part.file, self._tally.progress
        if not file.is_broken:
            try:
                self._check_part(part, opened)
            except Damaged as damage:
                self._break(file, damage)
        if part.is_last:
            progress.add(files=1, bytes=file.stat.size)
        else:
            progress.add(moved=1)

    def _check_part(self, part: _Part, opened: Opened) -> None:
        file = part.file
        hasher, wanted = file.hasher, file.content.content_id
        for extent in part.extents:
            file.offset += extent.length
            if extent.chunk == HOLE_CHUNK:
                if hasher is not None:
                    hasher.hole(extent.length)
                continue
            data = part_of(opened[extent.chunk], extent)
            if hasher is not None:
                hasher.update(data)
            elif wanted and content_id(self._keys, data) != wanted:
                raise _wrong_content(file)
        if part.is_last and (
            file.offset != file.stat.size or (hasher is not None and hasher.digest() != wanted)
        ):
            raise _wrong_content(file)

    def _break(self, file: _File, damage: Damaged) -> None:
        if not file.is_broken:
            file.is_broken = True
            self._tally.broke(file.path, damage)

    def __enter__(self) -> Self:
        self._pipeline.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipeline.__exit__(kind, error, trace)


def _need_of(part: _Part) -> Need:
    return Need(
        [
            (extent.chunk, extent.offset + extent.length)
            for extent in part.extents
            if extent.chunk != HOLE_CHUNK
        ]
    )


def _wrong_content(file: _File) -> Damaged:
    extents = file.content.extents
    chunk = extents[0].chunk.hex() if extents else ""
    return Damaged("the content is not the file's", object=chunk, chunk=chunk)

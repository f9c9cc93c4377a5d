"""Small files of another replica of the workload: found by content, never stored again.

The server names a relative's snapshot (or one of the client's own, of other paths); this side
believes the manifest's MAC and signature, and checks client and workload. The tree is fetched when
so much is unknown that it pays, and only content ids are kept of it. What is found in it is what
its writer says: restore makes each file's content id anew, so that a relative who lies damages a
file and never forges one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import islice
from typing import BinaryIO, Final

from holdfast_agent.engine.content_index import Fits, PageContents
from holdfast_agent.engine.hints import ContentHints
from holdfast_agent.ports import Cancel, Progress
from holdfast_agent.snapshots.outline import outlines
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sorting import OpenSpool
from holdfast_agent.tree.entry import Content, Extent
from holdfast_agent.tree.page import Page, decode_page
from holdfast_contract.errors import (
    Damaged,
    InvalidInput,
    NotFound,
    Refused,
    UnsupportedVersion,
)
from holdfast_contract.ids import ChunkId, ClientName
from holdfast_contract.limits import MIB
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol.control import Reference

_log = get_logger(__name__)

UNKNOWN_BYTES_MIN: Final = 8 * MIB
"""So much of small files must be unknown before a relative's tree, about a hundredth of what it
describes, is worth fetching."""
_UNKNOWN_BYTES_FIRST: Final = MIB
"""The same where all of it is backed up for the first time, for every reference but the first."""
_REFERENCES_MAX: Final = 4
_PAGE = struct.Struct("<32sII")
_CANDIDATES_MAX: Final = 8
"""Pages opened for one file: equal contents may stand in thousands of them."""
_UNREADABLE: Final = (Damaged, NotFound, InvalidInput, UnsupportedVersion)


def check_references(own: str, references: Sequence[Reference]) -> None:
    """Return if every reference claims to be a snapshot of this client or of its workload.

    Raises:
        Refused: one is of another.
    """
    for reference in references:
        _check_client(own, reference.client, reference.snapshot)


def _check_client(own: str, client: str, snapshot: bytes) -> None:
    try:
        named, ours = ClientName.parse(client), ClientName.parse(own)
    except InvalidInput:
        named = ours = ClientName("")
    if not named or (named != ours and not named.is_relative_of(ours)):
        raise Refused(
            f"the server names a snapshot of {client[:120]!r} as one of a replica of {own}",
            hint="the server is at fault or hostile: nothing of that snapshot was used",
            snapshot=snapshot.hex(),
        )


class RelativeTree:
    """The content ids of one relative's snapshot, and its pages, opened when they are asked for."""

    def __init__(
        self, snapshot: Snapshot, open_spool: OpenSpool, cancel: Cancel, progress: Progress
    ) -> None:
        """Read the tree; a part that is damaged is left out.

        Raises:
            Damaged: it is not the tree that the manifest counts.
        """
        self._chunks = snapshot.chunks
        self._hints = ContentHints(open_spool)
        self._places: BinaryIO = open_spool()
        self._pages = PageContents()
        self._is_told = False
        count = 0
        try:
            for extent, page in outlines(snapshot, self._left_out):
                cancel.check()
                progress.add(moved=1)
                if page.content_ids:
                    self._hints.add(page.content_ids, count)
                    self._places.write(_PAGE.pack(*_fields(extent)))
                    count += 1
            self._hints.finish()
        except BaseException:
            self.close()
            raise

    def find(self, content_id: bytes, fits: Fits) -> Content | None:
        """Return the content part of a file that has exactly this content id and fits."""
        found = self._pages.find(content_id, fits)
        if found is not None:
            return found
        for number in islice(self._hints.find(content_id), _CANDIDATES_MAX):
            found = self._pages.find_in(number, content_id, fits, self._page)
            if found is not None:
                return found
        return None

    def close(self) -> None:
        """Forget everything."""
        self._hints.close()
        self._places.close()

    def _page(self, number: int) -> Page | None:
        """Return a page, None where it cannot be read any more."""
        self._places.seek(number * _PAGE.size)
        extent = Extent(*_PAGE.unpack(self._places.read(_PAGE.size)))
        try:
            data = self._chunks.read_part(extent)
            return decode_page(data, ChunkId(extent.chunk), extent.offset)
        except _UNREADABLE as exc:
            self._left_out(exc)
            return None

    def _left_out(self, damage: Exception) -> None:
        if not self._is_told:
            self._is_told = True
            _log.warning("a part of a relative's tree cannot be read", reason=str(damage))


def _fields(extent: Extent) -> tuple[bytes, int, int]:
    return extent.chunk, extent.offset, extent.length


class Relatives:
    """The references of one job; opened when they pay. Used by the walk's thread."""

    def __init__(
        self,
        own: str,
        references: Sequence[Reference],
        *,
        open_snapshot: Callable[[bytes], Snapshot],
        open_spool: OpenSpool,
        cancel: Cancel,
        progress: Progress,
        is_first: bool,
    ) -> None:
        """Take what the server names; `is_first`: these paths were never backed up before.

        Then nearly everything is unknown, and a replica has about as much as its relative: to wait
        until it has shown would store the first part of it a second time.
        """
        check_references(own, references)
        self._own = own
        self._waiting = list(references[:_REFERENCES_MAX])
        self._open_snapshot = open_snapshot
        self._open_spool = open_spool
        self._cancel = cancel
        self._progress = progress
        self._is_first = is_first
        self._unknown_bytes = 0
        """Of small files, since the last reference was opened."""
        self._next: Snapshot | None = None
        self._trees: list[RelativeTree] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look in, and never will be."""
        return not (self._trees or self._waiting)

    def find(self, content_id: bytes, size: int, fits: Fits) -> Content | None:
        """Return the content part of a file with this content id that fits, None for unknown.

        `size` bytes are to be stored if it is unknown.

        Raises:
            Refused: a snapshot is not of this client or workload.
        """
        for tree in self._trees:
            found = tree.find(content_id, fits)
            if found is not None:
                return found
        self._unknown_bytes += size
        while self._waiting and self._pays():
            opened = self._open_next()
            found = None if opened is None else opened.find(content_id, fits)
            if found is not None:
                return found
            self._unknown_bytes += size if opened is not None else 0
        return None

    def close(self) -> None:
        """Forget everything."""
        for tree in self._trees:
            tree.close()

    # --- opening ---
    def _pays(self) -> bool:
        """Tell whether to fetch the tree of the next reference."""
        if self._unknown_bytes > UNKNOWN_BYTES_MIN:
            return True
        if not self._is_first:
            return False
        if self._trees:
            return self._unknown_bytes > _UNKNOWN_BYTES_FIRST
        while self._waiting and self._next is None:
            self._next = self._opened(self._waiting[0])
            if self._next is None:
                del self._waiting[0]
        return self._next is not None and self._next.body.bytes > UNKNOWN_BYTES_MIN

    def _open_next(self) -> RelativeTree | None:
        snapshot, self._next = self._next or self._opened(self._waiting[0]), None
        del self._waiting[0]
        if snapshot is None:
            return None
        try:
            tree = RelativeTree(snapshot, self._open_spool, self._cancel, self._progress)
        except _UNREADABLE as exc:
            _log.warning("the tree of a reference cannot be used", reason=str(exc))
            return None
        self._trees.append(tree)
        self._unknown_bytes = 0
        return tree

    def _opened(self, reference: Reference) -> Snapshot | None:
        try:
            snapshot = self._open_snapshot(reference.snapshot)
        except _UNREADABLE as exc:
            _log.warning("a reference cannot be used", reason=str(exc))
            return None
        _check_client(self._own, snapshot.body.client, reference.snapshot)
        return snapshot

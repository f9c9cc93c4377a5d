"""Small files by content id: those that this backup has bundled so far, and those of stored pages.

Of the former about 16 bytes of memory a file: records lie in a spool, and a table of 8-byte slots
finds them. A slot has 32 bits of the content id, so that hardly any other record is read; the full
id is compared all the same.
"""

from __future__ import annotations

import io
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO, Final

from holdfast_agent.engine.drafts import ChunkDraft, Part
from holdfast_agent.sorting import OpenSpool
from holdfast_agent.tree.entry import Content
from holdfast_agent.tree.page import Page

Fits = Callable[[Content], bool]
_PAGES_AT_HAND: Final = 8
_RECORD = struct.Struct("<32sIII")
"""Content id, number of its bundle, offset and length there."""
_KEY = struct.Struct("<II")
"""What of a content id says where its slot is, and what stands there."""
_NOTHING_MISSED: Final = (b"", 0, 0)
_TAIL_RECORDS: Final = 1024
"""Newest records, kept in memory: written to the spool together."""
_SLOTS_FIRST: Final = 1 << 18
"""2 MiB: a table that has to grow is filled anew, which costs as much as filling it once."""
_NUMBER: Final = (1 << 32) - 1


class BundledFiles:
    """Content id -> where this backup has put that content. Only files that are one piece of data:
    those with holes are rare, and are bundled again.
    """

    def __init__(
        self,
        open_spool: OpenSpool = io.BytesIO,
        *,
        slots_first: int = _SLOTS_FIRST,
        tail_records: int = _TAIL_RECORDS,
    ) -> None:
        """`slots_first` is a power of two."""
        self._open_spool = open_spool
        self._spool: BinaryIO | None = None
        self._bundles: list[ChunkDraft] = []
        """Records name a bundle by its number here: its id is not known when they are written."""
        self._tail = bytearray()
        self._tail_bytes = tail_records * _RECORD.size
        self._in_spool = 0
        """Records in the spool; the others are in the tail."""
        self._slots_first = slots_first
        self._slots = array("Q")
        """32 bits of a content id and the number of its record from 1; 0: free."""
        self._count = 0
        self._missed = _NOTHING_MISSED
        """The content id that was looked for last and not found, the slot that it would get, and
        the bits for it."""

    def add(self, content_id: bytes, draft: ChunkDraft, offset: int, length: int) -> None:
        """Remember where a file's content lies that `find` has just not found."""
        missed, at, hint = self._missed
        assert missed is content_id, "only what was looked for just now"
        bundles = self._bundles
        if not bundles or bundles[-1] is not draft:
            bundles.append(draft)
        self._tail += _RECORD.pack(content_id, len(bundles) - 1, offset, length)
        self._count = count = self._count + 1
        self._slots[at] = hint << 32 | count
        self._missed = _NOTHING_MISSED
        if len(self._tail) >= self._tail_bytes:
            self._write_tail()
        if 2 * count > len(self._slots):
            self._grow()

    def find(self, content_id: bytes) -> Part | None:
        """Return the part that is a file with this content, None when there was none."""
        slots = self._slots
        if not slots:
            self._slots = slots = array("Q", bytes(8 * self._slots_first))
        mask = len(slots) - 1
        low, hint = _KEY.unpack_from(content_id)
        at = low & mask
        while slot := slots[at]:
            if slot >> 32 == hint:
                found, bundle, offset, length = self._record((slot & _NUMBER) - 1)
                if found == content_id:
                    return self._bundles[bundle], offset, length
            at = (at + 1) & mask
        self._missed = (content_id, at, hint)
        return None

    def close(self) -> None:
        """Forget everything."""
        if self._spool is not None:
            self._spool.close()

    def _write_tail(self) -> None:
        if self._spool is None:
            self._spool = self._open_spool()
        self._spool.seek(self._in_spool * _RECORD.size)
        self._spool.write(self._tail)
        self._in_spool = self._count
        self._tail = bytearray()

    def _grow(self) -> None:
        """Double the table: the records tell where each slot goes."""
        slots = array("Q", bytes(16 * len(self._slots)))
        mask = len(slots) - 1
        self._write_tail()
        assert self._spool is not None
        self._spool.seek(0)
        for number in range(1, self._count + 1):
            low, hint = _KEY.unpack_from(self._spool.read(_RECORD.size))
            at = low & mask
            while slots[at]:
                at = (at + 1) & mask
            slots[at] = hint << 32 | number
        self._slots = slots

    def _record(self, number: int) -> tuple[bytes, int, int, int]:
        size = _RECORD.size
        if number >= self._in_spool:
            return _RECORD.unpack_from(self._tail, (number - self._in_spool) * size)
        assert self._spool is not None
        self._spool.seek(number * size)
        return _RECORD.unpack(self._spool.read(size))


class PageContents:
    """The small files of decoded pages, by content id; the pages used last stay at hand.

    Files are looked up in the order of a walk, and were stored in that order: the next one is
    mostly in the page of the last one, whatever its name is now.
    """

    def __init__(self) -> None:
        self._pages: OrderedDict[int, dict[bytes, list[Content]]] = OrderedDict()

    def find(self, content_id: bytes, fits: Fits) -> Content | None:
        """Return a fitting content part out of the pages at hand."""
        for number, page in reversed(self._pages.items()):
            found = _fitting(page.get(content_id), fits)
            if found is not None:
                self._pages.move_to_end(number)
                return found
        return None

    def find_in(
        self, number: int, content_id: bytes, fits: Fits, decode: Callable[[int], Page | None]
    ) -> Content | None:
        """Return a fitting content part out of page `number`, decoded unless it is at hand."""
        page = self._pages.get(number)
        if page is None:
            decoded = decode(number)
            page = {} if decoded is None else _by_content(decoded)
            self._pages[number] = page
            if len(self._pages) > _PAGES_AT_HAND:
                self._pages.popitem(last=False)
        return _fitting(page.get(content_id), fits)


def _by_content(page: Page) -> dict[bytes, list[Content]]:
    found: dict[bytes, list[Content]] = {}
    for content in page.contents:
        found.setdefault(content.content_id, []).append(content)
    return found


def _fitting(contents: list[Content] | None, fits: Fits) -> Content | None:
    return next(filter(fits, contents or ()), None)

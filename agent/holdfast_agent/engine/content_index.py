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
from collections.abc import Callable, Iterable
from typing import BinaryIO, Final

from holdfast_agent.engine.drafts import ChunkDraft, Part, Parts
from holdfast_agent.sorting import OpenSpool
from holdfast_agent.tree.entry import HOLE_CHUNK, Content
from holdfast_agent.tree.page import Page

Fits = Callable[[Content], bool]
_PAGES_AT_HAND: Final = 8
_RECORD = struct.Struct("<32s32sII")
_SLOTS_FIRST: Final = 1 << 12
_NUMBER: Final = (1 << 32) - 1


class BundledFiles:
    """Content id -> where this backup has put that content. Only files that are one piece of data:
    those with holes are rare, and are bundled again.
    """

    def __init__(self, open_spool: OpenSpool = io.BytesIO) -> None:
        self._open_spool = open_spool
        self._spool: BinaryIO | None = None
        self._recent: dict[bytes, tuple[ChunkDraft, int, int]] = {}
        """Files of bundles whose id is not known yet."""
        self._slots = array("Q", bytes(8 * _SLOTS_FIRST))
        """32 bits of a content id and the number of its record from 1; 0: free."""
        self._count = 0

    def add(self, content_id: bytes, draft: ChunkDraft, offset: int, length: int) -> None:
        """Remember where a file's content lies."""
        self._recent[content_id] = (draft, offset, length)

    def settle(self) -> None:
        """Move the files of bundles whose id is known out of memory."""
        known = [item for item in self._recent.items() if item[1][0].id]
        if not known:
            return
        self._append(
            (content_id, draft.id, offset, length) for content_id, (draft, offset, length) in known
        )
        for content_id, _ in known:
            del self._recent[content_id]

    def find(self, content_id: bytes) -> Parts | None:
        """Return the parts of a file with this content, None when there was none."""
        recent = self._recent.get(content_id)
        if recent is not None:
            return Parts((recent,))
        slots, mask = self._slots, len(self._slots) - 1
        key = int.from_bytes(content_id[:8], "little")
        at, hint = key & mask, key >> 32
        while slot := slots[at]:
            if slot >> 32 == hint:
                found, chunk, offset, length = self._record((slot & _NUMBER) - 1)
                if found == content_id:
                    part: Part = (chunk, offset, length)
                    return Parts((part,))
            at = (at + 1) & mask
        return None

    def close(self) -> None:
        """Forget everything."""
        if self._spool is not None:
            self._spool.close()

    def _append(self, records: Iterable[tuple[bytes, bytes, int, int]]) -> None:
        if self._spool is None:
            self._spool = self._open_spool()
        self._spool.seek(self._count * _RECORD.size)
        for record in records:
            self._spool.write(_RECORD.pack(*record))
            self._count += 1
            if 2 * self._count > len(self._slots):
                self._grow()
            _put(self._slots, record[0], self._count)

    def _grow(self) -> None:
        """Double the table: the records tell where each slot goes."""
        assert self._spool is not None
        self._slots = array("Q", bytes(16 * len(self._slots)))
        self._spool.seek(0)
        for number in range(1, self._count):
            record = self._spool.read(_RECORD.size)
            _put(self._slots, record[:32], number)
        self._spool.seek(self._count * _RECORD.size)

    def _record(self, number: int) -> tuple[bytes, bytes, int, int]:
        assert self._spool is not None
        self._spool.seek(number * _RECORD.size)
        content_id, chunk, offset, length = _RECORD.unpack(self._spool.read(_RECORD.size))
        assert chunk != HOLE_CHUNK
        return content_id, chunk, offset, length


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


def _put(slots: array[int], content_id: bytes, number: int) -> None:
    mask = len(slots) - 1
    key = int.from_bytes(content_id[:8], "little")
    at = key & mask
    while slots[at]:
        at = (at + 1) & mask
    slots[at] = key >> 32 << 32 | number

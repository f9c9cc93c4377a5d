"""Content ids in a sorted file: 16 bytes a file, and a look-up reads 4 KiB of it.

Only a hint: a record has the first 12 bytes of a content id and a number; whoever follows it
compares the whole id with what he finds there.
"""

from __future__ import annotations

import io
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, Final

from holdfast_agent.sorting import OpenSpool, RecordSorter

_KEY_BYTES: Final = 12
_RECORD_BYTES: Final = 16
_SEGMENT: Final = 256
"""Records read at once; of each segment 8 bytes stay in memory: 32 KB for a million files."""


class ContentHints:
    """Content id -> numbers. Life cycle: `add` any number of times, `finish`, `find`, `close`."""

    def __init__(self, open_spool: OpenSpool = io.BytesIO) -> None:
        self._open_spool = open_spool
        self._sorter = RecordSorter(_RECORD_BYTES, open_spool)
        self._file: BinaryIO | None = None
        self._fences = array("Q")
        """The first 8 bytes of each segment's first record."""
        self.count = 0
        """Records; known once finished."""

    def add(self, content_ids: Iterable[bytes], number: int) -> None:
        """Remember that `number` (32 bits) has these contents."""
        tail = number.to_bytes(_RECORD_BYTES - _KEY_BYTES, "big")
        self._sorter.add(content_id[:_KEY_BYTES] + tail for content_id in content_ids)

    def finish(self) -> None:
        """Write the file; nothing is added any more."""
        self._file = self._open_spool()
        records = self._sorter.sorted()
        while segment := list(islice(records, _SEGMENT)):
            self._fences.append(int.from_bytes(segment[0][:8], "big"))
            self._file.write(b"".join(segment))
            self.count += len(segment)
        self._sorter.close()

    def find(self, content_id: bytes) -> Iterator[int]:
        """Yield the numbers that may have this content, ascending."""
        key = content_id[:_KEY_BYTES]
        # Records of one key may begin in the segment before the first that could begin with it.
        at = max(bisect_left(self._fences, int.from_bytes(key[:8], "big")) - 1, 0)
        for segment in range(at, len(self._fences)):
            records = self._read(segment)
            count = len(records) // _RECORD_BYTES
            first = bisect_left(range(count), key, key=lambda i: records[i * 16 : i * 16 + 12])
            for index in range(first, count):
                start = index * _RECORD_BYTES
                if records[start : start + _KEY_BYTES] != key:
                    return
                yield int.from_bytes(records[start + _KEY_BYTES : start + _RECORD_BYTES], "big")

    def close(self) -> None:
        """Forget everything."""
        self._sorter.close()
        if self._file is not None:
            self._file.close()

    def _read(self, segment: int) -> bytes:
        assert self._file is not None, "not finished"
        self._file.seek(segment * _SEGMENT * _RECORD_BYTES)
        return self._file.read(_SEGMENT * _RECORD_BYTES)

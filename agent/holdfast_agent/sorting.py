"""Records of one width, sorted and made distinct with bounded memory: ids of refs, content keys."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

OpenSpool = Callable[[], BinaryIO]
"""Opens an empty unnamed file for reading and writing; closing it forgets its bytes."""

_RUN_RECORDS: Final = 32_768
"""Records sorted in memory at once: 32-byte ids take about 4 MB as Python objects."""
_READ_RECORDS: Final = 512
"""Records read from a run at once: a merge of 300 runs (10 million ids) keeps 5 MB in memory."""


class RecordSorter:
    """Takes records in any order, with repetitions; gives them back distinct and ascending.

    Life cycle: `add` any number of times, then `sorted` any number of times, then `close`.
    """

    def __init__(
        self, width: int, open_spool: OpenSpool = io.BytesIO, *, run_records: int = _RUN_RECORDS
    ) -> None:
        self._width = width
        self._open_spool = open_spool
        self._run_records = run_records
        self._recent: set[bytes] = set()
        self._spool: BinaryIO | None = None
        self._runs: list[tuple[int, int]] = []
        """(offset in the spool, number of records) of each sorted run."""
        self._end = 0

    def add(self, records: Iterable[bytes]) -> None:
        """Take records of `width` bytes each."""
        self._recent.update(records)
        if len(self._recent) >= self._run_records:
            self._write_run()

    def add_joined(self, records: bytes | memoryview) -> None:
        """Take records that stand in `records` one after the other."""
        width, whole = self._width, bytes(records)
        self.add(whole[at : at + width] for at in range(0, len(whole), width))

    def sorted(self) -> Iterator[bytes]:
        """Yield every record once, ascending; may be called again, one at a time."""
        runs: list[Iterator[bytes]] = [self._read_run(*run) for run in self._runs]
        runs.append(iter(sorted(self._recent)))
        last = None
        for record in heapq.merge(*runs) if len(runs) > 1 else runs[0]:
            if record != last:
                yield record
                last = record

    def close(self) -> None:
        """Forget everything."""
        self._recent.clear()
        self._runs.clear()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _write_run(self) -> None:
        if self._spool is None:
            self._spool = self._open_spool()
        records = sorted(self._recent)
        assert len(records[0]) == len(records[-1]) == self._width
        self._spool.seek(self._end)
        self._spool.write(b"".join(records))
        self._runs.append((self._end, len(records)))
        self._end += len(records) * self._width
        self._recent.clear()

    def _read_run(self, offset: int, count: int) -> Iterator[bytes]:
        assert self._spool is not None
        width = self._width
        for first in range(0, count, _READ_RECORDS):
            length = min(_READ_RECORDS, count - first) * width
            # Runs are read in turns from one file: each read says where.
            self._spool.seek(offset + first * width)
            blob = self._spool.read(length)
            assert len(blob) == length
            yield from (blob[at : at + width] for at in range(0, length, width))


def only_in_first(first: Iterable[bytes], second: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the records of `first` that are not in `second`; both are distinct and ascending."""
    others = iter(second)
    other = next(others, None)
    for record in first:
        while other is not None and other < record:
            other = next(others, None)
        if other != record:
            yield record

"""The names in one directory, ascending, however many there are.

Up to `NAMES_MAX` names are sorted in memory, which is nearly every directory. Beyond that they are
sorted run by run into a spool and merged as they are taken: a directory of ten million entries
takes no more memory than one of thirty thousand.
"""

from __future__ import annotations

import heapq
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import BinaryIO, Final

from holdfast_agent.sorting import OpenSpool
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.findings import Finding, finding_from

NAMES_MAX: Final = 32_768
"""Names held in memory at once: about 3 MB."""
_AHEAD: Final = 4096
"""Names taken at once from the merged runs."""
_READ_BYTES_ALL: Final = 1 << 20
"""Read ahead in all runs of one directory together."""
_READ_BYTES_MIN: Final = 4096
_READ_BYTES_MAX: Final = 1 << 16

LeavesOut = Callable[[bytes, "os.DirEntry[str]"], bool]
"""Tells by its name, and whether it is a directory, that an entry is none of the backup's."""


class Names:
    """The names of a directory that are still to be taken; read when it is made.

    A name that the kernel returns twice (it was made anew meanwhile) is there once.
    """

    def __init__(
        self, directory: Directory, open_spool: OpenSpool, leaves_out: LeavesOut | None = None
    ) -> None:
        self.findings: list[Finding] = []
        """Empty, or that only a part of the names could be read; the path is empty."""
        self._open_spool = open_spool
        self._spool: BinaryIO | None = None
        self._runs: list[tuple[int, int] | bytes] = []
        """(offset, length) in the spool; the bytes themselves where that could not hold them."""
        self._end = 0
        self._merged: Iterator[bytes] = iter(())
        self._ahead = self._read(directory, leaves_out)
        self._at = 0

    def has(self, last: bytes | None = None) -> bool:
        """Tell whether a name up to and including `last` (None: any) is left."""
        if self._at == len(self._ahead):
            self._fill()
        if self._at == len(self._ahead):
            return False
        return last is None or self._ahead[self._at] <= last

    def take(self, last: bytes | None, names_max: int) -> list[bytes]:
        """Return the next names, up to and including `last` (None: all), at most `names_max`."""
        taken: list[bytes] = []
        while len(taken) < names_max and self.has(last):
            ahead, start = self._ahead, self._at
            end = len(ahead) if last is None else bisect_right(ahead, last, start)
            self._at = min(end, start + names_max - len(taken))
            taken += ahead[start : self._at]
        return taken

    def close(self) -> None:
        """Forget the names."""
        self._ahead, self._merged, self._at = [], iter(()), 0
        self._runs.clear()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    # --- reading ---
    def _read(self, directory: Directory, leaves_out: LeavesOut | None) -> list[bytes]:
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        names: list[bytes] = []
        try:
            with os.scandir(directory.descriptor) as found:
                for item in found:
                    name = item.name.encode(encoding, errors)
                    if leaves_out is not None and leaves_out(name, item):
                        continue
                    names.append(name)
                    if len(names) == NAMES_MAX:
                        self._write_run(names)
                        names = []
        except OSError as exc:
            self.findings.append(finding_from(b"", exc))
        if not self._runs:
            return sorted(set(names))
        if names:
            self._write_run(names)
        runs = map(self._read_run, self._runs)
        self._merged = (name for name, _ in groupby(heapq.merge(*runs)))
        return []

    def _fill(self) -> None:
        self._ahead, self._at = list(islice(self._merged, _AHEAD)), 0

    # --- runs: sorted names, each followed by NUL ---
    def _write_run(self, names: list[bytes]) -> None:
        names.sort()
        data = b"\0".join(names) + b"\0"
        try:
            if self._spool is None:
                self._spool = self._open_spool()
            self._spool.seek(self._end)
            self._spool.write(data)
            self._spool.flush()
        except OSError:
            # A full disk: the names take a few bytes each, the backup goes on.
            self._runs.append(data)
            return
        self._runs.append((self._end, len(data)))
        self._end += len(data)

    def _read_run(self, run: tuple[int, int] | bytes) -> Iterator[bytes]:
        if isinstance(run, bytes):
            yield from _split(iter((run,)))
            return
        yield from _split(self._blocks(*run))

    def _blocks(self, offset: int, length: int) -> Iterator[bytes]:
        size = _READ_BYTES_ALL // len(self._runs)
        size = min(max(size, _READ_BYTES_MIN), _READ_BYTES_MAX)
        end = offset + length
        while offset < end:
            assert self._spool is not None
            self._spool.seek(offset)
            block = self._spool.read(min(size, end - offset))
            assert block, "the spool is shorter than what was written"
            offset += len(block)
            yield block


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the names of blocks that cut them anywhere."""
    rest = b""
    for block in blocks:
        *names, rest = (rest + block).split(b"\0")
        yield from names

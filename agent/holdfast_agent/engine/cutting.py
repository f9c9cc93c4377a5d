"""Large files: cut where their content says, by FastCDC; holes are neither read nor stored.

What the parent has of the file comes first: a chunk that stands at its old place as it was is taken
over, and the file is cut from there on only where it differs, until a new cut point meets an old
one. FastCDC looks at nothing before a chunk's beginning and at one byte behind its end: but for a
cut point right before a change, the chunks are those of a cut of the whole file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from holdfast_agent.engine.drafts import ChunkDraft, Parts
from holdfast_agent.engine.memory import Slab
from holdfast_agent.engine.rehash import OldChunk, OldContent
from holdfast_agent.engine.runs import DataRuns
from holdfast_agent.tree.entry import HOLE_CHUNK
from holdfast_contract.errors import InternalError, InvalidInput
from holdfast_contract.format.domain import ChunkerSettings

_READ_BYTES: Final = 1 << 20
"""Read at once: between two reads the job looks whether it was cancelled."""


class Cutter(Protocol):
    """A content-defined chunker."""

    def cut(self, data: memoryview) -> Iterator[int]:
        """Yield the length of each chunk of `data`; they add up to all of it."""


class FastCdc:
    """Chunker version 1 (docs/format.md). Releases the GIL; 1.4 to 2.3 GB/s a core."""

    def __init__(self, settings: ChunkerSettings, seed: int) -> None:
        """Load the compiled chunker.

        Raises:
            InvalidInput: it cannot work with these settings.
            InternalError: it is not there; the pure Python one is a hundred times slower, and
                pyfastcdc falls back to it without a word.
        """
        try:
            from pyfastcdc.cy import FastCDC
        except ImportError as exc:
            raise InternalError(
                "the compiled chunker of pyfastcdc cannot be loaded",
                hint="install the pyfastcdc wheel for this platform",
            ) from exc
        try:
            self._cdc = FastCDC(
                settings.bytes_average,
                min_size=settings.bytes_min,
                max_size=settings.bytes_max,
                normalized_chunking=1,
                seed=seed,
            )
        except ValueError as exc:
            raise InvalidInput(f"the domain's chunker settings cannot be used: {exc}") from exc

    def cut(self, data: memoryview) -> Iterator[int]:
        """Yield the length of each chunk of `data`; they add up to all of it."""
        for chunk in self._cdc.cut_buf(data):
            yield chunk.length


ReadInto = Callable[[memoryview, int], int]
"""(buffer, offset in the file) -> bytes read; fewer than asked only at the file's end."""
Ship = Callable[[ChunkDraft, memoryview, Slab], None]
"""Takes a chunk whose plaintext lies in the slab, which it holds until it is done with it."""


class LargeFile:
    """Cuts one file: the data of all its runs is one stream, so that many small runs between holes
    still make chunks of the usual size.
    """

    def __init__(
        self,
        read_into: ReadInto,
        runs: DataRuns,
        *,
        cutter: Cutter,
        get_slab: Callable[[], Slab],
        ship: Ship,
        old: OldContent | None = None,
    ) -> None:
        self._read_into = read_into
        self._runs = runs
        self._cutter = cutter
        self._get_slab = get_slab
        self._ship = ship
        self._old = old
        self._slab: Slab | None = None
        self._start = self._filled = 0
        """The part of the slab that is read and not cut yet."""
        self._tried = 0
        """Where that part ended when it was last tried to cut it."""
        self._pending: deque[tuple[int, int]] = deque()
        """(offset in the file, length) of what that part holds."""
        self._is_short = False
        self.parts = Parts()
        self.size = 0
        """Logical bytes read so far, holes included."""
        self.bytes_kept = 0
        """Bytes of chunks that were taken over."""
        self.is_cut = False
        """Whether any part was cut anew."""

    def read(self, size: int) -> None:
        """Read the file up to `size`; `parts` and `size` tell what came.

        A file that is shorter than its runs say ends where it ends.
        """
        position = self._runs.next_data(0)
        while position is not None and not self._is_short:
            kept = None if self._old is None else self._old.at(position)
            if kept is not None:
                self._take(kept)
            else:
                self._cut_from(position)
            position = self._runs.next_data(self.size)
        if not self._is_short:
            self._fill_hole(size)

    # --- taken over ---
    def _take(self, kept: OldChunk) -> None:
        assert self._old is not None
        self._old.take()
        used = 0
        for offset, length in kept.pieces:
            self._fill_hole(offset)
            self.parts.append((kept.id, used, length))
            used += length
            self.size += length
        self.bytes_kept += used

    def _fill_hole(self, offset: int) -> None:
        """Make the parts reach up to `offset`."""
        if self.size < offset:
            self.parts.append((HOLE_CHUNK, 0, offset - self.size))
            self.size = offset

    # --- cut ---
    def _cut_from(self, position: int) -> None:
        """Read and cut from `position` to the end, or until the parent's chunks may be taken."""
        self.is_cut = True
        try:
            for offset, length in self._runs.since(position):
                if self._read_run(offset, length):
                    return
                if self._is_short:
                    break
            self._cut(is_end=True)
        finally:
            self._pending.clear()
            if self._slab is not None:
                self._slab.let_go()
                self._slab = None

    def _read_run(self, offset: int, length: int) -> bool:
        """Read one run, cutting whenever there is enough; True: old chunks follow."""
        done = 0
        while done < length:
            view = self._room()
            want = min(len(view), length - done, _READ_BYTES)
            got = self._read_into(view[:want], offset + done)
            self._filled += got
            if got:
                self._pending.append((offset + done, got))
            done += got
            if got < want:
                self._is_short = True
                return False
            if self._is_enough() and self._cut(is_end=False):
                return True
        return False

    def _is_enough(self) -> bool:
        """Tell whether to cut now. Where old chunks may be met, no more is read than has to be."""
        assert self._slab is not None
        is_full = self._filled == len(self._slab.view)
        return is_full or (self._old is not None and self._filled - self._tried >= _READ_BYTES)

    def _room(self) -> memoryview:
        """Return the unfilled rest of the slab; what is not cut goes over to a new slab."""
        if self._slab is None:
            self._slab = self._get_slab()
            self._start = self._filled = self._tried = 0
        elif self._filled == len(self._slab.view):
            old, new = self._slab, self._get_slab()
            rest = self._filled - self._start
            new.view[:rest] = old.view[self._start :]
            old.let_go()
            self._slab, self._start, self._filled, self._tried = new, 0, rest, rest
        return self._slab.view[self._filled :]

    def _cut(self, *, is_end: bool) -> bool:
        """Ship the chunks of what is read; the last one only at the end: more data may move its
        end. True: behind the last chunk shipped stands an old one.
        """
        if self._slab is None or self._start == self._filled:
            return False
        data = self._slab.view[self._start : self._filled]
        self._tried = self._filled
        at = 0
        for length in self._cutter.cut(data):
            if at + length == len(data) and not is_end:
                return False
            draft = ChunkDraft()
            self._slab.hold()
            self._ship(draft, data[at : at + length], self._slab)
            at += length
            self._start += length
            self._place(draft, length)
            if self._old is not None and self._pending and self._old.at(self._pending[0][0]):
                return True
        return False

    def _place(self, draft: ChunkDraft, length: int) -> None:
        """Turn a chunk that is cut into parts at its places in the file."""
        used = 0
        while used < length:
            offset, there = self._pending[0]
            self._fill_hole(offset)
            step = min(there, length - used)
            if not self.parts.extend_last(draft, used, step):
                self.parts.append((draft, used, step))
            used += step
            self.size += step
            if step == there:
                self._pending.popleft()
            else:
                self._pending[0] = (offset + step, there - step)

"""Large files: cut where their content says, by FastCDC; holes are neither read nor stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from holdfast_agent.engine.drafts import ChunkDraft, Parts
from holdfast_agent.engine.memory import Slab
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
        runs: Iterator[tuple[int, int]],
        *,
        cutter: Cutter,
        get_slab: Callable[[], Slab],
        ship: Ship,
    ) -> None:
        self._read_into = read_into
        self._runs = runs
        self._cutter = cutter
        self._get_slab = get_slab
        self._ship = ship
        self._slab: Slab | None = None
        self._start = self._filled = 0
        """The part of the slab that is read and not cut yet."""
        self._chunks: list[tuple[ChunkDraft, int]] = []
        """(draft, length) of chunks not yet placed into `parts`; the last run may need them."""
        self._used = 0
        """Bytes of the first of them that are placed."""
        self.parts = Parts()
        self.size = 0
        """Logical bytes read so far, holes included."""

    def read(self, size: int) -> None:
        """Read and cut the file up to `size`; `parts` and `size` tell what came."""
        pending: list[tuple[int, int]] = []
        try:
            for offset, length in self._runs:
                got = self._read_run(offset, length, pending)
                if got < length:
                    size = offset + got
                    break
            self._cut(is_end=True)
            self._place(pending, self._cut_bytes())
        finally:
            if self._slab is not None:
                self._slab.let_go()
                self._slab = None
        if self.size < size:
            self.parts.append((HOLE_CHUNK, 0, size - self.size))
            self.size = size

    def _read_run(self, offset: int, length: int, pending: list[tuple[int, int]]) -> int:
        """Read one run; `pending` collects (offset, length) of what is read and not placed yet."""
        done = 0
        while done < length:
            view = self._room()
            want = min(len(view), length - done, _READ_BYTES)
            got = self._read_into(view[:want], offset + done)
            self._filled += got
            if got:
                pending.append((offset + done, got))
            done += got
            if got < want:
                break
            if self._slab is not None and self._filled == len(self._slab.view):
                self._cut(is_end=False)
                self._place(pending, self._cut_bytes())
        return done

    def _room(self) -> memoryview:
        """Return the unfilled rest of the slab; what is not cut goes over to a new slab."""
        if self._slab is None:
            self._slab = self._get_slab()
            self._start = self._filled = 0
        elif self._filled == len(self._slab.view):
            old, new = self._slab, self._get_slab()
            rest = self._filled - self._start
            new.view[:rest] = old.view[self._start :]
            old.let_go()
            self._slab, self._start, self._filled = new, 0, rest
        return self._slab.view[self._filled :]

    def _cut(self, *, is_end: bool) -> None:
        """Ship the chunks of what is read; the last one only at the end: more data may move its
        end.
        """
        if self._slab is None or self._start == self._filled:
            return
        data = self._slab.view[self._start : self._filled]
        lengths = list(self._cutter.cut(data))
        if not is_end:
            lengths.pop()
        for length in lengths:
            draft = ChunkDraft()
            self._slab.hold()
            self._ship(draft, self._slab.view[self._start : self._start + length], self._slab)
            self._chunks.append((draft, length))
            self._start += length

    def _cut_bytes(self) -> int:
        return sum(length for _, length in self._chunks) - self._used

    def _place(self, pending: list[tuple[int, int]], available: int) -> None:
        """Turn the first `available` bytes that are cut into parts at their places in the file."""
        while available and pending:
            offset, length = pending[0]
            if offset > self.size:
                self.parts.append((HOLE_CHUNK, 0, offset - self.size))
                self.size = offset
            draft, chunk_bytes = self._chunks[0]
            step = min(length, chunk_bytes - self._used, available)
            self._append(draft, self._used, step)
            self._used += step
            self.size += step
            available -= step
            if self._used == chunk_bytes:
                del self._chunks[0]
                self._used = 0
            if step == length:
                del pending[0]
            else:
                pending[0] = (offset + step, length - step)

    def _append(self, draft: ChunkDraft, offset: int, length: int) -> None:
        if not self.parts.extend_last(draft, offset, length):
            self.parts.append((draft, offset, length))

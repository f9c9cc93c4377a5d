"""Bundles: small files one after the other in one chunk, in the order of the walk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast_agent.engine.drafts import ChunkDraft
from holdfast_agent.engine.memory import Slab
from holdfast_contract.limits import BUNDLE_BYTES_TARGET

_CUT_BYTES_MIN: Final = BUNDLE_BYTES_TARGET // 2
_CUT_DIVISOR: Final = 32
"""Beyond half the target every 32nd file ends the bundle, by its content id: after a change the
bundles of two similar trees fall into step again. It divides 256: the first byte tells."""

Submit = Callable[[ChunkDraft, memoryview, Slab], None]


class Bundler:
    """The open bundle. A file is read into `room`, then either taken or forgotten."""

    def __init__(self, *, bytes_max: int, get_slab: Callable[[], Slab], submit: Submit) -> None:
        self._bytes_max = bytes_max
        self._get_slab = get_slab
        self._submit = submit
        self._slab: Slab | None = None
        self._draft = ChunkDraft()
        self._used = 0
        self.made: list[tuple[ChunkDraft, int]] = []
        """Every bundle that was closed, and its length in bytes."""

    @property
    def is_open(self) -> bool:
        """Whether a bundle has been begun and not ended."""
        return self._slab is not None

    def room(self, size: int) -> memoryview:
        """Return a buffer of `size` bytes, at most `bytes_max`; what is not taken is forgotten."""
        assert 0 < size <= self._bytes_max
        if self._used + size > self._bytes_max:
            self.close()
        if self._slab is None:
            self._slab = self._get_slab()
        return self._slab.view[self._used : self._used + size]

    def keep(self, data: memoryview, content_id: bytes) -> tuple[ChunkDraft, int]:
        """Keep `data`, which stands at the beginning of the last room; return where it lies now."""
        draft, offset = self._draft, self._used
        self._used = used = offset + len(data)
        if used >= BUNDLE_BYTES_TARGET or (
            used >= _CUT_BYTES_MIN and content_id[0] % _CUT_DIVISOR == 0
        ):
            self.close()
        return draft, offset

    def put(self, data: memoryview, content_id: bytes) -> tuple[ChunkDraft, int]:
        """Keep a copy of `data`; return the bundle and the offset in it."""
        self.room(len(data))[:] = data
        return self.keep(data, content_id)

    def close(self) -> None:
        """End the open bundle and send it on its way; nothing happens when it is empty."""
        slab, draft, used = self._slab, self._draft, self._used
        if slab is None:
            return
        self._slab, self._draft, self._used = None, ChunkDraft(), 0
        if used:
            self.made.append((draft, used))
            self._submit(draft, slab.view[:used], slab)
        else:
            slab.let_go()

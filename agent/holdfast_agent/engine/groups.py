"""Tree groups: pages and blocks one after the other in one tree chunk, in post-order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from holdfast_agent.crypto.keys import chunk_id, name_hash
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.drafts import ChunkDraft, Place, known_id
from holdfast_agent.engine.memory import Slab, SlabPool
from holdfast_agent.engine.shipping import Piece, Shipping
from holdfast_agent.tree.entry import SELF_CHUNK, Extent
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.limits import PAGE_BYTES_MAX

_CUT_DIVISOR: Final = 64
"""Every 64th directory ends the group, by its path: similar trees make equal groups."""

OnClose = Callable[[bytes, int], None]
"""Called with id and length of a group once both are known."""


class TreeGroups:
    """The open group. Its id is known when it is closed; until then pages in it name it as SELF."""

    def __init__(self, context: BackupContext, shipping: Shipping, on_close: OnClose) -> None:
        self._keys = context.keys
        self._cancel = context.cancel
        self._shipping = shipping
        self._on_close = on_close
        self._pool = SlabPool(context.plan.groups, PAGE_BYTES_MAX)
        self._slab: Slab | None = None
        self._draft = ChunkDraft()
        self._used = 0

    def extents(self, places: Iterable[Place]) -> tuple[Extent, ...]:
        """Return places as extents of something that is put into the open group next."""
        return tuple(
            Extent(SELF_CHUNK if chunk is self._draft else known_id(chunk), offset, length)
            for chunk, offset, length in places
        )

    def put(self, encode: Callable[[], bytes]) -> tuple[Place, bytes]:
        """Put what `encode` returns; asked again where it goes into another group than before.

        Returns where it lies and its bytes. Raises what `encode` raises.
        """
        data = encode()
        if self._used + len(data) > PAGE_BYTES_MAX:
            self.close()
            data = encode()
        if self._slab is None:
            self._slab = self._pool.get(self._cancel, self._shipping.hurry)
        offset = self._used
        self._slab.view[offset : offset + len(data)] = data
        self._used += len(data)
        return (self._draft, offset, len(data)), data

    def end_of_directory(self, path: bytes) -> None:
        """Close the group where the directory's path says so."""
        if int.from_bytes(name_hash(self._keys, path)[:4], "little") % _CUT_DIVISOR == 0:
            self.close()

    def close(self) -> None:
        """End the open group and send it on its way; nothing happens when it is empty."""
        if self._slab is None:
            return
        slab, draft, used = self._slab, self._draft, self._used
        data = slab.view[:used]
        draft.id = chunk_id(self._keys, ChunkType.TREE, data)
        self._slab, self._draft, self._used = None, ChunkDraft(), 0
        self._on_close(draft.id, used)
        self._shipping.submit(Piece(ChunkType.TREE, draft, data, slab.let_go))

"""From plaintext to durable packs, in threads: identify, ask, seal, pack, upload.

    walk -> [identify] -> ask the server -> [seal] -> pack -> upload
    walk -> [identify, seal] -> pack -> ask the server -> leave out -> upload

Workers do what is in brackets: it releases the GIL and is never less than about 1 MiB at a time.
As long as the server knew nothing of what it was asked last, chunks go the second way: one question
a pack, no plaintext waits for an answer, and what is sealed was just hashed and is still in the
core's cache. An answer that knows one of them leads back to the first way, where nothing is sealed
in vain. One thread asks, two upload. Every queue is bounded by what fills it: plaintext lies in
slabs of a pool, a pack is begun only while less than three exist. An id is in flight from its
hashing to the acknowledgement of its pack; meanwhile the same chunk is not sent a second time.

The first error of any thread stops all of them and is raised in the walk's thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.crypto.sealing import Opener, SealedChunk, Sealer
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.drafts import ChunkDraft
from holdfast_agent.engine.memory import PACKS_IN_FLIGHT
from holdfast_agent.engine.packing import Pack, Place, pack_room_bytes
from holdfast_agent.ports import Uploads
from holdfast_contract.errors import Damaged, InternalError
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import HAVE_IDS_MAX, MIB

_UPLOADERS: Final = 2
_POLL_SECONDS: Final = 0.1
_END_SECONDS: Final = 0.02
"""Waited for each thread at the end: a cancelled job is to be over within 250 ms."""
_SAMPLE: Final = 16
"""Every 16th sealed chunk is opened again before it is sent: a fault of memory or library is rare
and lasting, so a sample finds it; all of them would cost a fifth of the time."""
_WORK_BYTES_MIN: Final = MIB


class Piece(NamedTuple):
    """A chunk on its way."""

    kind: ChunkType
    draft: ChunkDraft
    data: Buffer
    let_go: Callable[[], None]
    """Called once, when `data` is needed no more."""
    known: frozenset[bytes] = frozenset()
    """Ids that are stored for certain enough: the commit asks again."""


class Shipping:
    """The threads of one backup. `submit`, `flush` and `close` belong to the walk's thread."""

    def __init__(self, context: BackupContext, uploads: Uploads) -> None:
        self._keys = context.keys
        self._uploads = uploads
        self._plan = context.plan
        self._epoch_min = context.epoch_min
        self._cancel = context.cancel
        self._progress = context.progress
        self._sealer = Sealer(context.keys)
        self._opener = Opener(context.keys)
        # One lock, and a condition for each who waits: who is woken for nothing costs 30 us.
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        """The walk's thread waits here."""
        self._has_work = threading.Condition(lock)
        self._has_question = threading.Condition(lock)
        self._has_pack = threading.Condition(lock)
        self._has_room = threading.Condition(lock)
        """Room for another pack."""
        self._to_identify: deque[Sequence[Piece]] = deque()
        self._to_ask: list[Piece] = []
        self._to_ask_bytes = 0
        self._to_seal: deque[Sequence[Piece]] = deque()
        self._to_upload: deque[Pack] = deque()
        self._batch: list[Piece] = []
        self._pack: Pack | None = None
        self._packs = 0
        self._room_bytes = pack_room_bytes(context.plan.pack_bytes)
        self._rooms: list[bytearray] = []
        """Memory of packs that are sent."""
        self._busy = 0
        """Pieces that a thread has in its hands, or that wait for one."""
        self._identifying = 0
        """Batches whose ids are being made right now."""
        self._in_flight: set[bytes] = set()
        self._is_all_new = False
        """Whether the last answer knew nothing: so will the next one, most likely."""
        self._hurry = False
        self._is_over = False
        self._failure: BaseException | None = None
        self._sealed = 0
        self.bytes_new = 0
        """Plaintext of content chunks that the server did not have."""
        loops = [self._work] * context.workers + [self._ask] + [self._upload] * _UPLOADERS
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"ship-{n}", daemon=True)
            for n, loop in enumerate(loops)
        ]
        for thread in self._threads:
            thread.start()

    # --- for the walk ---
    def submit(self, piece: Piece) -> None:
        """Send a chunk on its way; its draft's id is set soon, its bytes are durable after `flush`.

        Raises:
            Cancelled, or the first error of any thread.
        """
        self.check()
        self._hurry = False
        self._batch.append(piece)
        if sum(len(waiting.data) for waiting in self._batch) >= _WORK_BYTES_MIN:
            self._hand_over()

    def check(self) -> None:
        """Raise what has gone wrong so far, if anything."""
        self._cancel.check()
        if self._failure is not None:
            raise self._failure

    def hurry(self) -> None:
        """Ask and seal what is there without waiting for more: somebody waits for buffers.

        Raises:
            Cancelled, or the first error of any thread.
        """
        self.check()
        self._hand_over()
        with self._changed:
            self._hurry = True
            self._wake_asker()

    def wait_for(self, is_known: Callable[[], bool]) -> None:
        """Return once `is_known()`: ids of what was submitted are being made."""
        self._hand_over()
        while not is_known():
            self.check()
            with self._changed:
                self._changed.wait(_POLL_SECONDS / 10)

    def flush(self) -> None:
        """Return when everything submitted is durable on the server.

        Raises:
            Cancelled, or the first error of any thread.
        """
        self.hurry()
        with self._changed:
            while self._busy:
                self._hurry = True
                self._wake_asker()
                self._changed.wait(_POLL_SECONDS)
                self.check()
            self._close_pack()
            while self._packs:
                self._changed.wait(_POLL_SECONDS)
                self.check()
        assert not self._in_flight

    def close(self) -> None:
        """Stop the threads; what is not durable yet is given up."""
        with self._changed:
            self._end()
        for thread in self._threads:
            # A thread inside a request ends with it; the process need not wait for that.
            thread.join(timeout=_END_SECONDS)
        with self._changed:
            # Whatever still refers to this: the memory goes now.
            self._pack = None
            self._to_upload.clear()
            self._rooms.clear()

    def _hand_over(self) -> None:
        if self._batch:
            with self._changed:
                self._busy += len(self._batch)
                self._to_identify.append(self._batch)
                self._batch = []
                self._has_work.notify()

    # --- threads ---
    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as exc:  # noqa: BLE001 - crosses to the walk's thread, raised there
            with self._changed:
                self._failure = self._failure or exc
                self._end()

    def _end(self) -> None:
        self._is_over = True
        for condition in (
            self._changed,
            self._has_work,
            self._has_question,
            self._has_pack,
            self._has_room,
        ):
            condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._is_over or self._to_seal or self._to_identify):
                    self._has_work.wait()
                if self._is_over:
                    return
                # Sealing first: it makes room.
                sealing = bool(self._to_seal)
                pieces = (self._to_seal if sealing else self._to_identify).popleft()
                self._identifying += not sealing
            if sealing:
                for piece in pieces:
                    self._seal(piece, is_asked=True)
            else:
                self._identify(pieces)
            with self._changed:
                self._identifying -= not sealing
                self._wake_asker()

    def _identify(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            found = piece.draft.id or chunk_id(self._keys, piece.kind, piece.data)
            piece.draft.id = found
            with self._changed:
                if found in self._in_flight or found in piece.known:
                    self._done(piece)
                    continue
                self._in_flight.add(found)
                self._changed.notify_all()
                if not self._is_all_new:
                    self._to_ask.append(piece)
                    self._to_ask_bytes += len(piece.data)
                    self._wake_asker()
                    continue
            self._seal(piece, is_asked=False)

    def _done(self, piece: Piece) -> None:
        self._busy -= 1
        piece.let_go()
        self._changed.notify_all()

    def _ask(self) -> None:
        while True:
            with self._changed:
                while not (self._is_over or self._is_time_to_ask()):
                    self._has_question.wait()
                if self._is_over:
                    return
                pieces, self._to_ask = self._to_ask, []
                self._to_ask_bytes = 0
            answers = self._uploads.have([piece.draft.id for piece in pieces], self._epoch_min)
            self._progress.add(moved=1)
            with self._changed:
                self._sort(pieces, answers)

    def _is_time_to_ask(self) -> bool:
        if not self._to_ask:
            return False
        # Even in a hurry not before the workers run dry: fewer and longer questions.
        is_dry = not (self._to_identify or self._identifying) and len(self._to_seal) <= 1
        is_much = self._to_ask_bytes >= self._plan.ask_bytes or len(self._to_ask) >= HAVE_IDS_MAX
        return is_much or (self._hurry and is_dry)

    def _wake_asker(self) -> None:
        if self._is_time_to_ask():
            self._has_question.notify()

    def _sort(self, pieces: Sequence[Piece], answers: Sequence[bool]) -> None:
        work: list[Piece] = []
        size = 0
        self._is_all_new = not any(answers)
        for piece, is_stored in zip(pieces, answers, strict=True):
            if is_stored:
                self._in_flight.discard(piece.draft.id)
                self._done(piece)
                continue
            work.append(piece)
            size += len(piece.data)
            if size >= _WORK_BYTES_MIN:
                self._to_seal.append(work)
                work, size = [], 0
        if work:
            self._to_seal.append(work)
        self._has_work.notify_all()
        self._wake_asker()

    def _seal(self, piece: Piece, *, is_asked: bool) -> None:
        of_chunk = ChunkId(piece.draft.id)
        place: Place | None = None

        def room(size: int) -> memoryview:
            nonlocal place
            place = self._place(of_chunk, size)
            # Where all is over nobody needs it: it is sealed into memory of its own.
            return memoryview(bytearray(size)) if place is None else place.view

        sealed = self._sealer.seal(piece.kind, piece.data, of_chunk, room=room)
        if self._is_sample():
            self._prove(piece.kind, of_chunk, sealed.sealed)
        size = len(piece.data) if piece.kind is ChunkType.CONTENT else 0
        with self._changed:
            if is_asked:
                self.bytes_new += size
            elif place is not None:
                place.pack.unasked[of_chunk] = size
            if place is not None:
                self._settle(place, sealed)
            self._done(piece)

    def _prove(self, kind: ChunkType, of_chunk: ChunkId, sealed: Buffer) -> None:
        try:
            # Opening makes the id anew from what comes out: equal ids are equal plaintexts.
            self._opener.open_into(kind, of_chunk, sealed, bytearray)
        except Damaged as exc:
            raise InternalError(
                "a sealed chunk does not open to what was sealed",
                hint="the machine's memory or a library is at fault",
            ) from exc

    def _is_sample(self) -> bool:
        with self._changed:
            self._sealed += 1
            return self._sealed % _SAMPLE == 1

    def _place(self, of_chunk: ChunkId, size: int) -> Place | None:
        """Return where a chunk is to be sealed, in the pack of the moment or a new one."""
        with self._changed:
            while not self._is_over:
                if self._pack is None and self._packs < PACKS_IN_FLIGHT:
                    room = self._rooms.pop() if self._rooms else bytearray(self._room_bytes)
                    self._pack = Pack(self._keys.domain_id, room)
                    self._packs += 1
                if self._pack is None:
                    self._has_room.wait()
                elif (place := self._pack.take(of_chunk, size)) is not None:
                    return place
                else:
                    self._close_pack()
        return None

    def _close_pack(self) -> None:
        """Put no more into the pack of the moment; it is sent when all its places are filled."""
        pack, self._pack = self._pack, None
        if pack is not None:
            pack.is_closed = True
            self._send_if_settled(pack)

    def _settle(self, place: Place, sealed: SealedChunk) -> None:
        pack = place.pack
        pack.settle(place, sealed.storage_hash, epoch=sealed.epoch, kind=sealed.type)
        self._send_if_settled(pack)

    def _send_if_settled(self, pack: Pack) -> None:
        if pack.is_closed and pack.is_settled:
            self._to_upload.append(pack)
            self._has_pack.notify()

    def _upload(self) -> None:
        while True:
            with self._changed:
                while not (self._is_over or self._to_upload):
                    self._has_pack.wait()
                if self._is_over:
                    return
                pack = self._to_upload.popleft()
            if pack.unasked:
                self._leave_out_stored(pack)
            if pack.ids:
                whole = pack.finish()
                self._uploads.put_pack([whole], len(whole))
            self._progress.add(moved=1)
            with self._changed:
                self._in_flight.difference_update(pack.ids)
                self._packs -= 1
                self._rooms.append(pack.room)
                self._has_room.notify_all()
                self._changed.notify_all()

    def _leave_out_stored(self, pack: Pack) -> None:
        """Ask about what was sealed without a question; leave out of a pack what is stored."""
        ids = list(pack.unasked)
        answers = self._uploads.have(ids, self._epoch_min)
        stored = {of_chunk for of_chunk, is_stored in zip(ids, answers, strict=True) if is_stored}
        if stored:
            pack.leave_out(stored)
        with self._changed:
            self._is_all_new = not stored
            self._in_flight -= stored
            self.bytes_new += sum(
                pack.unasked[of_chunk] for of_chunk in ids if of_chunk not in stored
            )

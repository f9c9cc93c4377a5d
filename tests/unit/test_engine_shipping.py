"""Chunks on their way: asked for, sealed, packed, sent once, and durable after a flush."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.crypto.sealing import Opener, SealedChunk, Sealer
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.cutting import FastCdc
from holdfast_agent.engine.drafts import ChunkDraft
from holdfast_agent.engine.memory import (
    FREE_BYTES_MIN,
    PACKS_IN_FLIGHT,
    PROCESS_BYTES,
    MemoryPlan,
    plan_memory,
)
from holdfast_agent.engine.packing import pack_room_bytes
from holdfast_agent.engine.shipping import Piece, Shipping
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_contract.errors import Cancelled, InternalError, NoSpace
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import CHUNKER_DEFAULT
from holdfast_contract.format.layout import Buffer
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, KIB, MIB
from tests.support.memory_repository import MemoryRepository, MemoryUploads
from tests.support.samples import DOMAIN, KEYS, noise

PLAN = MemoryPlan(
    pack_bytes=2 * MIB,
    slab_bytes=8 * MIB,
    slabs=2,
    bundle_bytes=MIB,
    bundles=2,
    groups=2,
    ask_bytes=2 * MIB,
)
ROOM_BYTES = pack_room_bytes(PLAN.pack_bytes)


@contextmanager
def shipping(
    uploads: MemoryUploads, cancel: JobCancel | None = None, workers: int = 2
) -> Iterator[Shipping]:
    context = BackupContext(
        keys=KEYS,
        small_file_bytes_max=0,
        cutter=FastCdc(CHUNKER_DEFAULT, seed=1),
        plan=PLAN,
        epoch_min=1,
        workers=workers,
        open_spool=io.BytesIO,
        cancel=cancel or JobCancel(),
        progress=JobProgress(),
    )
    found = Shipping(context, uploads)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def uploads() -> MemoryUploads:
    return MemoryRepository(DOMAIN).uploads("job")


def piece(
    content: bytes,
    let_go: Callable[[], None] = lambda: None,
    known: frozenset[bytes] = frozenset(),
    kind: ChunkType = ChunkType.CONTENT,
) -> Piece:
    return Piece(kind, ChunkDraft(), content, let_go, known)


def test_everything_is_durable_and_opens_after_a_flush(uploads: MemoryUploads) -> None:
    pieces = [piece(noise(f"{n}", 300 * KIB)) for n in range(40)]
    with shipping(uploads) as ship:
        for one in pieces:
            ship.submit(one)
        ship.flush()
        assert ship.bytes_new == 40 * 300 * KIB
    live = uploads._repository.live
    for one in pieces:
        assert one.draft.id == chunk_id(KEYS, one.kind, one.data)
        opened = Opener(KEYS).open(one.kind, ChunkId(one.draft.id), live[one.draft.id].sealed)
        assert opened == one.data
    assert len(uploads.pack_lengths) >= 3
    assert max(uploads.pack_lengths) <= ROOM_BYTES


def test_each_buffer_is_given_back_once(uploads: MemoryUploads) -> None:
    given: list[int] = []
    lock = threading.Lock()

    def let_go(number: int) -> Callable[[], None]:
        def act() -> None:
            with lock:
                given.append(number)

        return act

    contents = [noise(f"{n % 7}", 200 * KIB) for n in range(30)]
    stored = chunk_id(KEYS, ChunkType.CONTENT, contents[0])
    with shipping(uploads) as ship:
        for number, content in enumerate(contents):
            known = frozenset((stored,))
            ship.submit(piece(content, let_go(number), known))
        ship.flush()
    assert sorted(given) == list(range(30))


def test_chunk_that_is_stored_is_not_sent(uploads: MemoryUploads) -> None:
    content = noise("x", 100)
    with shipping(uploads) as ship:
        ship.submit(piece(content))
        ship.flush()
        ship.submit(piece(content))
        ship.flush()
    assert len(uploads.pack_lengths) == 1
    assert len(uploads.asked) == 2


def test_chunk_that_is_on_its_way_is_neither_asked_nor_sent_again(uploads: MemoryUploads) -> None:
    contents = [noise(f"{n % 3}", 500 * KIB) for n in range(30)]
    with shipping(uploads) as ship:
        for content in contents:
            ship.submit(piece(content))
        ship.flush()
    sent = [entry for pack in uploads._repository.packs.values() for entry in (len(pack),)]
    assert sum(sent) < 4 * 500 * KIB


def test_chunk_that_is_known_is_not_even_asked(uploads: MemoryUploads) -> None:
    content = noise("known", 100)
    known = frozenset((chunk_id(KEYS, ChunkType.CONTENT, content),))
    with shipping(uploads) as ship:
        one = piece(content, known=known)
        ship.submit(one)
        ship.flush()
    assert (uploads.asked, uploads.pack_lengths, one.draft.id) == ([], [], min(known))


def test_same_bytes_of_another_type_are_another_chunk(uploads: MemoryUploads) -> None:
    content = noise("x", 100)
    with shipping(uploads) as ship:
        for kind in ChunkType:
            ship.submit(piece(content, kind=kind))
        ship.flush()
        assert ship.bytes_new == 100
    assert {found.type for found in uploads._repository.live.values()} == {1, 2, 3}


def test_questions_are_few(uploads: MemoryUploads) -> None:
    with shipping(uploads) as ship:
        for number in range(200):
            ship.submit(piece(noise(f"{number}", 50 * KIB)))
        ship.flush()
    assert len(uploads.asked) <= 8


# --- sealed before it is asked for
def sealings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the list of what is sealed from now on."""
    sealed: list[bytes] = []
    plain = Sealer.seal

    def count(sealer: Sealer, kind: ChunkType, data: Buffer, *rest: Any, **how: Any) -> SealedChunk:
        found = plain(sealer, kind, data, *rest, **how)
        sealed.append(found.chunk_id)
        return found

    monkeypatch.setattr(Sealer, "seal", count)
    return sealed


def test_where_nothing_is_known_there_is_one_question_a_pack(uploads: MemoryUploads) -> None:
    contents = [noise(f"{n}", MIB) for n in range(24)]
    with shipping(uploads) as ship:
        ship.submit(piece(contents[0]))
        ship.flush()
        for content in contents[1:]:
            ship.submit(piece(content))
        ship.flush()
        assert ship.bytes_new == 24 * MIB
    ids = [chunk_id(KEYS, ChunkType.CONTENT, content) for content in contents]
    assert len(uploads.asked) == len(uploads.pack_lengths)
    assert sorted(asked for question in uploads.asked for asked in question) == sorted(ids)
    assert set(uploads._repository.live) == set(ids)


def test_what_was_sealed_in_vain_is_not_sent_and_ends_the_sealing_ahead(
    uploads: MemoryUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = [noise(f"stored {n}", 200 * KIB) for n in range(20)]
    with shipping(uploads) as ship:
        for content in stored:
            ship.submit(piece(content))
        ship.flush()
    before = sum(uploads.pack_lengths)
    new = noise("new", 200 * KIB)
    sealed = sealings(monkeypatch)
    with shipping(uploads, workers=1) as ship:
        # The first answer knows nothing: what comes next is sealed at once.
        ship.submit(piece(noise("first", 100)))
        ship.flush()
        for content in (stored[0], new, stored[1]):
            ship.submit(piece(content))
        ship.flush()
        assert len(sealed) == 4
        assert ship.bytes_new == 100 + 200 * KIB
        for content in stored[2:]:
            ship.submit(piece(content))
        ship.flush()
        assert len(sealed) == 4
        assert ship.bytes_new == 100 + 200 * KIB
    sent = sum(uploads.pack_lengths) - before
    assert 200 * KIB < sent < 250 * KIB
    of_new = chunk_id(KEYS, ChunkType.CONTENT, new)
    opened = uploads._repository.live[of_new]
    assert Opener(KEYS).open(ChunkType.CONTENT, of_new, opened.sealed) == new


def test_pack_of_which_everything_is_stored_is_not_sent(uploads: MemoryUploads) -> None:
    content = noise("x", 1000)
    with shipping(uploads) as ship:
        for _ in range(2):
            ship.submit(piece(content))
            ship.flush()
        # The memory of the pack that was not sent serves the next ones.
        for number in range(12):
            ship.submit(piece(noise(f"{number}", MIB)))
        ship.flush()
    assert len(uploads._repository.live) == 13
    assert sum(uploads.pack_lengths) < 13 * MIB


@pytest.mark.parametrize("step", ["have", "pack", "pack acknowledged"])
def test_first_error_of_a_thread_reaches_the_walk(uploads: MemoryUploads, step: str) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise NoSpace("the store is full")

    uploads.fault = fail
    with shipping(uploads) as ship, pytest.raises(NoSpace):
        for number in range(100):
            ship.submit(piece(noise(f"{number}", MIB)))
        ship.flush()


def test_cancel_ends_every_wait(uploads: MemoryUploads) -> None:
    cancel = JobCancel()
    uploads.fault = lambda name: cancel.set() if name == "pack" else None
    with shipping(uploads, cancel) as ship, pytest.raises(Cancelled):
        for number in range(100):
            ship.submit(piece(noise(f"{number}", MIB)))
        ship.flush()


def test_sealed_chunk_that_does_not_open_stops_the_backup(
    uploads: MemoryUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Sealer.seal

    def broken(sealer: Sealer, *arguments: object, **options: object) -> SealedChunk:
        sealed = plain(sealer, *arguments, **options)  # type: ignore[arg-type]
        wrong = bytearray(sealed.sealed)
        wrong[-1] ^= 1
        return sealed._replace(sealed=wrong)

    monkeypatch.setattr(Sealer, "seal", broken)
    with shipping(uploads) as ship, pytest.raises(InternalError):
        ship.submit(piece(noise("x", 1000)))
        ship.flush()
    assert uploads.pack_lengths == []


def test_no_more_packs_are_held_than_planned(uploads: MemoryUploads) -> None:
    release = threading.Event()
    blocked = threading.Semaphore(0)
    sealed_while_blocked: list[int] = []

    def wait(name: str) -> None:
        if name == "pack":
            blocked.release()
            release.wait(20)

    uploads.fault = wait
    given = threading.Semaphore(0)
    with shipping(uploads, workers=1) as ship:

        def produce() -> None:
            for number in range(24):
                ship.submit(piece(noise(f"{number}", MIB), given.release))
            ship.flush()

        walk = threading.Thread(target=produce)
        walk.start()
        assert blocked.acquire(timeout=20)
        assert blocked.acquire(timeout=20)
        while given.acquire(timeout=0.3):
            sealed_while_blocked.append(1)
        # Two packs in sending, one filled: the rest waits as plaintext.
        assert len(sealed_while_blocked) <= PACKS_IN_FLIGHT * (ROOM_BYTES // MIB)
        release.set()
        walk.join(20)
        assert not walk.is_alive()


# --- memory
@pytest.mark.parametrize(
    "memory_max", [96 * MIB, 128 * MIB, 144 * MIB, 160 * MIB, 512 * MIB, 1 << 34]
)
@pytest.mark.parametrize("small", [0, 512 * KIB, 4 * MIB])
def test_plan_stays_under_the_ceiling(memory_max: int, small: int) -> None:
    plan = plan_memory(memory_max, small)
    free = max(memory_max - PROCESS_BYTES, FREE_BYTES_MIN)
    buffers = plan.slabs * plan.slab_bytes + plan.bundles * plan.bundle_bytes + plan.groups * MIB
    packs = PACKS_IN_FLIGHT * pack_room_bytes(plan.pack_bytes)
    # The least that works is a little more than the lowest ceiling: each pack takes any chunk.
    slack = 4 * MIB if memory_max == 96 * MIB else 0
    assert buffers + packs <= free + slack + (6 * MIB if small == 4 * MIB else 0)
    assert plan.slab_bytes > CHUNK_PLAIN_BYTES_MAX
    assert plan.slabs >= 2 and plan.bundles >= 2
    assert plan.bundle_bytes >= small
    assert plan.ask_bytes < plan.slabs * plan.slab_bytes
    # While half of the bundles wait for an answer, the walk fills the others.
    assert plan.ask_bytes <= max(plan.bundles // 2, 1) * MIB


def test_few_questions_are_asked_under_the_default_ceiling() -> None:
    assert plan_memory(160 * MIB, 512 * KIB).ask_bytes == 7 * MIB


def test_pack_is_16_mib_where_there_is_room() -> None:
    assert plan_memory(512 * MIB, 512 * KIB).pack_bytes == 16 * MIB
    assert plan_memory(96 * MIB, 512 * KIB).pack_bytes == 3 * MIB

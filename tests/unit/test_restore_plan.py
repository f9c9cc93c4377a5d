"""Parts of a restore's plan that need no file system: selection, what is hidden, batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.restore.destination import RestoreScope, check_scope
from holdfast_agent.restore.pipeline import STEPS_MAX, Opened, Pipeline
from holdfast_agent.restore.selection import Hidden, Selection
from holdfast_agent.restore.steps import Bundle, Leave, Part, Piece, Step, need_of
from holdfast_agent.restore.tally import Action, Tally
from holdfast_agent.snapshots.snapshot import Found
from holdfast_agent.sources.roots import Roots
from holdfast_agent.sources.rules import Rules
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, Entry, EntryType, Extent, Stat
from holdfast_contract.errors import Cancelled, Damaged, InvalidInput, OutsideRoots, Refused
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer, Room
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import Mode


def found(path: bytes, kind: EntryType = EntryType.DIRECTORY, size: int = 0) -> Found:
    name = path.rpartition(b"/")[2] or b"/"
    return Found(path, Entry(Stat(name, kind, 0o755, size, 0, 0, 1, 0), Content()))


# --- selection
def test_patterns_are_relative_to_the_restored_directory_or_written_in_full() -> None:
    selection = Selection(found(b"/data"), exclude=["/cache", "/data/tmp"])
    assert selection.excludes(b"/data/cache", is_directory=True)
    assert selection.excludes(b"/data/tmp", is_directory=True)
    assert not selection.excludes(b"/data/x/cache", is_directory=True)


def test_the_restored_directory_itself_is_never_excluded() -> None:
    assert not Selection(found(b"/data"), exclude=["*"]).excludes(b"/data", is_directory=True)


def test_patterns_for_a_single_file_are_relative_to_its_directory() -> None:
    selection = Selection(found(b"/data/x.log", EntryType.FILE), exclude=["*.log"])
    assert selection.excludes(b"/data/x.log", is_directory=False)


def test_hidden_is_what_patterns_the_backup_or_its_report_leave_out() -> None:
    selection = Selection(found(b"/data"), include=["keep/"], exclude=["*.log"])
    rules = [(b"/data", Rules(["cache"], b"/data"))]
    hidden = Hidden(
        selection, rules, frozenset({b"/data/keep/lost/file"}), frozenset({b"/data/keep/lost"})
    )
    for path, is_directory in (
        (b"/data/other", False),
        (b"/data/keep/x.log", False),
        (b"/data/keep/cache/file", False),
        (b"/data/keep/lost", True),
        (b"/data/keep/lost/file", False),
    ):
        assert hidden.holds(path, is_directory=is_directory), path
    assert not hidden.holds(b"/data/keep/plain", is_directory=False)
    assert not hidden.is_empty
    assert Hidden(Selection(found(b"/data"))).is_empty


# --- scope
def test_scope_decides_before_anything_is_opened() -> None:
    roots = Roots.configured([b"/data"])
    with pytest.raises(Refused):
        check_scope(RestoreScope(mode=Mode.NEVER, roots=roots), b"/data/x", strip=False)
    with pytest.raises(OutsideRoots):
        check_scope(RestoreScope(mode=Mode.IN_PLACE, roots=roots), b"/database", strip=False)
    with pytest.raises(InvalidInput):
        check_scope(RestoreScope(mode=Mode.IN_PLACE, roots=roots), b"data", strip=False)
    check_scope(RestoreScope(mode=Mode.ALTERNATE, roots=roots), b"/data/x", strip=True)
    check_scope(RestoreScope(mode=Mode.IN_PLACE, roots=roots), b"", strip=False)


# --- tally
def test_counts_add_up_and_a_further_name_adds_no_bytes() -> None:
    tally = Tally(JobProgress(), wants_plan=True)
    tally.done(Action.CREATE, found(b"/d"))
    tally.done(Action.OVERWRITE, found(b"/d/f", EntryType.FILE, 10))
    tally.done(Action.METADATA, found(b"/d/g", EntryType.FILE, 10), counts_bytes=False)
    tally.done(Action.UNCHANGED, found(b"/d/h", EntryType.SYMLINK))
    tally.removed(b"/d/i", "file", 7)
    assert (tally.files, tally.dirs, tally.logical_bytes) == (3, 1, 10)
    assert (tally.created, tally.overwritten, tally.unchanged, tally.deleted) == (1, 2, 1, 1)
    assert [row["action"] for row in tally.plan] == ["create", "overwrite", "metadata", "delete"]


def test_the_same_damage_of_one_directory_is_told_once() -> None:
    tally = Tally(JobProgress())
    for _ in range(2):
        tally.broke(b"/d", Damaged("", object="packs/x", chunk="00"))
    assert (tally.damaged_count, tally.objects) == (1, ["packs/x"])


def test_rows_end_where_a_result_has_no_room_and_the_rest_is_counted() -> None:
    tally = Tally(JobProgress())
    for number in range(5000):
        tally.differs(b"/%d/" % number + b"x" * 8000, "mode", "lost")
    assert tally.not_exact_count == 5000
    assert 1000 < len(tally.not_exact) < 2200


# --- pipeline
class Reader:
    """Opens chunks by naming them; notes what was asked for, and by which thread."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.threads: set[int] = set()
        self.wait = threading.Event()
        self.wait.set()

    def ask(self, kind: ChunkType, ids: Sequence[bytes]) -> Asked:
        return Asked(self, list(ids))


class Asked:
    """Notes what is taken of one request, part by part."""

    def __init__(self, reader: Reader, ids: list[bytes]) -> None:
        self._reader = reader
        self._ids = ids

    def take(self, count: int, *rooms: Room) -> dict[bytes, Future[Buffer]]:
        self._reader.threads.add(threading.get_ident())
        self._reader.wait.wait(10)
        ids, self._ids = self._ids[:count], self._ids[count:]
        self._reader.asked.append(ids)
        found: dict[bytes, Future[Buffer]] = {chunk: Future() for chunk in ids}
        for chunk, future in found.items():
            future.set_result(b"plain " + chunk)
        return found

    def close(self) -> None:
        self._ids = []


def piece(*chunks: bytes, length: int = MIB) -> Piece:
    parts = [Part(Extent(chunk, 0, length), is_there=False) for chunk in chunks]
    return Piece(None, parts, is_last=True)  # type: ignore[arg-type]


def bundle(chunk: bytes, files: int = 1, used: int = 1) -> Bundle:
    return Bundle(None, None, [None] * files, [], chunk, used)  # type: ignore[arg-type, list-item]


def chunk(number: int) -> bytes:
    return b"%032d" % number


def executed(steps: Sequence[Step], bytes_max: int = 4 * MIB) -> tuple[list[Step], Reader]:
    reader, done = Reader(), []

    def execute(step: Step, opened: Opened) -> None:
        if isinstance(step, Piece):
            for extent in step.wanted():
                assert opened[extent.chunk] == b"plain " + extent.chunk
        done.append(step)

    with Pipeline(reader, need_of, execute, cancel=JobCancel(), bytes_max=bytes_max) as pipeline:  # type: ignore[arg-type]
        for step in steps:
            pipeline.put(step)
        pipeline.drain()
    return done, reader


def test_steps_are_executed_in_order_with_their_chunks() -> None:
    leave = Leave(None, None)  # type: ignore[arg-type]
    steps: list[Step] = []
    for number in range(40):
        steps += [piece(chunk(number), chunk(number // 3)), leave]
    done, reader = executed(steps)
    assert all(one is other for one, other in zip(done, steps, strict=True))
    assert threading.get_ident() not in reader.threads


def test_no_batch_fetches_more_than_it_may() -> None:
    _, reader = executed([piece(chunk(number)) for number in range(50)], bytes_max=3 * MIB)
    assert max(len(ids) for ids in reader.asked) == 3
    _, reader = executed([piece(chunk(number), length=1) for number in range(200)])
    assert max(len(ids) for ids in reader.asked) == 32


def test_files_of_a_bundle_count_one_by_one_and_their_chunk_up_to_where_they_end() -> None:
    _, reader = executed([bundle(chunk(number), STEPS_MAX // 4) for number in range(16)])
    assert {len(ids) for ids in reader.asked} == {4}
    bundles = [bundle(chunk(number), used=MIB) for number in range(12)]
    _, reader = executed(bundles, bytes_max=3 * MIB)
    assert [chunk for ids in reader.asked for chunk in ids] == [one.chunk for one in bundles]
    assert {len(ids) for ids in reader.asked} == {3}


def test_a_chunk_of_neighbouring_batches_is_fetched_once() -> None:
    _, reader = executed([piece(chunk(0), length=1) for _ in range(3 * STEPS_MAX)])
    assert reader.asked == [[chunk(0)]]


def test_holes_and_parts_that_are_there_are_not_fetched() -> None:
    there = Part(Extent(chunk(1), 0, 5), is_there=True)
    hole = Part(Extent(HOLE_CHUNK, 0, 5), is_there=False)
    _, reader = executed([Piece(None, [there, hole], is_last=True)])  # type: ignore[arg-type]
    assert reader.asked == []


def test_cancel_ends_the_wait_for_chunks_that_do_not_come() -> None:
    reader, cancel = Reader(), JobCancel()
    reader.wait.clear()
    with (
        pytest.raises(Cancelled),
        Pipeline(
            reader,  # type: ignore[arg-type]
            need_of,
            lambda step, opened: None,
            cancel=cancel,
            bytes_max=MIB,
        ) as pipeline,
    ):
        pipeline.put(piece(chunk(1)))
        cancel.set()
        try:
            pipeline.drain()
        finally:
            reader.wait.set()

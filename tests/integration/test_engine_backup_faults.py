"""A backup on a bad day: killed, cancelled, chunks missing or damaged, cache lost, state full."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from holdfast_agent.state.cache import TreeCache
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.journal import JobJournal
from holdfast_agent.state.memory import Memory, Remembered
from holdfast_contract.errors import (
    Cancelled,
    Conflict,
    HistoryRegressed,
    MissingChunks,
    NoSpace,
)
from holdfast_contract.limits import COMMIT_ROUNDS_MAX, KIB, MIB
from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import CLIENT, BackupBench, count, id_of, interrupting, on_disk
from tests.support.memory_repository import MemoryRepository, MemoryUploads


def fill(volume: Path, files: int = 60, seed: int = 1, big: int = 6 * MIB) -> None:
    rng = random.Random(seed)
    for number in range(files):
        folder = volume / f"d{number % 5}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number:03d}").write_bytes(rng.randbytes(rng.randrange(1, 60_000)))
    (volume / "big").write_bytes(rng.randbytes(big))


def setattr_fault(uploads: MemoryUploads, fault: Callable[[str], None]) -> None:
    uploads.fault = fault


class Killed(BaseException):
    """Stands for kill -9: nothing in the product catches it."""


STEPS = ["have", "pack", "pack acknowledged", "refs", "manifest", "commit", "commit acknowledged"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_first", [True, False])
def test_stopped_at_any_step_the_same_job_completes_when_it_comes_again(
    bench: BackupBench, step: str, is_first: bool
) -> None:
    if not is_first:
        fill(bench.volume, big=100)
        bench.run()
    fill(bench.volume, seed=2)
    order = bench.order()

    def kill(name: str) -> None:
        if name == step:
            raise Killed

    bench.prepare = lambda uploads: setattr(uploads, "fault", kill)
    with pytest.raises(Killed):
        bench.run(order)
    bench.prepare = lambda uploads: setattr(uploads, "fault", lambda name: None)
    done = bench.run(order)
    assert done.finished.state is JobState.COMPLETED
    assert bench.repository.head(CLIENT) == (order.head_seq + 1, done.finished.snapshot)
    assert len(bench.repository.snapshots) == order.head_seq + 1
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()
    # Whatever was lost, the next backup finds its parent's tree again.
    again = bench.run().finished.summary
    assert again["files_unmodified"] == again["files"] == 61
    assert int(str(again["bytes_sent"])) < 6 * KIB


def test_what_was_uploaded_before_a_kill_is_not_sent_again(bench: BackupBench) -> None:
    fill(bench.volume, big=30 * MIB)
    order = bench.order()

    def kill(name: str) -> None:
        if name == "refs":
            raise Killed

    bench.prepare = lambda uploads: setattr(uploads, "fault", kill)
    with pytest.raises(Killed):
        bench.run(order)
    sent = bench.session.bytes_sent
    bench.prepare = lambda uploads: setattr(uploads, "fault", lambda name: None)
    bench.run(order)
    assert bench.session.bytes_sent - sent < 6 * KIB


def test_commit_after_a_kill_tells_the_summary_of_before(bench: BackupBench) -> None:
    fill(bench.volume)
    order = bench.order()

    def kill(name: str) -> None:
        if name == "commit acknowledged":
            raise Killed

    bench.prepare = lambda uploads: setattr(uploads, "fault", kill)
    with pytest.raises(Killed):
        bench.run(order)
    (bench.volume / "later").write_bytes(b"not in this snapshot")
    bench.prepare = lambda uploads: setattr(uploads, "fault", lambda name: None)
    done = bench.run(order)
    assert done.finished.summary["files_new"] == 61
    assert b"later" not in bench.restored()


def test_cancel_ends_a_backup_at_any_step_without_a_snapshot(bench: BackupBench) -> None:
    fill(bench.volume)
    for step in ("have", "pack", "refs", "manifest"):
        bench.cancel = type(bench.cancel)()
        fault = interrupting(bench.cancel, step)
        bench.prepare = partial(setattr_fault, fault=fault)
        with pytest.raises(Cancelled):
            bench.run()
    assert bench.repository.snapshots == {}
    bench.cancel = type(bench.cancel)()
    bench.prepare = lambda uploads: None
    assert bench.run().finished.state is JobState.COMPLETED


def test_cancel_is_noticed_at_once_although_an_upload_hangs(bench: BackupBench) -> None:
    fill(bench.volume, big=40 * MIB)
    reached = threading.Event()
    release = threading.Event()

    def stall(name: str) -> None:
        # An upload that does not move: everything behind it fills up and waits.
        if name == "pack":
            reached.set()
            release.wait(20)

    bench.prepare = lambda uploads: setattr(uploads, "fault", stall)
    ended: list[float] = []

    def run() -> None:
        with pytest.raises(Cancelled):
            bench.run()
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(20)
    cancelled = time.monotonic()
    bench.cancel.set()
    thread.join(20)
    release.set()
    # 250 ms on a machine of its own; two shared cores get some more.
    assert ended[0] - cancelled < 1


def test_missing_chunks_are_made_anew_by_further_rounds(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    top = os.fsencode(bench.volume)
    bundle = bench.snapshot().find(top + b"/d1/f001").entry.content.extents[0].chunk
    large = bench.snapshot().find(top + b"/big").entry.content.extents[1].chunk
    tree = bench.snapshot().body.tree[0].chunk
    (bench.volume / "new").write_bytes(b"new")
    for chunk in (bundle, large, tree):
        bench.repository.forget(chunk)
    done = bench.run()
    summary = done.finished.summary
    assert done.finished.state is JobState.COMPLETED
    assert (summary["files"], summary["files_new"], summary["files_changed"]) == (62, 1, 0)
    assert bench.session.commits == 2
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()
    assert count(bench.run(), "bytes_sent") < 6 * KIB


def test_every_chunk_of_the_parent_may_be_missing(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    bench.repository.live.clear()
    done = bench.run()
    assert done.finished.summary["files_unmodified"] == 61
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_chunks_that_stay_missing_fail_the_job_after_five_rounds(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    (bench.volume / "new").write_bytes(b"new")

    class Leaking(MemoryUploads):
        def put_pack(self, buffers: Sequence[bytes | memoryview], length: int) -> None:
            super().put_pack(buffers, length)
            self._repository.live.clear()

    bench.repository.sessions["X"] = Leaking(bench.repository)
    order = bench.order(job="X" * 26)
    bench.repository.sessions[order.job] = Leaking(bench.repository)
    with pytest.raises(MissingChunks) as refused:
        bench.run(order)
    assert refused.value.details["chunks"]
    assert bench.repository.sessions[order.job].commits == COMMIT_ROUNDS_MAX


def test_damaged_chunks_are_healed_by_the_next_backup(bench: BackupBench) -> None:
    fill(bench.volume)
    first = bench.run()
    top = os.fsencode(bench.volume)
    large = bench.snapshot().find(top + b"/big").entry.content.extents[1].chunk
    bundle = bench.snapshot().find(top + b"/d1/f001").entry.content.extents[0].chunk
    tree = bench.snapshot().body.tree[0].chunk
    for chunk in (large, bundle, tree):
        bench.repository.damage(chunk)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert done.finished.summary["files_unmodified"] == 61
    assert large not in bench.repository.damaged
    # The same bytes make the same chunk: older snapshots are healed with it.
    assert large in bench.repository.refs(id_of(first))
    left = bench.repository.damaged
    assert not left.intersection(bench.repository.refs(id_of(done)))
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_what_stays_damaged_is_listed_and_the_snapshot_is_incomplete(bench: BackupBench) -> None:
    fill(bench.volume, files=5, big=2 * MIB)
    bench.run()
    large = bench.snapshot().find(os.fsencode(bench.volume / "big")).entry.content.extents[0].chunk

    class Hopeless(MemoryRepository):
        """Every copy of one chunk comes out damaged."""

        def uploads(self, job: str) -> MemoryUploads:
            found = super().uploads(job)
            found.fault = lambda step: self.damaged.add(large)
            return found

    bench.repository.__class__ = Hopeless
    bench.repository.damage(large)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [(row["path"], row["reason"]) for row in done.result.skipped] == [
        (str(bench.volume / "big"), "damaged")
    ]
    body = bench.snapshot().body
    assert body.result == "incomplete"
    assert len(next(iter(bench.snapshot().reports())).rows) == 1
    assert bench.session.commits == COMMIT_ROUNDS_MAX + 1


def test_a_lost_cache_is_rebuilt_from_the_parent(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    (bench.state_path / "cache.sqlite").unlink()
    done = bench.run()
    assert done.finished.summary["files_unmodified"] == 61
    # The refs are a full list again: 32 bytes a chunk.
    assert count(done, "bytes_sent") < 6 * KIB
    assert bench.session.pack_lengths == []
    bench.check_refs()


def test_a_torn_cache_is_rebuilt_too(bench: BackupBench) -> None:
    fill(bench.volume)
    for damage in (b"", b"no database at all" * 1000):
        bench.run()
        (bench.state_path / "cache.sqlite").write_bytes(damage)
        assert bench.run().finished.summary["files_unmodified"] in (0, 61)
        bench.check_refs()


def test_cache_that_breaks_in_the_middle_costs_only_time(bench: BackupBench) -> None:
    fill(bench.volume, files=2000, big=10)
    bench.run()
    path = bench.state_path / "cache.sqlite"
    content = bytearray(path.read_bytes())
    for position in range(8 * 4096, len(content), 4096):
        content[position : position + 64] = bytes(64)
    path.write_bytes(content)
    (bench.volume / "new").write_bytes(b"x")
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.run().finished.summary["files_unmodified"] == 2002


def test_cache_of_another_snapshot_is_not_used(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    old = (bench.state_path / "cache.sqlite").read_bytes()
    (bench.volume / "d1" / "f001").write_bytes(b"second")
    bench.run()
    (bench.state_path / "cache.sqlite").write_bytes(old)
    assert bench.run().finished.summary["files_unmodified"] == 61
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_parent_with_damaged_tree_is_read_as_far_as_it_goes(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    (bench.state_path / "cache.sqlite").unlink()
    bench.repository.damage(bench.snapshot().body.tree[0].chunk)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert bench.restored() == on_disk(bench.volume)
    assert not bench.repository.damaged.intersection(bench.repository.refs(bench.snapshot().id))


def test_full_state_directory_makes_a_backup_slow_not_impossible(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.volume)

    def full(*arguments: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "replace", full)
        patch.setattr(TreeCache, "finish", lambda *a: None)
        assert bench.run().finished.state is JobState.COMPLETED
    done = bench.run()
    assert done.finished.summary["files_unmodified"] == 61
    assert bench.restored() == on_disk(bench.volume)


def test_second_agent_on_the_same_state_is_refused(bench: BackupBench) -> None:
    first = StateDirectory(bench.state_path)
    with pytest.raises(Conflict) as refused:
        StateDirectory(bench.state_path)
    assert refused.value.exit_code == 11
    assert str(os.getpid()) in refused.value.message
    first.close()
    StateDirectory(bench.state_path).close()


def test_server_that_shows_an_older_history_is_found_out(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=10)
    first = bench.run()
    bench.run()
    bench.repository.heads[CLIENT] = (1, id_of(first))
    before = bench.uploads
    with pytest.raises(HistoryRegressed):
        bench.run()
    assert bench.uploads is before


def test_server_that_shows_another_history_is_found_out(bench: BackupBench, tmp_path: Path) -> None:
    fill(bench.volume, files=3, big=10)
    other = tmp_path / "other"
    other.mkdir()
    twin = BackupBench(other)
    fill(twin.volume, files=4, big=10)
    bench.run()
    for _ in range(3):
        twin.run()
    bench.repository = twin.repository
    with pytest.raises(HistoryRegressed):
        bench.run()


def test_newer_head_is_followed_to_what_is_remembered(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=10)
    first = bench.run()
    bench.run()
    bench.run()
    state = StateDirectory(bench.state_path)
    Memory(state).keep(Remembered(1, id_of(first)))
    state.close()
    done = bench.run()
    assert bench.snapshot(done).body.known_seq == 1
    state = StateDirectory(bench.state_path)
    assert Memory(state).load() == Remembered(4, id_of(done))
    state.close()


def test_lost_state_goes_on_from_the_servers_head(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=10)
    bench.run()
    for path in bench.state_path.iterdir():
        path.unlink()
    done = bench.run()
    assert (bench.snapshot(done).body.seq, done.finished.summary["files_unmodified"]) == (2, 4)


def test_journal_keeps_the_order_until_it_is_forgotten(bench: BackupBench) -> None:
    fill(bench.volume, files=1, big=10)
    order = bench.order()
    done = bench.run(order)
    state = StateDirectory(bench.state_path)
    journal = JobJournal(state)
    journal.end(order.job, done.encode())
    assert [known.ended for known in journal.all()] == [done.encode()]
    journal.forget(order.job)
    assert journal.all() == []
    state.close()

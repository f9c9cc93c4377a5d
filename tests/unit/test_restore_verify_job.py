"""Verifying a snapshot: everything opened, computed again, and compared with the refs."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_contract.errors import Cancelled, NotFound
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState
from tests.support.restore_bench import RestoreBench


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    rng = random.Random(5)
    for name, size in (("a/1", 100), ("a/2", 4000), ("b/big", 3 * MIB)):
        (bench.volume / name).parent.mkdir(exist_ok=True)
        (bench.volume / name).write_bytes(rng.randbytes(size))
    os.link(bench.volume / "b" / "big", bench.volume / "a" / "big too")
    return bench


def test_a_whole_snapshot_verifies_and_is_counted(bench: RestoreBench) -> None:
    bench.backed_up()
    done = bench.verify()
    assert done.finished.state is JobState.COMPLETED
    summary = done.finished.summary
    assert (summary["files"], summary["dirs"], summary["bytes"]) == (4, 3, 3 * MIB + 4100)
    assert done.finished.error is None and done.result.damaged == []


def test_every_chunk_of_a_snapshot_is_opened(bench: RestoreBench) -> None:
    snapshot = bench.backed_up()
    for chunk in bench.repository.refs(snapshot):
        bench.bad = {chunk}
        done = bench.verify()
        assert done.finished.state is JobState.FAILED
        failure = done.finished.error
        assert failure is not None and failure.code == "damaged"
        assert bench.repository.live[chunk].object in failure.message


def test_damage_names_the_files_that_it_touches(bench: RestoreBench) -> None:
    bench.backed_up()
    snapshot = bench.snapshot()
    entry = snapshot.find(os.fsencode(bench.volume / "a" / "1")).entry
    bench.bad = {extent.chunk for extent in snapshot.extents(entry)}
    done = bench.verify()
    assert [Path(row["path"]).name for row in done.result.damaged] == ["1", "2"]


def test_only_the_part_asked_for_is_opened(bench: RestoreBench) -> None:
    bench.backed_up()
    snapshot = bench.snapshot()
    entry = snapshot.find(os.fsencode(bench.volume / "b" / "big")).entry
    bench.bad = {extent.chunk for extent in snapshot.extents(entry)}
    assert bench.verify(os.fsencode(bench.volume / "b")).finished.state is JobState.FAILED
    with pytest.raises(NotFound):
        bench.verify(b"/nothing")


@pytest.mark.parametrize("field", ["refs_set", "refs_count"])
def test_refs_that_are_not_what_is_reached_are_damage(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    bench.backed_up()
    original = Snapshot.__init__
    wrong = {"refs_set": bytes(32), "refs_count": 1}

    def altered(self: Snapshot, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)  # type: ignore[arg-type]
        self.body = msgspec.structs.replace(self.body, **{field: wrong[field]})

    monkeypatch.setattr(Snapshot, "__init__", altered)
    done = bench.verify()
    assert done.finished.state is JobState.FAILED
    assert "manifest" in str(done.result.damaged[0]["object"])


def test_a_cancelled_verification_ends(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.cancel.set()
    with pytest.raises(Cancelled):
        bench.verify()

"""Generated trees come back equal in every attribute: elsewhere, and in place after edits."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.restore.target import Target
from holdfast_contract.protocol.control import JobState, Overwrite
from tests.support.generate import plan_tree
from tests.support.materialise import materialise
from tests.support.mutate import mutate
from tests.support.restore_bench import RestoreBench, under
from tests.support.trees import Aspect, Tree, compare, scan

# A snapshot keeps holes by units of 64 KiB, the comparator knows the file system's blocks.
GRAIN = (Aspect.HOLES, Aspect.ALLOCATION)
COUNTS = ("files", "dirs", "bytes", "created", "overwritten", "deleted", "unchanged")


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """The order of writes is what counts here, not that they last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "sync", lambda self: None)
        yield


@contextmanager
def bench_of(seed: int) -> Iterator[RestoreBench]:
    top = tempfile.mkdtemp()
    try:
        bench = RestoreBench(Path(top))
        os.rmdir(bench.volume)
        materialise(plan_tree(seed), bench.volume)
        yield bench
    finally:
        # Names may be deeper than a path can say: this goes by descriptors.
        shutil.rmtree(top)


def counts(outcome: Outcome) -> dict[str, object]:
    return {name: outcome.finished.summary[name] for name in COUNTS}


def number_of(tree: Tree) -> tuple[int, int]:
    directories = sum(facts.type == "directory" for facts in tree.values())
    return len(tree) - directories, directories


def check_restored_elsewhere(seed: int) -> None:
    with bench_of(seed) as bench:
        wanted = scan(bench.volume)
        bench.backed_up()
        foretold = bench.restore(target=bench.out, dry_run=True)
        assert not bench.out.exists()
        done = bench.restore(target=bench.out, verify=True)
        assert done.finished.state is JobState.COMPLETED, done.result.not_exact
        assert compare(wanted, scan(under(bench.out, bench.volume)), ignore=GRAIN) == []
        assert counts(foretold) == counts(done)
        summary = done.finished.summary
        assert (summary["files"], summary["dirs"]) == number_of(wanted)
        assert (summary["created"], summary["overwritten"]) == (len(wanted), 0)
        again = bench.restore(target=bench.out, overwrite=Overwrite.ALWAYS)
        assert again.finished.summary["unchanged"] == len(wanted)
        assert bench.source is not None and not content_chunks(bench)


def check_restored_in_place(seed: int) -> None:
    with bench_of(seed) as bench:
        wanted = scan(bench.volume)
        bench.backed_up()
        for day in range(3):
            mutate(bench.volume, seed + day)
        edited = scan(bench.volume)
        foretold = bench.restore(overwrite=Overwrite.ALWAYS, delete=True, dry_run=True)
        assert compare(edited, scan(bench.volume)) == []
        done = bench.restore(overwrite=Overwrite.ALWAYS, delete=True)
        assert done.finished.state is JobState.COMPLETED, done.result.not_exact
        assert compare(wanted, scan(bench.volume), ignore=GRAIN) == []
        assert counts(foretold) == counts(done)
        summary = done.finished.summary
        touched = int(summary["created"] or 0) + int(summary["overwritten"] or 0)
        assert touched + int(summary["unchanged"] or 0) == len(wanted)
        assert len(foretold.result.plan) == touched + int(summary["deleted"] or 0)


def content_chunks(bench: RestoreBench) -> list[bytes]:
    """Return the content chunks that the last restore fetched."""
    assert bench.source is not None
    return [chunk for chunk in bench.source.fetched if bench.repository.live[chunk].type == 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_generated_tree_comes_back_equal_elsewhere(seed: int) -> None:
    check_restored_elsewhere(seed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_an_edited_tree_comes_back_equal_in_place_as_the_dry_run_foretold(seed: int) -> None:
    check_restored_in_place(seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_five_thousand_generated_trees_come_back_equal() -> None:
    for seed in range(2500):
        check_restored_elsewhere(seed)
        check_restored_in_place(seed)

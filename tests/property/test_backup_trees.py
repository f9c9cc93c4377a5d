"""Generated trees come into the snapshot whole, day after day; refs name what is reached."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import BackupBench
from tests.support.generate import plan_tree
from tests.support.materialise import materialise
from tests.support.mutate import mutate
from tests.support.snapshot_facts import snapshot_facts
from tests.support.trees import Aspect, compare, scan

# The comparator knows holes by the file system's blocks, a snapshot by units of 64 KiB.
GRAIN = (Aspect.HOLES, Aspect.ALLOCATION)


def check(bench: BackupBench) -> None:
    outcome = bench.run()
    assert outcome.finished.state is JobState.COMPLETED, outcome.result.skipped
    tree = scan(bench.volume)
    facts = snapshot_facts(bench.snapshot(outcome), os.fsencode(bench.volume))
    assert compare(tree, facts, ignore=GRAIN) == []
    bench.check_refs(outcome)
    summary = outcome.finished.summary
    files = [facts for facts in tree.values() if facts.type != "directory"]
    assert summary["files"] == len(files)
    assert summary["dirs"] == len(tree) - len(files)
    by_inode = {facts.inode or path: facts.size for path, facts in tree.items()}
    assert summary["bytes"] == sum(by_inode.values())
    classes = ("files_new", "files_changed", "files_unmodified")
    assert sum(int(summary[name] or 0) for name in classes) == len(files)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), days=st.integers(0, 3))
def test_a_generated_tree_and_its_next_days_are_in_the_snapshots(seed: int, days: int) -> None:
    with tempfile.TemporaryDirectory() as top:
        bench = BackupBench(Path(top))
        os.rmdir(bench.volume)
        materialise(plan_tree(seed), bench.volume)
        check(bench)
        for day in range(days):
            mutate(bench.volume, seed + day)
            check(bench)
        remove_all(bench.volume)


def remove_all(top: Path) -> None:
    """Remove what may be deeper than a path can say."""
    os.system(f"rm -rf {top}")

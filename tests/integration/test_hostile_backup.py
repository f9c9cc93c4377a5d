"""A backup beside a neighbour that swaps the very name of each step: nothing from outside is read.

The store is opened chunk by chunk afterwards: content, names, times and attributes of what lies
outside the roots must stand nowhere in it.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.crypto.sealing import Opener
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_contract.errors import NothingRead
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.ids import ChunkId
from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import BackupBench, DayClock
from tests.support.memory_repository import MemoryRepository
from tests.support.neighbour import TRAPS, Neighbour
from tests.support.samples import DOMAIN, IDENTITY_RECORD, KEYS

ATTEMPTS = 20_000
RUNS_MAX = 400
CANARY = b"canary-9c1f4e-content"
CANARY_NAME = b"canary-name-71d0"
CANARY_XATTR = b"canary-attribute-5ab2"
CANARY_TIME_NS = 1_234_567_890_123_456_789
SECRETS = (CANARY, CANARY_NAME, CANARY_XATTR, struct.pack(">q", CANARY_TIME_NS))

pytestmark = pytest.mark.timeout(300)


class Impatient(JobCancel):
    """Lets the second look come at once."""

    def wait(self, timeout_seconds: float) -> bool:
        return self.is_set()


class Ahead(DayClock):
    """To the walk every file is old: no second look."""

    def stamp_ns(self) -> int:
        return super().stamp_ns() + 3_600_000_000_000


def plant(folder: Path, *, is_outside: bool) -> None:
    """Make the same paths inside and outside, with other content."""
    for number in range(12):
        deep = folder / f"d{number}" / "e" / "f"
        deep.mkdir(parents=True)
        for place in (deep, deep.parent, deep.parent.parent):
            for name in ("a", "b", "c", "g"):
                (place / name).write_bytes(CANARY if is_outside else b"inside %d" % number)
            if is_outside:
                (place / os.fsdecode(CANARY_NAME)).write_bytes(b"x")
    (folder / "large").write_bytes((CANARY if is_outside else b"inside") * 40_000)
    (folder / "hard1").write_bytes(CANARY if is_outside else b"linked")
    os.link(folder / "hard1", folder / "hard2")
    (folder / "symlink").symlink_to("d0/a")
    (folder / "secret").write_bytes(CANARY)
    if not is_outside:
        (folder / "secret").write_bytes(b"not secret")
        return
    for path in folder.rglob("*"):
        if not path.is_symlink():
            os.setxattr(path, "user.canary", CANARY_XATTR)
            os.utime(path, ns=(CANARY_TIME_NS, CANARY_TIME_NS))
    os.utime(folder, ns=(CANARY_TIME_NS, CANARY_TIME_NS))


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    (tmp_path / "outside").mkdir()
    plant(tmp_path / "volume", is_outside=False)
    plant(tmp_path / "outside", is_outside=True)
    (tmp_path / "linked").write_bytes(b"a file that has a name in the volume is in the volume")
    return tmp_path


def plaintexts(repository: MemoryRepository) -> Iterator[bytes]:
    opener = Opener(KEYS)
    for chunk, stored in repository.live.items():
        yield opener.open(ChunkType(stored.type), ChunkId(chunk), stored.sealed)


def check_store(bench: BackupBench, context: str) -> None:
    texts = list(plaintexts(bench.repository))
    for secret in SECRETS:
        assert not any(secret in text for text in texts), f"{secret!r} is in the store: {context}"


def attack(pod: Path, *, attempts: int, seed: int, traps: tuple[str, ...] = TRAPS) -> Counter[str]:
    """Back up until the neighbour had so many attempts; every store is looked through."""
    kinds: Counter[str] = Counter()
    bench = BackupBench(pod)
    outcomes: Counter[str] = Counter()
    for run in range(max(RUNS_MAX, attempts // 20)):
        if run % 8 == 0:
            bench = BackupBench(pod, MemoryRepository(DOMAIN))
            bench.repository.add_identity(IDENTITY_RECORD)
            bench.state_path = pod / f"state{run}"
            bench.cancel = Impatient()
        if run % 3:
            bench.clock = Ahead()
        neighbour = Neighbour(
            bench.volume, pod / "outside", seed=seed + run, traps=traps, hard_to=pod / "linked"
        )
        try:
            with neighbour:
                outcome = bench.run(bench.order(paths=[os.fsencode(bench.volume)]))
            outcomes[outcome.finished.state] += 1
            bench.check_refs(outcome)
        except NothingRead:
            outcomes["nothing read"] += 1
        assert neighbour.failures == []
        kinds += neighbour.by_kind
        if run % 8 == 7 or kinds.total() >= attempts:
            check_store(bench, f"seeds up to {seed + run}")
        if kinds.total() >= attempts:
            break
    assert kinds.total() >= attempts, f"only {kinds}"
    done = outcomes[JobState.COMPLETED] + outcomes[JobState.COMPLETED_WITH_SKIPS]
    assert done > outcomes.total() // 4, outcomes
    return kinds


def test_nothing_from_outside_is_ever_stored(pod: Path) -> None:
    kinds = attack(pod, attempts=ATTEMPTS, seed=1)
    assert min(kinds[kind] for kind in TRAPS) > 200, f"a kind was hardly met: {kinds}"


@pytest.mark.soak
def test_nothing_from_outside_is_stored_in_ten_times_as_many(pod: Path) -> None:
    attack(pod, attempts=10 * ATTEMPTS, seed=10**6)

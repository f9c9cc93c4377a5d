"""Corpus replayed, then mutated: only our errors, in bounded memory and time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import CORPUS, TARGETS, Target

MUTATIONS = int(os.environ.get("HOLDFAST_FUZZ_MUTATIONS", "1000"))
ENGINE_RUNS = 3_000
SOAK_RUNS = 100_000
SECONDS_MAX = 5.0
"""Longest that one input may take: a thousand times what it does, for a machine under load."""
PEAK_BYTES_MAX = 32 << 20
"""Asked of Python's allocator, touched or not, by one decoder: some hold a chunk of 4 MiB twice."""
MEMORY_BYTES_MAX = 96 << 20
"""By how much this process may grow over all targets; the largest object here is 64 KiB."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_seeds_and_finds_are_decoded_or_refused_in_bounded_memory(target: Target) -> None:
    seeds = target.corpus()
    tracemalloc.start()
    try:
        accepted = [target.run(data) for data in seeds]
        for data in (b"", b"\0", b"\xff" * 300, b"\x91" * 5000):
            target.run(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert any(accepted), "one seed at least is sound: without it nothing is reached"
    assert peak < PEAK_BYTES_MAX


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_mutations_are_decoded_or_refused_in_bounded_time_and_memory(target: Target) -> None:
    rng = Random(target.name)
    seeds = target.corpus()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(MUTATIONS):
        data = mutated(rng.choice(seeds), seeds, rng)
        began = time.thread_time()
        try:
            target.run(data)
        except Exception as error:
            raise AssertionError(f"{target.name}, mutation {number}: {data.hex()}") from error
        assert time.thread_time() - began < SECONDS_MAX, data.hex()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY_BYTES_MAX


def test_every_folder_of_the_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 1 << 20


def _engine(folder: Path, name: str, runs: int, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run the engine; what it finds interesting goes into a folder of its own."""
    finds = folder / "finds"
    finds.mkdir()
    seeds = _prefixed(folder / "seeds") if name == "everything" else CORPUS / name
    options = [f"-runs={runs}", "-seed=1", "-max_len=4096", "-timeout=60", "-rss_limit_mb=1024"]
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.engine", name, finds, seeds, *options],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


def _prefixed(folder: Path) -> Path:
    """Return a folder with all seeds, each behind the byte that chooses its target."""
    folder.mkdir()
    for number, target in enumerate(TARGETS.values()):
        for index, data in enumerate(target.corpus()):
            (folder / f"{target.name}-{index}").write_bytes(bytes([number]) + data)
    return folder


def test_the_engine_finds_nothing_in_a_short_while(tmp_path: Path) -> None:
    done = _engine(tmp_path, "everything", ENGINE_RUNS, 280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {ENGINE_RUNS} runs" in done.stderr


def test_a_crash_is_a_file_and_replays_from_it(tmp_path: Path) -> None:
    """With a decoder that has a defect: the engine writes the input, and it fails again."""
    broken = tmp_path / "broken.py"
    broken.write_text(ENGINE_WITH_DEFECT)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def run(*options: object) -> str:
        command = [sys.executable, str(broken), "moment", *map(str, options)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
            env=environ,
        )  # fmt: skip
        assert done.returncode != 0
        return done.stderr + done.stdout

    assert "ZeroDivisionError" in run(CORPUS / "moment", "-runs=1000", "-seed=1")
    (crash,) = tmp_path.glob("crash-*")
    assert "ZeroDivisionError" in run(crash)


ENGINE_WITH_DEFECT = """
from tests.fuzz import engine, targets

def defect(data):
    if data[:2] == b"20":
        1 / 0

sound = targets.TARGETS["moment"]
targets.TARGETS["moment"] = targets.Target("moment", defect, None)
engine.main()
"""


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_the_engine_finds_nothing_in_a_long_while(tmp_path: Path, target: str) -> None:
    done = _engine(tmp_path, target, SOAK_RUNS, 3600)
    assert done.returncode == 0, done.stderr[-4000:]

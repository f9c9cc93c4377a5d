"""Has something become slower? CPU seconds as ratios to what the machine itself needs.

    make bench-quick                     compare with ratios.json; exit 1 where one is worse
    python tests/bench/quick.py --save   keep these ratios to compare with

Each step of the main job runs on seeded data; beside it runs, in the same minute, what the machine
needs at least for the same work: read and compress, look at every file, write every file. Only the
quotient is compared, so that another machine or a busy one gives about the same. Two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.world import World, under

KEPT = Path(__file__).with_name("ratios.json")
SMALL_FILES = 20_000
BULK_FILES, BULK_BYTES = 6, 64 << 20
WORSE = 1.35
"""A step is slower when its ratio grew by so much: less is the noise of a shared machine."""
CLIENT = "bench/agent"
TICK = os.sysconf("SC_CLK_TCK")


# --- data
def make_small(top: Path) -> None:
    """Make small files of log-normal size (median 5 KiB) in folders of 200."""
    draw = random.Random(5)
    words = [draw.randbytes(draw.randrange(3, 12)).hex().encode() for _ in range(4_000)]
    for number in range(SMALL_FILES):
        folder = top / f"{number // 200:03d}"
        if number % 200 == 0:
            folder.mkdir(parents=True)
        size = min(int(draw.lognormvariate(8.5, 1.2)), 400_000)
        text = b" ".join(draw.choices(words, k=size // 14 + 1))[:size]
        (folder / f"{number:06d}.txt").write_bytes(text)


def make_bulk(top: Path) -> None:
    """Make big files, half of them compressible."""
    top.mkdir()
    draw = random.Random(7)
    for number in range(BULK_FILES):
        with open(top / f"{number}.bin", "wb") as file:
            for _ in range(BULK_BYTES >> 20):
                noise = draw.randbytes(1 << 20 if number % 2 else 1 << 18)
                file.write(noise if number % 2 else noise[: 1 << 18] * 4)


def files_of(top: Path) -> Iterator[str]:
    """Yield every file's path."""
    for folder, _, names in os.walk(top):
        yield from (os.path.join(folder, name) for name in names)


# --- what the machine needs at least
def read_and_compress(top: Path) -> None:
    """Read, hash and compress everything, in pieces of a MiB."""
    compressor = zstandard.ZstdCompressor(level=1)
    waiting = bytearray()
    for path in files_of(top):
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                waiting += piece
                if len(waiting) >= 1 << 20:
                    blake3(waiting)
                    compressor.compress(waiting)
                    waiting = bytearray()


def look(top: Path) -> None:
    """Look at every file."""
    for path in files_of(top):
        os.lstat(path)


def hash_all(top: Path) -> None:
    """Read and hash everything."""
    buffer = memoryview(bytearray(1 << 20))
    for path in files_of(top):
        with open(path, "rb", buffering=0) as file:
            while got := file.readinto(buffer):
                blake3(buffer[:got])


def write_all(top: Path) -> None:
    """Write everything again, as a careful program does: under another name, then renamed."""
    out = Path(tempfile.mkdtemp(dir=top.parent))
    for number, path in enumerate(files_of(top)):
        with open(path, "rb") as source, open(out / "new", "xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            os.fchmod(file.fileno(), 0o640)
            os.utime(file.fileno(), ns=(0, number))
        os.rename(out / "new", out / f"{number}")
    shutil.rmtree(out)


def cpu_of(work: Callable[[], None]) -> float:
    """Return the CPU seconds of this process for `work`."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


# --- what we need
@dataclass
class Bench:
    """A server and an agent; `ratios` are found one after the other."""

    world: World
    ratios: dict[str, float] = field(default_factory=dict)

    def cpu(self) -> float:
        """Return the CPU seconds so far of agent, server and every command that ended."""
        done = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert self.world.server is not None
        processes = [self.world.server, *self.world.agents.values()]
        return done.ru_utime + done.ru_stime + sum(_cpu_of_pid(p.popen.pid) for p in processes)

    def step(self, name: str, work: Callable[[], object], least: Callable[[], None]) -> None:
        """Measure one step of the main job beside what the machine needs for it."""
        limit = min(cpu_of(least) for _ in range(2))
        begin = self.cpu()
        work()
        ours = self.cpu() - begin
        self.ratios[name] = round(ours / limit, 2)
        print(f"  {name:28s} {ours:7.2f} s / {limit:6.2f} s = {ours / limit:6.2f}", flush=True)


def _cpu_of_pid(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measure(top: Path) -> dict[str, float]:
    """Run every step once in `top`."""
    small, bulk, out = top / "small", top / "bulk", top / "out"
    make_small(small)
    make_bulk(bulk)
    with World(top / "world") as world:
        world.top.mkdir()
        world.start_server()
        world.start_agent(CLIENT, [small, bulk, out])
        bench = Bench(world)
        print("  step                           agent, server, command / machine")

        def back_up(path: Path) -> Callable[[], object]:
            return lambda: world.backup(CLIENT, path)

        def restore(path: Path) -> Callable[[], object]:
            def work() -> None:
                world.restore(f"{CLIENT}@latest:{path}", "--target", out)
                shutil.rmtree(under(out, path))

            return work

        bench.step("first, small files", back_up(small), lambda: read_and_compress(small))
        bench.step("unchanged, small files", back_up(small), lambda: look(small))
        bench.step("restore, small files", restore(small), lambda: write_all(small))
        names = ["ls", "-R", f"{CLIENT}@latest:{small}"]
        bench.step("list, small files", lambda: world.cli(*names), lambda: look(small))
        bench.step("first, big files", back_up(bulk), lambda: read_and_compress(bulk))
        with open(bulk / "0.bin", "r+b") as file:
            file.seek(BULK_BYTES // 2)
            file.write(b"!")
        bench.step("one byte, big files", back_up(bulk), lambda: hash_all(bulk))
        bench.step("restore, big files", restore(bulk), lambda: write_all(bulk))
    return bench.ratios


def slower(found: dict[str, float], kept: dict[str, float]) -> list[str]:
    """Return a line for each step whose ratio has grown by more than the noise."""
    return [
        f"{name}: {ratio}, was {kept[name]}"
        for name, ratio in found.items()
        if name in kept and ratio > kept[name] * WORSE
    ]


def main() -> int:
    """Measure and compare, or save."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--save", action="store_true", help="keep today's ratios")
    is_saving = options.parse_args().save
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as top:
        found = measure(Path(top))
    if is_saving:
        KEPT.write_text(json.dumps(found, indent=2) + "\n")
        return 0
    if not KEPT.exists():
        print(f"nothing to compare with: --save keeps these in {KEPT.name}")
        return 0
    worse = slower(found, json.loads(KEPT.read_text()))
    print("\n".join(["slower than before:", *worse] if worse else ["nothing became slower"]))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

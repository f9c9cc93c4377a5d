"""What each step of large content costs by itself, beside what the machine needs for its bytes.

    make bench-micro                      every step
    python tests/bench/micro.py seal      one of them

CPU seconds of this process, the least of three rounds; product and machine in turns on the same
bytes. The machine's share is what the libraries and the kernel take for the same work when nothing
stands around them. Under a minute.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from holdfast_agent.crypto.keys import chunk_id, content_id
from holdfast_agent.crypto.sealing import Opener, Sealer
from holdfast_agent.engine.cutting import FastCdc
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.plain import PlainWriter
from holdfast_agent.restore.target import Target
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_agent.tree.page import encode_page, encode_stat_part, page_stat_part
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import CHUNKER_DEFAULT
from holdfast_contract.ids import ClientName
from holdfast_contract.limits import KIB, MIB
from holdfast_server.stores.local import LocalStore
from tests.support.samples import KEYS, ids
from tests.support.uploads import Served, pack_of

CHUNKS = 48
ROUNDS = 3
PACKS = 4
PIECE_BYTES = 256 * KIB
"""What one turn of the event loop receives."""
PAGES, PAGE_FILES = 100, 300
REFS = 20_000
SMALL_FILES = 5_000

Work = Callable[[], object]
Pair = tuple[Work, Work, float, str]
"""Ours, the machine's, how many units are done, and the unit."""


def chunks() -> list[memoryview]:
    """Return chunks of 1 MiB as D1 mixes them: three compressible ones to each random one."""
    draw = random.Random(3)
    words = [draw.randbytes(draw.randrange(3, 12)).hex().encode() for _ in range(4_000)]
    made = []
    for number in range(CHUNKS):
        text = draw.randbytes(MIB) if number % 4 == 3 else b" ".join(draw.choices(words, k=75_000))
        made.append(memoryview(text)[:MIB])
    return made


# --- the agent
@contextmanager
def chunk(top: Path) -> Iterator[Pair]:
    """Find the cut points; a pass of BLAKE3 is what looking at every byte takes."""
    del top
    data = memoryview(b"".join(chunks()))
    cutter = FastCdc(CHUNKER_DEFAULT, seed=5)
    yield lambda: list(cutter.cut(data)), lambda: blake3(data), len(data) / 1e9, "GB"


@contextmanager
def seal(top: Path) -> Iterator[Pair]:
    """Identify, compress, encrypt and hash into a place that waits."""
    del top
    data = chunks()
    place = memoryview(bytearray(2 * MIB))
    sealer = Sealer(KEYS)
    compressor, key = zstandard.ZstdCompressor(level=1), AESGCM(bytes(32))

    def ours() -> None:
        for plain in data:
            sealer.seal(ChunkType.CONTENT, plain, room=lambda size: place[:size])

    def machine() -> None:
        for plain in data:
            blake3(plain)
            packed = compressor.compress(plain)
            key.encrypt_into(bytes(12), packed, b"", place[: len(packed) + 16])
            blake3(place[: len(packed)])

    yield ours, machine, len(data) * MIB / 1e9, "GB"


@contextmanager
def page_compare(top: Path) -> Iterator[Pair]:
    """Tell that pages are as they were; looking at a file is what each entry costs before."""
    stats = [
        Stat(f"file {n:06d}".encode(), EntryType.FILE, 0o640, n, n * 10**9, n, n + 1, 0)
        for n in range(PAGE_FILES)
    ]
    page = encode_page(encode_stat_part(stats), [Content()] * PAGE_FILES)
    path = top / "file"
    path.touch()

    def ours() -> None:
        for _ in range(PAGES):
            assert encode_stat_part(stats) == page_stat_part(page)

    def machine() -> None:
        for _ in range(PAGES * PAGE_FILES):
            os.lstat(path)

    yield ours, machine, PAGES * PAGE_FILES / 1e6, "million files"


@contextmanager
def restore_write(top: Path) -> Iterator[Pair]:
    """Open chunks and write them as a file that then gets its metadata and its name."""
    plain = chunks()
    sealer, opener, arena = Sealer(KEYS), Opener(KEYS), Arena(2 * MIB)
    sealed = [sealer.seal(ChunkType.CONTENT, one) for one in plain]
    packed = [zstandard.ZstdCompressor(level=1).compress(one) for one in plain]
    size = sum(map(len, plain))
    stat = Stat(b"file", EntryType.FILE, 0o640, size, 10**18, 0, 1, 0)
    content = Content(uid=os.geteuid(), gid=os.getegid())

    def ours() -> None:
        with (
            Target.open(os.fsencode(top), run="micro") as target,
            target.directory(()).create_file(b"file") as writer,
        ):
            for at, one in enumerate(sealed):
                arena.clear()
                data = opener.open_into(ChunkType.CONTENT, one.chunk_id, one.sealed, arena.take)
                writer.write(memoryview(data), at * MIB)
            writer.finish(size, stat, content, Policy(special=True))
            writer.commit()
        (top / "file").unlink()

    def machine() -> None:
        unpacker = zstandard.ZstdDecompressor()
        with open(top / "other", "xb", buffering=0) as file:
            for one in packed:
                data = unpacker.decompress(one)
                chunk_id(KEYS, ChunkType.CONTENT, data)
                file.write(data)
        (top / "other").unlink()

    yield ours, machine, size / 1e9, "GB"


@contextmanager
def restore_small(top: Path) -> Iterator[Pair]:
    """Write small files as a restore does; the same calls one after the other are the machine's."""
    data = chunks()[0][: 8 * KIB]
    wanted = content_id(KEYS, data)
    content = Content(uid=os.geteuid(), gid=os.getegid(), content_id=wanted)
    stats = [
        Stat(b"file %06d" % n, EntryType.FILE, 0o640, len(data), 10**18 + n, 0, 1, 0)
        for n in range(SMALL_FILES)
    ]
    rounds = iter(range(2 * ROUNDS))

    def ours() -> None:
        with Target.open(os.fsencode(top / f"{next(rounds)}"), run="micro") as target:
            home = target.directory((b"new",), create=True)
            writer = PlainWriter(home, KEYS, Policy(special=True))
            for stat in stats:
                assert writer.write(data, stat, content) == []

    def machine() -> None:
        path = top / f"{next(rounds)}"
        path.mkdir()
        parent = os.open(path, os.O_RDONLY)
        for stat in stats:
            name = b"temporary " + stat.name
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
            os.pwrite(file, data, 0)
            blake3(data).digest()
            os.listxattr(file)
            os.fchmod(file, 0o640)
            os.utime(file, ns=(10**18, stat.mtime_ns))
            os.fstat(file)
            os.close(file)
            os.rename(name, stat.name, src_dir_fd=parent, dst_dir_fd=parent)
        os.close(parent)

    yield ours, machine, SMALL_FILES / 1e6, "million files"


# --- the server
@contextmanager
def served(top: Path) -> Iterator[Served]:
    """Yield a repository on disk with a domain."""
    store = LocalStore.open(str(top / "store"))
    made = Served(top, store)
    try:
        made.domain()
        yield made
    finally:
        made.stop()
        store.close()


@contextmanager
def pack_receive(top: Path) -> Iterator[Pair]:
    """Take packs as they arrive, check, store and index them; TLS is not in it."""
    with served(top) as there:
        pod = there.pod()
        count = ROUNDS * PACKS
        packs = [
            pack_of(pod.domain, ids(16, f"pack {number}"), size=MIB - 4 * KIB)
            for number in range(count)
        ]
        session, waiting, written = pod.open(), iter(packs), iter(range(count))
        names = iter(
            there.repository.more_names(ClientName.parse("shop/db-0"), session.id, "packs", count)
        )

        def ours() -> None:
            for _ in range(PACKS):
                pack = memoryview(next(waiting))
                upload = there.repository.begin_pack(pod.name, session.id, next(names), len(pack))
                for at in range(0, len(pack), PIECE_BYTES):
                    upload.write(pack[at : at + PIECE_BYTES])
                upload.commit()

        def machine() -> None:
            for _ in range(PACKS):
                number = next(written)
                blake3(packs[number])
                with open(top / f"pack {number}", "xb", buffering=0) as file:
                    file.write(packs[number])
                    os.fsync(file.fileno())

        yield ours, machine, PACKS * len(packs[0]) / 1e9, "GB"


@contextmanager
def commit(top: Path) -> Iterator[Pair]:
    """Make a snapshot of many chunks stand; its objects written and synced is the machine's."""
    with served(top) as there:
        pod, wanted = there.pod(), ids(REFS, "refs")
        pod.send(wanted, pod.open())
        numbers = iter(range(ROUNDS))

        def ours() -> None:
            pod.finish(pod.open(), wanted)

        def machine() -> None:
            number = next(numbers)
            for name, size in (("refs", 32 * REFS), ("manifest", 1_000), ("journal", 200)):
                with open(top / f"{name} {number}", "xb", buffering=0) as file:
                    file.write(bytes(size))
                    os.fsync(file.fileno())

        yield ours, machine, 1.0, f"commit of {REFS} chunks"


STEPS = {
    "chunk": chunk,
    "seal": seal,
    "page-compare": page_compare,
    "pack-receive": pack_receive,
    "commit": commit,
    "restore-write": restore_write,
    "restore-small": restore_small,
}


def cpu_of(work: Work) -> float:
    """Return the CPU seconds of this process for `work`."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(name: str) -> None:
    """Run one step and print its line."""
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-micro-") as top,
        STEPS[name](Path(top)) as (ours, machine, units, unit),
    ):
        rounds = [(cpu_of(ours), cpu_of(machine)) for _ in range(ROUNDS)]
    us, limit = (min(column) / units for column in zip(*rounds, strict=True))
    print(f"  {name:14s} {us:8.3f} {limit:8.3f} {us / limit:6.2f}   s per {unit}", flush=True)


def main() -> int:
    """Measure what is asked for."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("steps", nargs="*", choices=[*STEPS, []], help="all unless named")
    print("  step               ours  machine  ratio")
    for name in options.parse_args().steps or STEPS:
        measure(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stand-alone reader restores what the format page describes, and refuses everything else."""

from __future__ import annotations

import importlib.util
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.store_builder import (
    SMALL_FILE_BYTES_MAX,
    Node,
    Snapshot,
    StoreBuilder,
    folder,
)
from tests.support.store_bytes import (
    BLOCK,
    CHARACTER,
    CONTENT,
    FIFO,
    SOCKET,
    SYMLINK,
    Keyring,
)

ROOT = Path(__file__).parents[2]
CLIENT = "shop/web-0"
GROUP = bytes(range(16))
BIG = bytes(range(256)) * 40


def load() -> ModuleType:
    """Return docs/format_reader.py as a module."""
    spec = importlib.util.spec_from_file_location("format_reader", ROOT / "docs/format_reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


READER = load()


def tree() -> tuple[Node, ...]:
    """Return a tree with one of everything that needs no particular file system."""
    deep = folder(b"last", Node(b"f", content=(b"deep",)))
    for number in range(20):
        deep = folder(b"%03d" % number + b"d" * 252, deep)
    many = [Node(b"n%02d" % number, content=(b"text %d" % number,)) for number in range(10)]
    data = folder(
        b"data",
        Node(b"a", content=(b"hello ", b"world"), mode=0o4755, owner=(1001, 1002, "u", "g")),
        Node(b"big", content=(BIG,), mtime_ns=-1_500_000_001),
        Node(b"blocks", content=(BIG, b"x" * 5000), spill=1),
        Node(b"blocks2", content=(b"y" * 9000,), spill=2),
        Node(b"empty"),
        Node(b"fifo", FIFO, 0o620),
        Node(b"first", content=(b"linked",), link=GROUP),
        Node(b"holes", content=(100_000, b"middle", 50_000)),
        Node(b"link", SYMLINK, 0o777, target=b"/etc/nowhere\xff", mtime_ns=-7),
        Node(b"small-hole", content=(500, b"x", 500)),
        Node(b"socket", SOCKET, 0o711),
        Node(b"xattrs", content=(b"x",), xattrs=((b"user.a", b"1"), (b"user.b", b""))),
        Node(
            b"xattrs-in-blocks",
            content=(b"z",),
            xattrs=((b"user.c", b"3" * 100), (b"user.d", b"4")),
            xattrs_in_blocks=True,
        ),
        Node(b"\xff\xfe", content=(b"no utf-8",)),
        folder(b"elsewhere", Node(b"second", content=(b"linked",), link=GROUP), mode=0o1711),
        folder(b"old", mtime_ns=-123_456_789_012),
        folder(b"many", *many),
        deep,
    )
    return (data,)


class World:
    """A built store, its key file and a place to restore to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = StoreBuilder(path / "store")
        self.store.create()
        self.store.add_client(CLIENT)
        self.key = path / "shop.key"
        self.key.write_text(self.store.keys.line())
        self.runs = 0

    def run(self, *arguments: str) -> int:
        """Run the reader and return its exit code."""
        try:
            return int(READER.main([str(self.store.root), str(self.key), *arguments]))
        except SystemExit as stopped:
            assert isinstance(stopped.code, int)
            return stopped.code

    def restore(self, snapshot: Snapshot, *more: str) -> tuple[int, Path]:
        """Restore into a new directory and return (exit code, directory)."""
        self.runs += 1
        target = self.path / f"out{self.runs}"
        return self.run("restore", snapshot.id.hex(), str(target), *more), target

    def objects(self, folder_name: str) -> list[Path]:
        """Return the stored objects of a kind."""
        return sorted(p for p in (self.store.root / folder_name).rglob("*") if p.is_file())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty domain with one client."""
    return World(tmp_path)


def contents(top: Path) -> dict[str, bytes]:
    """Return every regular file below a directory."""
    found = {}
    for parent, _, names, descriptor in os.fwalk(top):
        for name in names:
            if stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                with open(os.open(name, os.O_RDONLY, dir_fd=descriptor), "rb") as file:
                    found[os.path.join(parent, name)[len(str(top)) :]] = file.read()
    return found


@pytest.fixture
def flipped() -> Iterator[None]:
    """Stand for nothing: keeps the fixtures of this file in one place."""
    return
    yield

"""A built store, the stand-alone reader run on it, and what it restored."""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.store_builder import Node, Snapshot, StoreBuilder, folder
from tests.support.store_bytes import TREE

ROOT = Path(__file__).parents[2]
CLIENT = "shop/web-0"


def load() -> ModuleType:
    """Return docs/format_reader.py as a module."""
    spec = importlib.util.spec_from_file_location("format_reader", ROOT / "docs/format_reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


READER = load()


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


def contents(top: Path) -> dict[str, bytes]:
    """Return every regular file below a directory."""
    found = {}
    for parent, _, names, descriptor in os.fwalk(top):
        for name in names:
            if stat.S_ISREG(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                with open(os.open(name, os.O_RDONLY, dir_fd=descriptor), "rb") as file:
                    found[os.path.join(parent, name)[len(str(top)) :]] = file.read()
    return found


def listing(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Return type, mode, owner, modification time and link target of everything below."""
    found: dict[bytes, tuple[object, ...]] = {}
    for parent, folders, names, descriptor in os.fwalk(os.fsencode(top)):
        for name in [*folders, *names]:
            info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            is_link = stat.S_ISLNK(info.st_mode)
            target = os.readlink(name, dir_fd=descriptor) if is_link else None
            path = os.path.join(parent, name)[len(os.fsencode(top)) :]
            found[path] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, target)
    return found


def planned(nodes: tuple[Node, ...], above: bytes = b"") -> dict[bytes, tuple[object, ...]]:
    """Return what `listing` must find of these nodes."""
    kinds = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFLNK, 4: stat.S_IFIFO}
    kinds |= {5: stat.S_IFSOCK, 6: stat.S_IFCHR, 7: stat.S_IFBLK}
    found: dict[bytes, tuple[object, ...]] = {}
    for node in nodes:
        path = above + b"/" + node.name
        mode = kinds[node.kind] | node.mode
        found[path] = (mode, *node.owner[:2], node.mtime_ns, node.target)
        found |= planned(node.children, path)
    return found


def data_folder(*children: Node) -> tuple[Node, ...]:
    """Return a tree of one directory, /data."""
    return (folder(b"data", *children),)


def of_page(world: World, page: bytes, ids: list[bytes], before: bytes = b"") -> Snapshot:
    """Return a snapshot whose root is this page, behind `before` in its tree chunk."""
    tree = world.store.chunk(TREE, before + page)
    counts: dict[str, Any] = {"files": 9, "dirs": 9, "bytes": 99_999}
    extents = [[tree, len(before), len(page)]]
    return world.store.snapshot(CLIENT, (), tree=extents, forged_ids={tree, *ids}, **counts)

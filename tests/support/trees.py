"""Compare two file trees attribute by attribute; shares no code with the product.

`scan` turns a tree into facts, `compare` lists how two of them differ, `differences` does both.
All is read through directory descriptors, so that a path may be longer than the kernel takes.
A tree can be scanned before it changes and compared later: facts hold no descriptor.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

BLOCK_BYTES = 64 * 1024
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Range = tuple[int, int]
"""Bytes from the first offset up to, without, the second."""


class Aspect(StrEnum):
    """What two entries of the same path can differ in."""

    PRESENCE = "presence"
    TYPE = "type"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    SIZE = "size"
    CONTENT = "content"
    HOLES = "holes"
    """A hole was filled."""
    ALLOCATION = "allocation"
    """Allocated zeros became a hole."""
    TARGET = "target"
    DEVICE = "device"
    LINKS = "links"


@dataclass(frozen=True)
class Facts:
    """One entry as found: what a restore has to bring back."""

    type: str
    mode: int
    """Permission bits with setuid, setgid, sticky; 0 for a symlink, which has none."""
    owner: tuple[int, int]
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    size: int = 0
    digest: str = ""
    data: tuple[Range, ...] = ()
    """Of a regular file: what the file system holds data for; the rest are holes."""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    inode: tuple[int, int] | None = None
    """(device, inode) of what has several names."""


Tree = dict[bytes, Facts]
"""Facts by path below the top, `/` between names; the top itself is `.`."""

TYPES: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("file", stat.S_ISREG),
    ("directory", stat.S_ISDIR),
    ("symlink", stat.S_ISLNK),
    ("fifo", stat.S_ISFIFO),
    ("socket", stat.S_ISSOCK),
    ("char device", stat.S_ISCHR),
    ("block device", stat.S_ISBLK),
)


def differences(want: Path, got: Path, *, ignore: Collection[Aspect] = ()) -> list[str]:
    """Return one line for each difference between two trees on disk; [] when they are equal."""
    return compare(scan(want), scan(got), ignore=ignore)


def scan(top: Path) -> Tree:
    """Return the facts of `top` and everything below it; {} when `top` is absent.

    The parents of `top` are followed as a path; `top` itself may be any kind of entry.
    """
    parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree: Tree = {}
    try:
        _scan_entry(parent, os.fsencode(top.name), b"", tree)
    except FileNotFoundError:
        if os.path.lexists(top):
            raise
    finally:
        os.close(parent)
    return tree


def compare(want: Tree, got: Tree, *, ignore: Collection[Aspect] = ()) -> list[str]:
    """Return one line `PATH: ASPECT: WANTED -> FOUND` for each difference, in order of paths."""
    found: list[tuple[bytes, Aspect, str]] = []
    for path in want.keys() | got.keys():
        left, right = want.get(path), got.get(path)
        if left is None or right is None:
            found.append((path, Aspect.PRESENCE, "missing" if right is None else "unexpected"))
        else:
            found += [(path, aspect, text) for aspect, text in _differ(left, right)]
    found += _link_differences(want, got)
    return [
        f"{path!r}: {aspect}: {text}"
        for path, aspect, text in sorted(found)
        if aspect not in ignore
    ]


# --- reading --------------------------------------------------------------------------------------


def _scan_entry(parent: int, name: bytes, path: bytes, tree: Tree) -> None:
    info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        here = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            # Facts from the descriptor: the name may have been replaced since.
            tree[path or b"."] = _facts(os.fstat(here), _xattrs(here))
            for child in sorted(map(os.fsencode, os.listdir(here))):
                _scan_entry(here, child, path + b"/" + child if path else child, tree)
        finally:
            os.close(here)
    elif stat.S_ISREG(info.st_mode):
        tree[path or b"."] = _regular(parent, name)
    else:
        # Never opened: a FIFO would block, a device would act. The magic link keeps the path short.
        xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (parent, name))
        target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(info.st_mode) else b""
        tree[path or b"."] = _facts(info, xattrs, target=target)


def _regular(parent: int, name: bytes) -> Facts:
    here = os.open(name, REGULAR, dir_fd=parent)
    try:
        info = os.fstat(here)
        data = tuple(_data_ranges(here, info.st_size))
        return _facts(info, _xattrs(here), size=info.st_size, digest=_digest(here, data), data=data)
    finally:
        os.close(here)


def _facts(
    info: os.stat_result,
    xattrs: tuple[tuple[str, bytes], ...],
    *,
    size: int = 0,
    digest: str = "",
    data: tuple[Range, ...] = (),
    target: bytes = b"",
) -> Facts:
    kind = next(name for name, is_kind in TYPES if is_kind(info.st_mode))
    is_device = kind.endswith("device")
    return Facts(
        type=kind,
        mode=0 if kind == "symlink" else stat.S_IMODE(info.st_mode),
        owner=(info.st_uid, info.st_gid),
        mtime_ns=info.st_mtime_ns,
        xattrs=xattrs,
        size=size,
        digest=digest,
        data=data,
        target=target,
        device=(os.major(info.st_rdev), os.minor(info.st_rdev)) if is_device else (0, 0),
        inode=(info.st_dev, info.st_ino) if info.st_nlink > 1 and kind != "directory" else None,
    )


def _xattrs(place: int | bytes) -> tuple[tuple[str, bytes], ...]:
    follow = isinstance(place, int)
    try:
        names = sorted(os.listxattr(place, follow_symlinks=follow))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    return tuple((name, os.getxattr(place, name, follow_symlinks=follow)) for name in names)


def _data_ranges(file: int, size: int) -> Iterator[Range]:
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, min(end, size)


def _digest(file: int, data: tuple[Range, ...]) -> str:
    """Hash the numbered blocks that are not all zero: the same content gives the same digest
    however it is allocated, and a hole of gigabytes costs nothing."""
    digest = hashlib.sha256()
    done = 0
    for start, end in data:
        for block in range(max(done, start // BLOCK_BYTES), -(-end // BLOCK_BYTES)):
            content = os.pread(file, BLOCK_BYTES, block * BLOCK_BYTES)
            if content.strip(b"\0"):
                digest.update(block.to_bytes(8, "little") + content.ljust(BLOCK_BYTES, b"\0"))
            done = block + 1
    return digest.hexdigest()


# --- comparing ------------------------------------------------------------------------------------


def _differ(want: Facts, got: Facts) -> Iterator[tuple[Aspect, str]]:
    if want.type != got.type:
        yield Aspect.TYPE, f"{want.type} -> {got.type}"
        return
    if want.mode != got.mode:
        yield Aspect.MODE, f"{want.mode:04o} -> {got.mode:04o}"
    if want.digest != got.digest:
        yield Aspect.CONTENT, f"{want.size} bytes {want.digest[:12]} -> {got.digest[:12]}"
    pairs: tuple[tuple[Aspect, object, object], ...] = (
        (Aspect.OWNER, want.owner, got.owner),
        (Aspect.MTIME, want.mtime_ns, got.mtime_ns),
        (Aspect.XATTRS, want.xattrs, got.xattrs),
        (Aspect.SIZE, want.size, got.size),
        (Aspect.TARGET, want.target, got.target),
        (Aspect.DEVICE, want.device, got.device),
    )
    yield from ((aspect, f"{left} -> {right}") for aspect, left, right in pairs if left != right)
    if filled := _without(got.data, want.data, min(want.size, got.size)):
        yield Aspect.HOLES, f"filled at {filled}"
    if emptied := _without(want.data, got.data, min(want.size, got.size)):
        yield Aspect.ALLOCATION, f"a hole at {emptied}"


def _without(data: tuple[Range, ...], other: tuple[Range, ...], size: int) -> list[Range]:
    """Return the parts of `data` below `size` that `other` does not cover; both are in order."""
    found = []
    for start, end in data:
        at = start
        for left, right in other:
            if right > at and left < end:
                if left > at:
                    found.append((at, left))
                at = right
        if at < end:
            found.append((at, end))
    return [(start, min(end, size)) for start, end in found if start < size]


def _groups(tree: Tree, paths: Collection[bytes]) -> set[tuple[bytes, ...]]:
    by_inode: dict[tuple[int, int], list[bytes]] = {}
    for path, facts in tree.items():
        if facts.inode is not None and path in paths:
            by_inode.setdefault(facts.inode, []).append(path)
    return {tuple(sorted(paths)) for paths in by_inode.values() if len(paths) > 1}


def _link_differences(want: Tree, got: Tree) -> Iterator[tuple[bytes, Aspect, str]]:
    both = want.keys() & got.keys()
    left, right = _groups(want, both), _groups(got, both)
    for group in left ^ right:
        text = "are no longer one file" if group in left else "are one file now"
        yield group[0], Aspect.LINKS, f"{list(group)!r} {text}"

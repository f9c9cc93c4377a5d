"""The comparator finds every planted difference and names it; between equals it finds none."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.generate import ACL_ACCESS, ACL_DEFAULT, PRIVILEGED, plan_tree
from tests.support.materialise import materialise
from tests.support.mutate import mutate
from tests.support.trees import Aspect, compare, differences, scan

MIB = 1 << 20
LONG = [b"%02d" % level + b"d" * 250 for level in range(17)]
DEEP = b"/".join(LONG)


def acl(user_bits: int) -> bytes:
    lines = [(1, 6, 2**32 - 1), (2, user_bits, 1234), (4, 4, 2**32 - 1)]
    lines += [(16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *line) for line in lines)


@contextmanager
def folder(top: Path, *names: bytes) -> Iterator[int]:
    """Hold a descriptor of a directory, reached name by name."""
    here = os.open(top, os.O_RDONLY)
    try:
        for name in names:
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def build(top: Path) -> None:
    """Write one entry of each kind, all with the same times."""
    (top / "d" / "sub").mkdir(parents=True)
    for name, content in (
        ("file", b"content"),
        ("other", b"content"),
        ("empty", b""),
        ("big", b"x" * 200_000),
        (os.fsdecode(b"raw \xff"), b"raw"),
        ("n" * 255, b"long"),
        ("one", b"linked"),
        ("tagged", b"tagged"),
    ):
        (top / name).write_bytes(content)
    os.link(top / "one", top / "d" / "two")
    os.symlink("file", top / "symlink")
    os.mkfifo(top / "fifo", 0o600)
    with open(top / "sparse", "wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB)
        file.write(bytes(8192) + b"middle")
    os.setxattr(top / "tagged", "user.tag", b"\0value")
    os.setxattr(top / "tagged", ACL_ACCESS, acl(4))
    os.setxattr(top / "d" / "sub", ACL_DEFAULT, acl(4))
    with folder(top) as here, socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{here}/socket")
    for level, long_name in enumerate(LONG):
        with folder(top, *LONG[:level]) as here:
            os.mkdir(long_name, dir_fd=here)
    with folder(top, *LONG) as here:
        os.mkfifo(b"deep", dir_fd=here)
    if PRIVILEGED:
        remake(top / "char", 0o20666, os.makedev(1, 3))
        remake(top / "block", 0o60600, os.makedev(7, 9))
        os.setxattr(top / "symlink", "trusted.tag", b"link", follow_symlinks=False)
    settle(top)


def settle(top: Path) -> None:
    """Give every entry the same time again, directories after what is in them."""
    time = -1_000_000_001
    for _, folders, names, here in os.fwalk(top, topdown=False):
        for name in folders + names:
            os.utime(name, ns=(0, time), dir_fd=here, follow_symlinks=False)
    os.utime(top, ns=(0, time))


@pytest.fixture
def want(tmp_path: Path) -> Path:
    build(tmp_path / "want")
    return tmp_path / "want"


@pytest.fixture
def got(tmp_path: Path) -> Path:
    build(tmp_path / "got")
    return tmp_path / "got"


def relink(path: Path, target: str) -> None:
    keep = os.listxattr(path, follow_symlinks=False)
    values = [os.getxattr(path, key, follow_symlinks=False) for key in keep]
    path.unlink()
    path.symlink_to(target)
    for key, value in zip(keep, values, strict=True):
        os.setxattr(path, key, value, follow_symlinks=False)


def fill(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(4096))


def dig(path: Path) -> None:
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(3 * MIB)
        file.seek(MIB + 8192)
        file.write(b"middle")


def part(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def join(one: Path, two: Path) -> None:
    two.unlink()
    os.link(one, two)


def swap_type(path: Path) -> None:
    path.rmdir()
    path.touch()


def remake(path: Path, mode: int, device: int) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, mode, device)
    path.chmod(mode & 0o7777)


def unlink_deep(top: Path) -> None:
    with folder(top, *LONG) as here:
        os.unlink(b"deep", dir_fd=here)


Plant = Callable[[Path], object]
PLANTS: dict[str, tuple[bytes, Aspect, Plant]] = {
    "a missing file": (b"file", Aspect.PRESENCE, lambda t: (t / "file").unlink()),
    "a missing name that is not UTF-8": (
        b"raw \xff",
        Aspect.PRESENCE,
        lambda t: (t / os.fsdecode(b"raw \xff")).unlink(),
    ),
    "an extra file": (b"extra", Aspect.PRESENCE, lambda t: (t / "extra").touch()),
    "an extra empty directory": (b"d/extra", Aspect.PRESENCE, lambda t: (t / "d/extra").mkdir()),
    "a changed byte": (b"file", Aspect.CONTENT, lambda t: (t / "file").write_bytes(b"cOntent")),
    "a changed last byte beyond the first block": (
        b"big",
        Aspect.CONTENT,
        lambda t: (t / "big").write_bytes(b"x" * 199_999 + b"y"),
    ),
    "zeros in place of content": (
        b"file",
        Aspect.CONTENT,
        lambda t: (t / "file").write_bytes(bytes(7)),
    ),
    "trailing zeros": (b"file", Aspect.SIZE, lambda t: os.truncate(t / "file", 8)),
    "a mode": (b"file", Aspect.MODE, lambda t: (t / "file").chmod(0o600)),
    "a setuid bit": (b"file", Aspect.MODE, lambda t: (t / "file").chmod(0o4644)),
    "a sticky bit": (b"d", Aspect.MODE, lambda t: (t / "d").chmod(0o1755)),
    "a mode of a FIFO": (b"fifo", Aspect.MODE, lambda t: (t / "fifo").chmod(0o601)),
    "a mode of a socket": (b"socket", Aspect.MODE, lambda t: (t / "socket").chmod(0o701)),
    "a mode of the top": (b".", Aspect.MODE, lambda t: t.chmod(0o701)),
    "a symlink's target": (
        b"symlink",
        Aspect.TARGET,
        lambda t: relink(t / "symlink", "filf"),
    ),
    "a value of an attribute": (
        b"tagged",
        Aspect.XATTRS,
        lambda t: os.setxattr(t / "tagged", "user.tag", b"\0valuE"),
    ),
    "an empty attribute too many": (
        b"d",
        Aspect.XATTRS,
        lambda t: os.setxattr(t / "d", "user.x", b""),
    ),
    "a lost attribute": (
        b"tagged",
        Aspect.XATTRS,
        lambda t: os.removexattr(t / "tagged", "user.tag"),
    ),
    "an access ACL": (
        b"tagged",
        Aspect.XATTRS,
        lambda t: os.setxattr(t / "tagged", ACL_ACCESS, acl(2)),
    ),
    "a default ACL": (
        b"d/sub",
        Aspect.XATTRS,
        lambda t: os.setxattr(t / "d/sub", ACL_DEFAULT, acl(5)),
    ),
    "a filled hole": (b"sparse", Aspect.HOLES, lambda t: fill(t / "sparse", 2 * MIB)),
    "allocated zeros that became a hole": (
        b"sparse",
        Aspect.ALLOCATION,
        lambda t: dig(t / "sparse"),
    ),
    "a broken hard link": (b"d/two", Aspect.LINKS, lambda t: part(t / "d/two")),
    "a hard link too many": (b"file", Aspect.LINKS, lambda t: join(t / "file", t / "other")),
    "a file in place of a directory": (b"d/sub", Aspect.TYPE, lambda t: swap_type(t / "d/sub")),
    "an entry of a path beyond 4096 bytes": (
        DEEP + b"/deep",
        Aspect.PRESENCE,
        unlink_deep,
    ),
}
if PRIVILEGED:
    PLANTS |= {
        "an owner": (b"file", Aspect.OWNER, lambda t: os.chown(t / "file", 1, -1)),
        "a group": (b"d", Aspect.OWNER, lambda t: os.chown(t / "d", -1, 1)),
        "an owner of a symlink": (
            b"symlink",
            Aspect.OWNER,
            lambda t: os.lchown(t / "symlink", 1, 1),
        ),
        "a device's number": (
            b"char",
            Aspect.DEVICE,
            lambda t: remake(t / "char", 0o20666, os.makedev(1, 5)),
        ),
        "a block for a character device": (
            b"char",
            Aspect.TYPE,
            lambda t: remake(t / "char", 0o60666, os.makedev(1, 3)),
        ),
        "an attribute of a symlink": (
            b"symlink",
            Aspect.XATTRS,
            lambda t: os.setxattr(t / "symlink", "trusted.tag", b"x", follow_symlinks=False),
        ),
    }


def test_equal_trees_have_no_difference(want: Path, got: Path) -> None:
    assert differences(want, got) == []
    assert len(scan(want)) > 30


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_difference_is_found_and_nothing_else(want: Path, got: Path, plant: str) -> None:
    path, aspect, act = PLANTS[plant]
    act(got)
    settle(got)
    found = differences(want, got)
    assert len(found) == 1, found
    assert found[0].startswith(f"{path!r}: {aspect}: ")
    assert differences(want, got, ignore=[aspect]) == []
    assert len(differences(got, want)) == 1, "found from the other side too"


NAMES = [b"file", b"d", b"symlink", b"fifo", b"socket", b"d/sub", b"raw \xff", b"."]


@pytest.mark.parametrize("path", NAMES + ([b"char", b"block"] if PRIVILEGED else []))
@pytest.mark.parametrize("step_ns", [1, -1])
def test_one_nanosecond_is_found(want: Path, got: Path, path: bytes, step_ns: int) -> None:
    time = -1_000_000_001 + step_ns
    os.utime(os.path.join(os.fsencode(got), path), ns=(0, time), follow_symlinks=False)
    assert differences(want, got) == [f"{path!r}: mtime: -1000000001 -> {time}"]


def test_the_time_of_last_access_does_not_count(want: Path, got: Path) -> None:
    os.utime(got / "file", ns=(10**18, -1_000_000_001))
    assert differences(want, got) == []


def test_a_missing_tree_is_one_difference_for_each_entry(want: Path, tmp_path: Path) -> None:
    assert len(differences(want, tmp_path / "nowhere")) == len(scan(want))
    assert scan(tmp_path / "nowhere") == {}


def test_a_single_file_can_be_compared(want: Path, got: Path) -> None:
    assert differences(want / "file", got / "file") == []
    (got / "file").write_bytes(b"x")
    assert {line.split(": ")[1] for line in differences(want / "file", got / "file")} == {
        "content",
        "size",
        "mtime",
    }


def test_facts_outlive_the_tree(want: Path, got: Path) -> None:
    before = scan(want)
    shutil.rmtree(want)
    assert compare(before, scan(got)) == []


def test_holes_of_other_sizes_and_places_are_found(tmp_path: Path) -> None:
    def facts(*data: tuple[int, int]) -> list[str]:
        return compare(
            {b"f": replace(base, data=((10, 20), (40, 50)))}, {b"f": replace(base, data=data)}
        )

    (tmp_path / "f").touch()
    base = replace(scan(tmp_path / "f")[b"."], size=100)
    assert facts((10, 20), (40, 50)) == []
    assert facts((10, 50)) == ["b'f': holes: filled at [(20, 40)]"]
    assert facts((0, 100)) == ["b'f': holes: filled at [(0, 10), (20, 40), (50, 100)]"]
    assert facts((10, 20)) == ["b'f': allocation: a hole at [(40, 50)]"]
    assert facts((15, 20), (45, 60)) == [
        "b'f': allocation: a hole at [(10, 15), (40, 45)]",
        "b'f': holes: filled at [(50, 60)]",
    ]


def test_a_fifo_is_never_opened(want: Path, got: Path) -> None:
    # A reader that opened it would wait for a writer until pytest's time limit.
    assert scan(want / "fifo")[b"."].type == "fifo"
    assert differences(want / "fifo", got / "fifo") == []


@given(seed=st.integers(0, 2**32))
@settings(max_examples=6)
def test_every_edited_tree_differs_from_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    top = tmp_path_factory.mktemp("edited") / "tree"
    materialise(plan_tree(seed, entries=12), top)
    before = scan(top)
    told = mutate(top, seed, edits=1)
    found = compare(before, scan(top))
    assert found, told
    assert all(re.match(r"b['\"].*['\"]: [a-z]+: ", line) for line in found)
    shutil.rmtree(top)

"""The stand-alone reader refuses pages and blocks that no writer makes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from tests.support.reader_world import CLIENT, READER, World, contents, of_page
from tests.support.store_bytes import CONTENT, TREE, block_of, page_of

NUMBERS = [0, 127, 128, 2**16, 2**32, 2**64 - 1, -1, -32, -33, -(2**15), -(2**31), -(2**63)]
TEXTS = [b"", b"x" * 255, b"x" * 256, b"x" * 65_536, "", "\u00e4" * 200, "x" * 70_000]
FAMILIES = [[1] * 15, [1] * 16, [1] * 65_536, {str(n): n for n in range(20)}, {"a": [{"b": b"c"}]}]
OWNERS = [[0, 0, "root", "root"]]
STAT = [b"f", 1, 0o644, 5000, 0, 0, 1, 0]
CONTENT_OF = [0, b"", [0, 0, 5000], None]
BIG = bytes(range(250)) * 20


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty domain with one client."""
    return World(tmp_path)


def of_entry(world: World, stat: list[Any], content: list[Any]) -> tuple[int, Path]:
    """Restore a snapshot of one entry whose id 0 is a chunk of 5,000 bytes."""
    chunk_id = world.store.chunk(CONTENT, BIG)
    ids = [chunk_id] if {0, -3} & set(content[2][::3]) else []
    return world.restore(of_page(world, page_of([stat], ids, OWNERS, [content]), ids))


def stat_with(**changed: Any) -> list[Any]:
    """Return a stat part of a file with some fields changed."""
    names = ("name", "kind", "mode", "size", "mtime", "ctime", "inode", "flags")
    return [changed.get(name, value) for name, value in zip(names, STAT, strict=True)]


def test_the_entry_that_all_forgeries_start_from_is_restored(world: World) -> None:
    code, target = of_entry(world, STAT, CONTENT_OF)
    assert code == 0
    assert contents(target) == {"/f": BIG}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": b""},
        {"name": b"."},
        {"name": b".."},
        {"name": b"a/b"},
        {"name": b"a\0b"},
        {"name": b"x" * 256},
        {"name": "text"},
        {"kind": 0},
        {"kind": 8},
        {"kind": 3},
        {"kind": 4},
        {"mode": 0o10000},
        {"mode": -1},
        {"size": 4999},
        {"size": 5001},
        {"size": -5000},
        {"size": True},
        {"mtime": b"1"},
        {"flags": 8},
        {"flags": 2},
    ],
)
def test_a_forged_stat_part_is_refused(world: World, changed: dict[str, Any]) -> None:
    code, target = of_entry(world, stat_with(**changed), CONTENT_OF)
    assert code == 13
    assert contents(target) == {}
    assert sorted(world.path.rglob("f")) == []


@pytest.mark.parametrize(
    "content",
    [
        [1, b"", [0, 0, 5000], None],
        [0, b"x", [0, 0, 5000], None],
        [0, bytes(32), [0, 0, 5000], None],
        [0, b"", [0, 1, 5000], None],
        [0, b"", [0, -1, 5000], None],
        [0, b"", [0, 0, 5000, -1, 0, 0], None],
        [0, b"", [0, 0, 4000, -1, 1, 1000], None],
        [0, b"", [0, 0], None],
        [0, b"", [-2, 0, 5000], None],
        [0, b"", [-3, 0, 5000], None],
        [0, b"", [1, 0, 5000], None],
        [0, b"", [0, 0, 5000], {"unknown": 1}],
        [0, b"", [0, 0, 5000], {"target": b"x"}],
        [0, b"", [0, 0, 5000], {"spill": 3}],
        [0, b"", [0, 0, 5000], {"spill": 1}],
        [0, b"", [0, 0, 5000]],
    ],
)
def test_a_forged_content_part_is_refused(world: World, content: list[Any]) -> None:
    code, target = of_entry(world, STAT, content)
    assert code == 13
    assert contents(target) == {}


def test_a_small_file_needs_its_content_id(world: World) -> None:
    text = b"small"
    chunk_id = world.store.chunk(CONTENT, text + b"other")
    digest = blake3(text, key=world.store.keys.use("content-id")).digest()
    stats = [[b"f", 1, 0o644, 5, 0, 0, 1, 0]]

    def restored(content_id: bytes, offset: int) -> tuple[int, dict[str, bytes]]:
        content = [[0, content_id, [0, offset, 5], None]]
        page = page_of(stats, [chunk_id], OWNERS, content)
        code, target = world.restore(of_page(world, page, [chunk_id]))
        return code, contents(target)

    assert restored(digest, 0) == (0, {"/f": text})
    assert restored(b"", 0) == (13, {})
    assert restored(digest, 5) == (13, {})  # true chunks, but another file's


def two_entries(first: bytes, second: bytes) -> bytes:
    """Return a page of two empty files."""
    stats = [[name, 1, 0o644, 0, 0, 0, 1, 0] for name in (first, second)]
    return page_of(stats, [], OWNERS, [[0, b"", [], None]] * 2)


def test_names_ascend_within_a_page(world: World) -> None:
    assert world.restore(of_page(world, two_entries(b"a", b"b"), []))[0] == 0
    assert world.restore(of_page(world, two_entries(b"b", b"a"), []))[0] == 13
    assert world.restore(of_page(world, two_entries(b"a", b"a"), []))[0] == 13


def test_names_ascend_across_pages(world: World) -> None:
    pages = [two_entries(b"c", b"d"), two_entries(b"a", b"e")]
    tree = world.store.chunk(TREE, pages[0] + pages[1])
    places = [[tree, 0, len(pages[0])], [tree, len(pages[0]), len(pages[1])]]
    forged = world.store.snapshot(CLIENT, (), tree=places, forged_ids={tree}, files=4)
    code, target = world.restore(forged)
    assert code == 13
    assert sorted(contents(target)) == ["/c", "/d"]


def test_ids_of_a_page_are_distinct_and_all_named(world: World) -> None:
    chunk_id, more = world.store.chunk(CONTENT, BIG), world.store.chunk(CONTENT, b"more")
    unused = page_of([STAT], [chunk_id, more], OWNERS, [CONTENT_OF])
    assert world.restore(of_page(world, unused, [chunk_id, more]))[0] == 13
    halves = [0, b"", [0, 0, 2500, 1, 2500, 2500], None]
    twice = page_of([STAT], [chunk_id, chunk_id], OWNERS, [halves])
    assert world.restore(of_page(world, twice, [chunk_id]))[0] == 13


@pytest.mark.parametrize(
    "change",
    [
        lambda page: b"HFPX" + page[4:],
        lambda page: page[:4] + b"\x02" + page[5:],
        lambda page: page[:7] + b"\x01" + page[8:],
        lambda page: page + b"\0",
        lambda page: page[:-1],
        lambda page: page[:8] + b"\xff\xff\xff\xff" + page[12:],
        lambda page: page[:12] + b"\xff\xff\xff\xff" + page[16:],
    ],
)
def test_a_page_of_another_layout_is_refused(world: World, change: Any) -> None:
    assert world.restore(of_page(world, change(two_entries(b"a", b"b")), []))[0] == 13


def folder_page(offset: int, length: int) -> bytes:
    """Return a page of a directory whose own page lies in the same tree chunk."""
    stats = [[b"d", 2, 0o755, 0, 0, 0, 1, 0]]
    return page_of(stats, [], OWNERS, [[0, b"", [-2, offset, length], None]])


def test_a_page_lies_behind_the_pages_that_it_names(world: World) -> None:
    below = two_entries(b"a", b"b")
    assert world.restore(of_page(world, folder_page(0, len(below)), [], before=below))[0] == 0
    for offset in (1, len(below), 0):
        length = len(folder_page(len(below), 100)) if offset else len(below) + 1
        page = folder_page(offset, length)
        assert world.restore(of_page(world, page, [], before=below))[0] == 13


def test_a_page_that_names_a_sound_page_behind_it_is_refused(world: World) -> None:
    below = two_entries(b"a", b"b")
    page = folder_page(100, len(below))
    page = folder_page(len(page), len(below))
    tree = world.store.chunk(TREE, page + below)
    places = [[tree, 0, len(page)]]
    forged = world.store.snapshot(CLIENT, (), tree=places, forged_ids={tree}, files=9, dirs=9)
    assert world.restore(forged)[0] == 13


def test_a_directory_has_no_holes(world: World) -> None:
    page = page_of([[b"d", 2, 0o755, 0, 0, 0, 1, 0]], [], OWNERS, [[0, b"", [-1, 0, 100], None]])
    assert world.restore(of_page(world, page, []))[0] == 13


def spilled(block: bytes) -> bytes:
    """Return a page of one file of 5,000 bytes whose extents stand in a block before it."""
    content = [0, b"", [-2, 0, len(block)], {"spill": 1}]
    return page_of([STAT], [], OWNERS, [content])


def test_blocks_of_extents_are_checked_like_extents(world: World) -> None:
    chunk_id = world.store.chunk(CONTENT, BIG)

    def code_of(*records: tuple[bytes, int, int], tail: bytes = b"", kind: int = 1) -> int:
        body = b"".join(struct.pack("<32sIQ", *record) for record in records) + tail
        block = block_of(kind, body)
        snapshot = of_page(world, spilled(block), [chunk_id], before=block)
        return world.restore(snapshot)[0]

    assert code_of((chunk_id, 0, 5000)) == 0
    assert code_of((chunk_id, 0, 4000), (bytes(32), 0, 1000)) == 0
    assert code_of((chunk_id, 0, 5000), kind=2) == 13
    assert code_of((chunk_id, 0, 5000), tail=b"\0") == 13
    assert code_of((chunk_id, 0, 5001)) == 13
    assert code_of((chunk_id, 0, 4000), (bytes(32), 7, 1000)) == 13
    assert code_of((chunk_id, 0, 5000), (bytes(32), 0, 0)) == 13
    assert code_of((b"\xff" * 32, 0, 5000)) == 13


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xca\0\0\0\0",
        b"\xd4\0\0",
        b"\x92\x01",
        b"\xa2x",
        b"\xa1\xff",
        b"\xc4\x02x",
        b"\xdc\0",
        b"\xcd\0",
        b"\x01\x02",
        b"\x82\xa1x\x01\xa1x\x02",
        b"\x91" * 17 + b"\x01",
    ],
)
def test_messagepack_that_the_format_does_not_use_is_refused(body: bytes) -> None:
    with pytest.raises(READER.BROKEN):
        READER.body_of(body)


@pytest.mark.parametrize(
    "value",
    [*NUMBERS, *TEXTS, *FAMILIES, None, True, False],
)
def test_messagepack_that_the_format_uses_is_read(value: object) -> None:
    assert READER.body_of(msgspec.msgpack.encode(value)) == value


def test_attributes_that_are_not_sorted_are_told_and_the_file_restored(world: World) -> None:
    content = [0, b"", [0, 0, 5000], {"xattrs": [[b"user.b", b"1"], [b"user.a", b"2"]]}]
    code, target = of_entry(world, STAT, content)
    assert code == 13
    assert contents(target) == {"/f": BIG}


def test_a_directory_deeper_than_4096_ends_the_walk(world: World) -> None:
    page = two_entries(b"a", b"b")
    chunk, offset = b"", 0
    for _ in range(4097):
        chunk += page
        page = folder_page(offset, len(page))
        offset = len(chunk)
    tree = world.store.chunk(TREE, chunk + page)
    places = [[tree, len(chunk), len(page)]]
    forged = world.store.snapshot(CLIENT, (), tree=places, forged_ids={tree}, files=9, dirs=9999)
    assert world.run("restore", forged.id.hex(), str(world.path / "out"), "--path", "/x") == 13

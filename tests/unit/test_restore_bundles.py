"""Which neighbours of a page are ordinary files, and which of them one step takes."""

from __future__ import annotations

import stat as modes

import msgspec
import pytest

from holdfast_agent.jobs.tracking import JobProgress
from holdfast_agent.restore.plain import BUNDLE_FILES_MAX, bundles_in, is_plain
from holdfast_agent.restore.tally import Tally
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, EntryFlag, EntryType, Extent, Stat

ONE, TWO = b"1" * 32, b"2" * 32


def file(number: int = 0, **changes: object) -> Stat:
    stat = Stat(b"f%05d" % number, EntryType.FILE, 0o644, 10, 0, 0, 1, 0)
    return msgspec.structs.replace(stat, **changes)


def content(chunk: bytes = ONE, offset: int = 0) -> Content:
    return Content(content_id=b"i" * 32, extents=(Extent(chunk, offset, 10),))


def changed(**changes: object) -> Content:
    return msgspec.structs.replace(content(), **changes)


def bundles(*contents: Content) -> list[tuple[int, int, bytes, int]]:
    return list(bundles_in([file(number) for number in range(len(contents))], contents))


def test_neighbours_in_one_chunk_are_one_bundle_that_ends_where_the_chunk_does() -> None:
    found = bundles(content(ONE, 20), content(ONE, 0), content(TWO, 5), content(TWO, 15))
    assert found == [(0, 2, ONE, 30), (2, 4, TWO, 25)]
    assert bundles() == []


def test_what_is_not_ordinary_stands_between_bundles() -> None:
    other = changed(link_group=b"g" * 16)
    found = bundles(other, content(), other, other, content(offset=90), content(), other)
    assert found == [(1, 2, ONE, 10), (4, 6, ONE, 100)]
    assert bundles(other, other) == []


def test_a_bundle_ends_before_it_has_too_many_files() -> None:
    count = 2 * BUNDLE_FILES_MAX + 1
    ends = [end for _, end, *_ in bundles(*[content()] * count)]
    assert ends == [BUNDLE_FILES_MAX, 2 * BUNDLE_FILES_MAX, count]


def test_an_ordinary_file_is_one_part_of_one_chunk() -> None:
    assert is_plain(file(), content())
    assert is_plain(file(mode=0o1777, mtime_ns=-1), changed(uid=7, user="root"))


@pytest.mark.parametrize(
    "stat",
    [
        *[file(type=kind) for kind in EntryType if kind != EntryType.FILE],
        file(flags=EntryFlag.SKIPPED),
        file(mode=0o755 | modes.S_ISUID),
        file(mode=0o755 | modes.S_ISGID),
    ],
)
def test_no_other_kind_none_that_was_skipped_and_none_with_set_id_bits(stat: Stat) -> None:
    assert not is_plain(stat, content())


@pytest.mark.parametrize(
    "changes",
    [
        {"content_id": b""},
        {"extents": ()},
        {"extents": (Extent(ONE, 0, 5), Extent(ONE, 5, 5))},
        {"extents": (Extent(HOLE_CHUNK, 0, 10),)},
        {"spill": 1},
        {"xattrs": ((b"user.a", b"1"),)},
        {"xattr_blocks": (Extent(ONE, 0, 10),)},
        {"link_group": b"g" * 16},
    ],
)
def test_none_in_several_parts_with_attributes_or_with_another_name(
    changes: dict[str, object],
) -> None:
    assert not is_plain(file(), changed(**changes))


def test_files_written_together_are_counted_like_one_after_the_other() -> None:
    progress = JobProgress()
    tally = Tally(progress, wants_plan=True)
    tally.wrote(b"/d", [file(1), file(2, size=32)])
    assert (tally.files, tally.created, tally.logical_bytes) == (2, 2, 42)
    assert [(row["action"], row["path"], row["bytes"]) for row in tally.plan] == [
        ("create", "/d/f00001", 10),
        ("create", "/d/f00002", 32),
    ]
    counts = progress.counts(0)
    assert (counts.files, counts.bytes, progress.moved) == (2, 42, 2 + 2 + 42)

"""A page that copies rows of another one says what a page made of contents says."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.tree.entry import HOLE_CHUNK, SELF_CHUNK, Content, EntryType, Extent, Stat
from holdfast_agent.tree.page import (
    Page,
    decode_page,
    encode_page,
    encode_stat_part,
    open_page,
    page_ids,
)
from holdfast_agent.tree.rows import RowRun
from tests.support.samples import OWN_CHUNK, ids, noise, stat

OFFSET = 5000
CHUNKS = ids(6)
_replaced = msgspec.structs.replace


@st.composite
def entries(draw: st.DrawFn) -> tuple[Stat, Content]:
    """Return one entry, named by the caller: mostly a small file, as in most directories."""
    owner = draw(st.sampled_from([(0, 0, "root", ""), (1, 7, "", ""), (1, 8, "ann", "users")]))
    content = Content(uid=owner[0], gid=owner[1], user=owner[2], group=owner[3])
    kind = draw(st.sampled_from(["small"] * 6 + ["empty", "holes", "large", "link", "directory"]))
    if draw(st.integers(0, 4)) == 0:
        content = _replaced(content, xattrs=((b"user.a", b"1"),))
    if kind == "link":
        return stat(b"", EntryType.SYMLINK, size=0), _replaced(content, target=b"to")
    if kind == "directory":
        place = Extent(draw(st.sampled_from([SELF_CHUNK, *CHUNKS])), 3, 40)
        return stat(b"", EntryType.DIRECTORY, size=0), _replaced(content, extents=(place,))
    extents: tuple[Extent, ...] = ()
    if kind == "small":
        extents = (Extent(draw(st.sampled_from(CHUNKS)), draw(st.integers(0, 99)), 5),)
        content = _replaced(content, content_id=noise("content"))
    elif kind == "holes":
        first, last = draw(st.sampled_from(CHUNKS)), draw(st.sampled_from(CHUNKS))
        extents = (Extent(first, 1, 2), Extent(HOLE_CHUNK, 0, 9), Extent(last, 7, 3))
        content = _replaced(content, content_id=noise("holes"))
    elif kind == "large":
        extents = tuple(Extent(chunk, 0, 1 << 20) for chunk in CHUNKS[:5])
    if draw(st.integers(0, 9)) == 0:
        content = _replaced(content, link_group=noise("group", 16))
    flags = draw(st.sampled_from([0] * 9 + [1]))
    size = sum(extent.length for extent in extents)
    found = stat(b"", EntryType.FILE, size=size, flags=flags)
    return found, _replaced(content, extents=extents)


def named(found: list[tuple[Stat, Content]]) -> tuple[list[Stat], list[Content]]:
    stats = [_replaced(entry, name=b"%04d" % at) for at, (entry, _) in enumerate(found)]
    return stats, [content for _, content in found]


def encoded(stats: list[Stat], contents: list[Content | RowRun]) -> bytes:
    return encode_page(encode_stat_part(stats), contents)


def resolved(content: Content) -> Content:
    """Return the content as a reader gives it: nothing is named as SELF there."""
    extents = tuple(
        Extent(OWN_CHUNK, extent.offset, extent.length) if extent.chunk == SELF_CHUNK else extent
        for extent in content.extents
    )
    return _replaced(content, extents=extents)


def decoded(data: bytes) -> Page:
    return decode_page(data, OWN_CHUNK, OFFSET)


def needs_a_look(entry: Stat, content: Content) -> bool:
    is_bound = entry.type == EntryType.DIRECTORY or bool(content.link_group)
    return is_bound or bool(entry.flags)


@settings(max_examples=200)
@given(
    before=st.lists(entries(), min_size=1, max_size=30),
    fresh=st.lists(entries(), max_size=4),
    seeds=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=5),
)
def test_copied_rows_say_what_they_said(
    before: list[tuple[Stat, Content]],
    fresh: list[tuple[Stat, Content]],
    seeds: list[tuple[int, bool]],
) -> None:
    stats, contents = named(before)
    old = open_page(encoded(stats, [*contents]), OWN_CHUNK, OFFSET)
    bound = old.bound()
    assert bound == {
        at for at, e in enumerate(zip(stats, contents, strict=True)) if needs_a_look(*e)
    }
    # Some entries are gone, or others stand in their place; runs lie between those.
    cuts = dict(seeds)
    marks = sorted({at for at in cuts if at < len(stats)} | bound)
    made: list[Content | RowRun] = []
    long: list[Content] = []
    named_as: list[Stat] = []
    for start, end in pairwise((-1, *marks, len(stats))):
        if start >= 0 and (start in bound or cuts[start]):
            entry, content = fresh[start % len(fresh)] if fresh else (stats[start], contents[start])
            named_as.append(_replaced(entry, name=stats[start].name))
            made.append(content)
            long.append(content)
        if start + 1 < end:
            made.append(RowRun(old, start + 1, end))
            long += contents[start + 1 : end]
            named_as += stats[start + 1 : end]
    if not named_as:
        return
    short, whole = encoded(named_as, made), encoded(named_as, [*long])
    page = decoded(short)
    assert (page.stats, page.contents) == (decoded(whole).stats, decoded(whole).contents)
    assert list(page.contents) == [resolved(content) for content in long]
    assert set(page_ids(short)) == set(page_ids(whole))
    assert len(short) == len(whole)


@given(before=st.lists(entries(), min_size=1, max_size=30), sought=st.sets(st.sampled_from(CHUNKS)))
def test_entries_that_name_a_chunk_are_found(
    before: list[tuple[Stat, Content]], sought: set[bytes]
) -> None:
    stats, contents = named(before)
    old = open_page(encoded(stats, [*contents]), OWN_CHUNK, OFFSET)
    naming = {at for at, c in enumerate(contents) if any(e.chunk in sought for e in c.extents)}
    assert old.naming(frozenset(sought)) == naming
    assert old.contents() == decoded(encoded(stats, [*contents])).contents

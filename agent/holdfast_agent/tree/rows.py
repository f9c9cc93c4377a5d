"""Rows of a page's content part: owner, content id, extents and what most entries do not have.

A row indexes its page's tables of owners and ids. It is turned into a Content where somebody asks
for it; a page that takes it over from the page before it copies it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from holdfast_agent.tree.entry import (
    HOLE_CHUNK,
    SELF_CHUNK,
    Content,
    EntryFlag,
    EntryType,
    Extent,
    Stat,
)
from holdfast_contract.format.layout import COUNT_MAX, StrictDecoder, require
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, PAGE_BYTES_MAX

_ID_BYTES: Final = 32
# Plain integers: comparing with members of an enum costs more than all other checks together.
_FILE: Final = int(EntryType.FILE)
_DIRECTORY: Final = int(EntryType.DIRECTORY)
_SKIPPED: Final = int(EntryFlag.SKIPPED)
_HOLE: Final = -1
_SELF: Final = -2

_U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
Owner: TypeAlias = tuple[_U32, _U32, str, str]
_Pair = tuple[Annotated[bytes, Meta(min_length=1, max_length=255)], bytes]
_Flat = tuple[int, ...]
NIL: Final = msgspec.Raw(b"\xc0")
"""Extra of most entries."""


class Row(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """One entry of the content part. A Struct: decoded in two thirds of a tuple's time."""

    owner: Annotated[int, Meta(ge=0)]
    """Index of it."""
    content_id: Annotated[bytes, Meta(max_length=32)]
    flat: _Flat
    """Index of the chunk, offset and length of each extent."""
    extra: msgspec.Raw


class _Extra(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What most entries do not have."""

    xattrs: tuple[_Pair, ...] | UnsetType = UNSET
    link: Annotated[bytes, Meta(min_length=16, max_length=16)] | UnsetType = UNSET
    target: Annotated[bytes, Meta(min_length=1)] | UnsetType = UNSET
    device: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    spill: Annotated[int, Meta(ge=1, le=2)] | UnsetType = UNSET
    xattr_blocks: _Flat | UnsetType = UNSET


_EXTRA = StrictDecoder(_Extra, "page")


class ContentReader:
    """Turns rows of one content part into Content, and checks each against its stat part."""

    def __init__(
        self, owners: Sequence[Owner], ids: Sequence[bytes], own_chunk: bytes, own_offset: int
    ) -> None:
        require(own_chunk not in ids, "page: names its own chunk by id")
        self._owners = owners
        self._count = len(ids)
        # Python counts negative indices from the end: -1 is the hole, -2 the own chunk.
        self._chunks = (*ids, own_chunk, HOLE_CHUNK)
        self._own_offset = own_offset
        self.used: set[int] = set()

    def content(self, stat: Stat, row: Row) -> Content:
        """Return the content part of the entry whose stat part is `stat`."""
        owner, content_id, flat, raw = row.owner, row.content_id, row.flat, row.extra
        if content_id and len(flat) == 3 and raw == NIL and stat.type == _FILE:
            # An ordinary file: what is required of it in one condition, 0.7 us instead of 1.4.
            # Where that does not hold the rest says why.
            index, offset, length = flat
            if (
                0 <= index < self._count
                and offset >= 0
                and 0 < length == stat.size <= CHUNK_PLAIN_BYTES_MAX - offset
                and len(content_id) == _ID_BYTES
                and owner < len(self._owners)
            ):
                self.used.add(index)
                uid, gid, user, group = self._owners[owner]
                return Content(
                    uid=uid,
                    gid=gid,
                    user=user,
                    group=group,
                    content_id=content_id,
                    extents=(Extent(self._chunks[index], offset, length),),
                )
        require(owner < len(self._owners), "page: no such owner")
        uid, gid, user, group = self._owners[owner]
        plain = raw == NIL
        extra = _NO_EXTRA if plain else _EXTRA.decode(raw)
        spilled = extra.spill is not UNSET
        if flat:
            in_tree = spilled or stat.type == _DIRECTORY
            extents = self._extents(flat, in_tree=in_tree)
        else:
            extents = ()
        _check_content(stat, content_id, flat, spilled=spilled)
        if plain:
            return Content(
                uid=uid, gid=gid, user=user, group=group, content_id=content_id, extents=extents
            )
        _check_extra(stat, extra)
        return Content(
            uid=uid,
            gid=gid,
            user=user,
            group=group,
            content_id=content_id,
            extents=extents,
            xattrs=extra.xattrs or (),
            xattr_blocks=self._extents(extra.xattr_blocks or (), in_tree=True),
            link_group=extra.link or b"",
            target=extra.target or b"",
            device=extra.device or 0,
            spill=extra.spill or 0,
        )

    def _extents(self, flat: _Flat, *, in_tree: bool) -> tuple[Extent, ...]:
        if len(flat) == 3:
            return (self._extent(*flat, in_tree),)
        require(len(flat) % 3 == 0, "page: a torn extent")
        triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return tuple(self._extent(*triple, in_tree) for triple in triples)

    def _extent(self, index: int, offset: int, length: int, in_tree: bool) -> Extent:
        require(offset >= 0 and length >= 1, "page: an extent that cannot be")
        end = offset + length
        if 0 <= index < self._count:
            bytes_max = PAGE_BYTES_MAX if in_tree else CHUNK_PLAIN_BYTES_MAX
            require(end <= bytes_max, "page: an extent out of bounds")
            self.used.add(index)
        elif index == _SELF:
            require(in_tree, "page: content in a tree chunk")
            require(end <= self._own_offset, "page: names what lies behind it")
        else:
            require(index == _HOLE and not in_tree, "page: no such chunk")
            require(offset == 0 and length <= COUNT_MAX, "page: a hole that cannot be")
        return Extent(self._chunks[index], offset, length)


_NO_EXTRA: Final = _Extra()


def _check_content(stat: Stat, content_id: bytes, flat: _Flat, *, spilled: bool) -> None:
    """Require what stat part and content part must say of each other."""
    require(len(content_id) in (0, _ID_BYTES), "page: length of a content id")
    require(not spilled or bool(flat), "page: spilled to no blocks")
    if stat.type == _FILE:
        # Who reads such a file hashes all of it, holes too: no longer than a domain allows.
        small = 0 < stat.size <= CHUNK_PLAIN_BYTES_MAX
        require(not content_id or small, "page: content id of an empty or large file")
        if not spilled and not stat.flags & _SKIPPED:
            require(sum(flat[2::3]) == stat.size, "page: extents do not add up to the size")
        return
    require(stat.size == 0 and not content_id, "page: size or content id of what is no file")
    require(not flat or stat.type == _DIRECTORY, "page: extents of what has no content")


def _check_extra(stat: Stat, extra: _Extra) -> None:
    if extra.xattrs:
        require(extra.xattr_blocks is UNSET, "page: attributes both here and in blocks")
        names = [name for name, _ in extra.xattrs]
        require(
            all(first < second for first, second in pairwise(names)),
            "page: attributes are not sorted by name",
        )
    kind = stat.type
    require(extra.link is UNSET or kind != EntryType.DIRECTORY, "page: a link to a directory")
    require(extra.target is UNSET or kind == EntryType.SYMLINK, "page: target of no symlink")
    is_device = kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
    require(extra.device is UNSET or is_device, "page: device number of no device")


class PageRows:
    """The entries of one page: stat parts, and rows that become contents when they are asked for.

    Rows that nobody asks for are not checked beyond their shape.
    """

    __slots__ = ("_reader", "ids", "owners", "rows", "stats")

    def __init__(
        self,
        stats: tuple[Stat, ...],
        rows: tuple[Row, ...],
        *,
        owners: tuple[Owner, ...],
        ids: tuple[bytes, ...],
        own_chunk: bytes,
        own_offset: int,
    ) -> None:
        """`rows[i]` belongs to `stats[i]`; the page lies at `own_offset` of `own_chunk`."""
        self.stats = stats
        self.rows = rows
        self.owners = owners
        self.ids = ids
        """Distinct ids that the rows index, other than the page's own chunk."""
        self._reader = ContentReader(owners, ids, own_chunk, own_offset)

    def content(self, index: int) -> Content:
        """Return the content part of one entry.

        Raises:
            InvalidInput: it says what cannot be.
        """
        return self._reader.content(self.stats[index], self.rows[index])

    def contents(self) -> tuple[Content, ...]:
        """Return the content part of every entry, and check the page as a whole.

        Raises:
            InvalidInput: one says what cannot be, or an id is not used.
        """
        reader = self._reader
        contents = tuple(map(reader.content, self.stats, self.rows))
        require(len(reader.used) == len(self.ids), "page: an id is not used")
        return contents

    def bound(self) -> set[int]:
        """Return the indices of the entries whose rows no other page can have as they are.

        They name what lies in a tree chunk, perhaps the page's own (directories, blocks), or have
        to be looked at one by one: those with a flag, and those with other names.
        """
        found = {at for at, s in enumerate(self.stats) if s.flags or s.type == _DIRECTORY}
        found.update(
            at for at, row in enumerate(self.rows) if row.extra != NIL and _is_bound(row.extra)
        )
        return found

    def naming(self, chunks: frozenset[bytes]) -> set[int]:
        """Return the indices of the entries of which an extent lies in one of `chunks`."""
        sought = {index for index, chunk in enumerate(self.ids) if chunk in chunks}
        if not sought:
            return set()
        return {at for at, row in enumerate(self.rows) if not sought.isdisjoint(row.flat[::3])}


def _is_bound(extra: msgspec.Raw) -> bool:
    found = _EXTRA.decode(extra)
    return not (found.link is found.spill is found.xattr_blocks is UNSET)


class RowRun(NamedTuple):
    """Neighbours of one page that another page has as they are; none of them is `bound`."""

    page: PageRows
    start: int
    end: int


class EncodedRows(NamedTuple):
    """The content part of a page, and the ids that its rows index."""

    ids: tuple[bytes, ...]
    owners: tuple[Owner, ...]
    rows: list[Any]


def encode_rows(contents: Sequence[Content | RowRun]) -> EncodedRows:
    """Return the rows of a page with these contents; all runs among them are of one page.

    Cost: an entry of a run costs a tenth of another.
    """
    owners, ids, taken = _taken_over([item for item in contents if isinstance(item, RowRun)])
    coming = iter(taken)
    rows: list[Any] = []
    for content in contents:
        if isinstance(content, RowRun):
            rows += next(coming)
            continue
        owner = (content.uid, content.gid, content.user, content.group)
        index = owners.setdefault(owner, len(owners))
        extents = content.extents
        if len(extents) == 1:
            chunk, offset, length = extents[0].chunk, extents[0].offset, extents[0].length
            flat: Sequence[int] = (ids.setdefault(chunk, len(ids) - 2), offset, length)
        else:
            flat = _flatten(extents, ids)
        rows.append((index, content.content_id, flat, _encode_extra(content, ids)))
    return EncodedRows(tuple(ids)[2:], tuple(owners), rows)


def _taken_over(
    runs: Sequence[RowRun],
) -> tuple[dict[Owner, int], dict[bytes, int], list[Sequence[Row]]]:
    """Return the tables that a page with these runs begins with, and the rows of each run.

    What none of the rows uses is in neither table: then they are numbered anew.
    """
    owners: dict[Owner, int] = {}
    # The two marks make the ids' indices begin at 0 when two are taken off the number of keys.
    ids = {HOLE_CHUNK: _HOLE, SELF_CHUNK: _SELF}
    if not runs:
        return owners, ids, []
    page = runs[0].page
    taken: list[Sequence[Row]] = [page.rows[start:end] for _, start, end in runs]
    used_owners = sorted({row.owner for rows in taken for row in rows})
    used = _used(taken, len(page.ids))
    assert not used or used[0] >= _HOLE, "a run names the page's own chunk"
    owner_at = {at: owners.setdefault(page.owners[at], len(owners)) for at in used_owners}
    id_at = {at: ids.setdefault(page.ids[at], len(ids) - 2) for at in used if at >= 0}
    if len(owners) == len(page.owners) and len(id_at) == len(page.ids):
        return owners, ids, taken
    id_at[_HOLE] = _HOLE
    return owners, ids, [_renumbered(rows, owner_at, id_at) for rows in taken]


def _used(taken: Sequence[Sequence[Row]], count: int) -> list[int]:
    """Return the distinct indices of chunks that the rows name, ascending."""
    used = {row.flat[0] for rows in taken for row in rows if row.flat}
    if len(used - {_HOLE}) < count:
        # First extents are enough for nearly every page; here the others count.
        used = {index for rows in taken for row in rows for index in row.flat[::3]}
    return sorted(used)


def _renumbered(
    rows: Sequence[Row], owner_at: dict[int, int], id_at: dict[int, int]
) -> Sequence[Row]:
    return [
        Row(owner_at[row.owner], row.content_id, _with_indices(row.flat, id_at), row.extra)
        for row in rows
    ]


def _with_indices(flat: _Flat, id_at: dict[int, int]) -> _Flat:
    if len(flat) == 3:
        return id_at[flat[0]], flat[1], flat[2]
    triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return tuple(number for index, *place in triples for number in (id_at[index], *place))


def _flatten(extents: Sequence[Extent], ids: dict[bytes, int]) -> Sequence[int]:
    flat: list[int] = []
    for extent in extents:
        index = ids.setdefault(extent.chunk, len(ids) - 2)
        flat += (index, extent.offset, extent.length)
    return flat


def _encode_extra(content: Content, ids: dict[bytes, int]) -> _Extra | None:
    if not (
        content.xattrs
        or content.link_group
        or content.target
        or content.device
        or content.spill
        or content.xattr_blocks
    ):
        return None
    blocks = tuple(_flatten(content.xattr_blocks, ids))
    return _Extra(
        xattrs=content.xattrs or UNSET,
        link=content.link_group or UNSET,
        target=content.target or UNSET,
        device=content.device or UNSET,
        spill=content.spill or UNSET,
        xattr_blocks=blocks or UNSET,
    )

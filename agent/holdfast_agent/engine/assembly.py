"""Pages wait here, in post-order of the walk, until everything that they name is known.

A page is made when the ids of all its chunks are known and every young file in it was looked at a
second time. What comes out equal to the parent's page stays where the parent has it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.drafts import ChunkDraft, Parts, Place, batches
from holdfast_agent.engine.entries import (
    DirectoryDraft,
    EntryDraft,
    Item,
    KeptRun,
    OldPage,
    PageDraft,
    PageSlot,
    entry_count,
    stats_of,
    taken_apart,
)
from holdfast_agent.engine.files import FileContents
from holdfast_agent.engine.groups import TreeGroups
from holdfast_agent.engine.shipping import Shipping
from holdfast_agent.engine.tally import Tally, is_unmodified
from holdfast_agent.sorting import RecordSorter
from holdfast_agent.tree.block import (
    BLOCK_EXTENTS_MAX,
    INLINE_EXTENTS_MAX,
    attributes_fit_page,
    encode_attributes_block,
    encode_extents_block,
    split_attributes,
)
from holdfast_agent.tree.entry import (
    HOLE_CHUNK,
    SELF_CHUNK,
    Content,
    EntryFlag,
    EntryType,
    Extent,
)
from holdfast_agent.tree.known import KnownPage, KnownTree, NewPage
from holdfast_agent.tree.page import encode_page, encode_stat_part, page_ids
from holdfast_agent.tree.rows import RowRun
from holdfast_contract.errors import TooLarge

QUEUED_ENTRIES_MAX: Final = 4_000
"""Entries that may wait: about 3 MB. With 12,000 an agent that idles afterwards has 6 MB more, as
holes between Python's small objects."""
_ID_BYTES: Final = 32
_DIRECTORY: Final = int(EntryType.DIRECTORY)
_IMPLIED: Final = int(EntryFlag.IMPLIED)
_SKIPPED: Final = int(EntryFlag.SKIPPED)


@dataclass(slots=True)
class _Usage:
    """What the snapshot uses of bundles and groups, as differences to the parent."""

    made: Counter[bytes] = field(default_factory=Counter)
    used: Counter[bytes] = field(default_factory=Counter)

    def leave_out(self, blocks: Iterable[Extent]) -> None:
        """Have blocks that only other blocks name count neither as made nor as used.

        A later backup has the entry and the blocks named there, and nothing below them: a group
        of such blocks would seem to be empty, and its file would be read again each time.
        """
        for extent in blocks:
            self.made[extent.chunk] -= extent.length

    def count(self, contents: Iterable[Content], sign: int) -> None:
        """Count the bytes of bundles and blocks that entries name."""
        used = self.used
        # Neighbours mostly lie in one bundle, whose counter is asked for once.
        chunk, total = b"", 0
        for content in contents:
            if content.content_id or content.spill:
                for extent in content.extents:
                    if extent.chunk is not chunk:
                        if total:
                            used[chunk] += sign * total
                        chunk, total = extent.chunk, 0
                    total += extent.length
            if content.xattr_blocks:
                for extent in content.xattr_blocks:
                    used[extent.chunk] += sign * extent.length
        if total:
            used[chunk] += sign * total


class Assembly:
    """Makes the pages of one round of the walk."""

    def __init__(
        self,
        context: BackupContext,
        shipping: Shipping,
        *,
        files: FileContents,
        known: KnownTree,
        tally: Tally,
        settle: Callable[[], None],
    ) -> None:
        self._shipping = shipping
        self._files = files
        self._known = known
        self._tally = tally
        self._settle = settle
        """Looks a second time at every young file, and reads again what has to be."""
        self._groups = TreeGroups(context, shipping, self._group_closed)
        self._open_spool = context.open_spool
        self._queue: deque[PageDraft] = deque()
        self._queued = 0
        self._usage = _Usage()
        self._unplaced: list[NewPage] = []
        """New pages of the open group: the cache gets them when the group's id is known."""
        self.refs = RecordSorter(_ID_BYTES, context.open_spool)
        """Every id that the snapshot needs."""
        self._avoid = files.avoid

    def keep(self, directory: DirectoryDraft, page: KnownPage) -> None:
        """Leave a page of the parent where it is."""
        slot = PageSlot([(page.chunk, page.offset, len(page.data))])
        directory.slots.append(slot)
        self._refer(
            page.chunk, page.data, self._known.block_ids(page.row) if page.has_extra else ()
        )

    def add(self, page: PageDraft) -> None:
        """Queue a page; its slot is filled when its turn comes."""
        self._queue.append(page)
        self._queued += entry_count(page.entries)
        if self._queued > QUEUED_ENTRIES_MAX:
            self.finish_pages()

    def drop(self, old: OldPage, kept: Iterable[KeptRun] = ()) -> None:
        """Take a page of the parent out of the tree; the entries of `kept` go on to be used."""
        self._known.drop(old.known.row)
        self._usage.used[old.known.chunk] -= len(old.known.data)
        start = 0
        for run in (*kept, None):
            end = len(old.page.stats) if run is None else run.start
            self._usage.count((content for _, content in old.entries(start, end)), -1)
            start = 0 if run is None else run.end

    def finish_pages(self) -> None:
        """Make every queued page."""
        if any(entry.doubt for page in self._queue for entry in _drafts(page.entries)):
            self._settle()
        self._files.close_bundle()
        while self._queue:
            page = self._queue.popleft()
            self._queued -= entry_count(page.entries)
            self._finish(page)

    def finish(self) -> None:
        """Make every page, close the last group, note what is used of bundles and groups."""
        self.finish_pages()
        self._groups.close()
        self._shipping.wait_for(lambda: all(draft.id for draft, _ in self._files.bundles_made))
        for draft, size in self._files.bundles_made:
            self._usage.made[draft.id] = size
        self._known.use(self._usage.made, self._usage.used)

    # --- one page ---
    def _finish(self, page: PageDraft) -> None:
        items = [item for item in page.entries if isinstance(item, KeptRun) or not item.is_gone]
        entries = _drafts(items)
        waiting = [
            entry.parts
            for entry in entries
            if entry.parts is not None and not entry.parts.is_resolved
        ]
        if waiting:
            self._shipping.wait_for(lambda: all(parts.is_resolved for parts in waiting))
        if not self._is_same(page, items):
            for entry in entries:
                parts = entry.parts
                if (
                    entry.child is not None
                    or entry.content.xattrs
                    or (parts is not None and not entry.content.content_id and _is_cut(parts))
                ):
                    self._spill(entry, page.extra)
            if page.old is not None:
                self.drop(page.old, _runs(items))
            if items:
                self._make(page, items)
        self._count(items)
        if page.is_last:
            self._groups.end_of_directory(page.directory.path)

    def _is_same(self, page: PageDraft, items: Sequence[Item]) -> bool:
        """Keep the parent's page if the entries came out as it has them; tell whether."""
        old = page.old
        if old is None or old.known.chunk in self._avoid:
            return False
        if len(old.page.stats) != entry_count(items):
            return False
        at = 0
        for item in items:
            if isinstance(item, KeptRun):
                if item.start != at:
                    return False
                at = item.end
                continue
            stat, content = old.entry(at)
            if item.stat != stat or not self._is_same_content(item, content):
                return False
            at += 1
        known = old.known
        page.slot.places.append((known.chunk, known.offset, len(known.data)))
        self._refer(known.chunk, known.data, tuple(old.extra.items()))
        return True

    def _is_same_content(self, entry: EntryDraft, content: Content) -> bool:
        if entry.parts is None and entry.child is None:
            return entry.content == content
        if content.spill or content.xattr_blocks:
            return False
        if entry.child is not None:
            extents = self._groups.extents(entry.child.places())
        else:
            extents = entry.parts.as_extents() if entry.parts is not None else ()
        return msgspec.structs.replace(entry.content, extents=extents) == content

    def _make(self, page: PageDraft, items: Sequence[Item]) -> None:
        stat_part = encode_stat_part(stats_of(items))
        contents: list[Content | RowRun] = []

        def encode() -> bytes:
            contents[:] = map(self._content, items)
            return encode_page(stat_part, contents)

        try:
            place, data = self._groups.put(encode)
        except TooLarge:
            for run in _runs(items):
                # Counted with the others of their page from here on.
                self._usage.count((content for _, content in run.entries()), -1)
            entries = taken_apart(items)
            if len(entries) == 1:
                raise
            half = len(entries) // 2
            self._make(page, entries[:half])
            self._make(page, entries[half:])
            return
        page.slot.places.append(place)
        self._note(page, items, contents, place, data)

    def _content(self, entry: Item) -> Content | RowRun:
        """Return the content part as it stands in a page that goes into the open group."""
        if isinstance(entry, KeptRun):
            return RowRun(entry.old.page, entry.start, entry.end)
        content = entry.content
        if entry.attribute_blocks:
            blocks = self._groups.extents(entry.attribute_blocks)
            content = msgspec.structs.replace(content, xattrs=(), xattr_blocks=blocks)
        if entry.blocks:
            extents = self._groups.extents(entry.blocks)
        elif entry.parts is not None:
            extents = entry.parts.as_extents()
        elif entry.child is not None:
            extents = self._groups.extents(entry.child.places())
        else:
            return content
        if not extents and not content.extents:
            return content
        return msgspec.structs.replace(content, extents=extents)

    # --- blocks ---
    def _spill(self, entry: EntryDraft, extra: dict[bytes, bytes]) -> None:
        """Put into blocks what is too long for a page."""
        xattrs = entry.content.xattrs
        if xattrs and not attributes_fit_page(xattrs):
            entry.attribute_blocks = [
                self._groups.put(partial(encode_attributes_block, part))[0]
                for part in split_attributes(xattrs)
            ]
        if entry.parts is not None and _is_cut(entry.parts):
            ids = RecordSorter(_ID_BYTES, self._open_spool)
            places: list[Place] = []
            for batch in batches(entry.parts.extents(), BLOCK_EXTENTS_MAX):
                ids.add(extent.chunk for extent in batch if extent.chunk != HOLE_CHUNK)
                place, _ = self._groups.put(partial(encode_extents_block, batch))
                places.append(place)
            extra[entry.stat.name] = self._spilled(entry, places, ids)
        elif entry.child is not None and len(entry.child.slots) > INLINE_EXTENTS_MAX // 2:
            self._spill_directory(entry, entry.child, extra)

    def _spill_directory(
        self, entry: EntryDraft, child: DirectoryDraft, extra: dict[bytes, bytes]
    ) -> None:
        places = child.places()
        if len(places) <= INLINE_EXTENTS_MAX:
            return
        ids = RecordSorter(_ID_BYTES, self._open_spool)
        blocks = self._block_places(places, ids)
        extra[entry.stat.name] = self._spilled(entry, blocks, ids)

    def _block_places(self, places: Sequence[Place], ids: RecordSorter) -> list[Place]:
        """Put blocks that name `places`; collect the ids of chunks other than a block's own."""
        blocks = []
        for start in range(0, len(places), BLOCK_EXTENTS_MAX):
            part = places[start : start + BLOCK_EXTENTS_MAX]
            block, _ = self._groups.put(partial(self._encode_block, part))
            ids.add(
                chunk.id if isinstance(chunk, ChunkDraft) else chunk
                for chunk, _, _ in part
                if not isinstance(chunk, ChunkDraft) or chunk.id
            )
            blocks.append(block)
        return blocks

    def _encode_block(self, places: Sequence[Place]) -> bytes:
        return encode_extents_block(self._groups.extents(places))

    def _spilled(self, entry: EntryDraft, blocks: list[Place], ids: RecordSorter) -> bytes:
        """Note the blocks of an entry, one level deeper where they are many; return joined ids."""
        spill = 1
        if len(blocks) > INLINE_EXTENTS_MAX:
            self._usage.leave_out(self._groups.extents(blocks))
            blocks = self._block_places(blocks, ids)
            spill = 2
        entry.blocks = blocks
        entry.content = msgspec.structs.replace(entry.content, spill=spill)
        joined = b"".join(ids.sorted())
        ids.close()
        return joined

    # --- what the page leaves behind ---
    def _note(
        self,
        page: PageDraft,
        items: Sequence[Item],
        contents: Sequence[Content | RowRun],
        place: Place,
        data: bytes,
    ) -> None:
        made = [content for content in contents if not isinstance(content, RowRun)]
        spilled = [
            entry.stat.name for entry, c in zip(_drafts(items), made, strict=True) if c.spill
        ]
        extra = tuple((name, page.extra[name]) for name in spilled)
        first, last = stats_of(items[:1])[0], stats_of(items[-1:])[-1]
        found = {content.content_id for content in made}
        takes_row, stale = _number_of(page.old, _runs(items))
        if takes_row is None:
            found.update(row.content_id for run in _runs(items) for row in run.rows)
        new = NewPage(
            directory=page.directory.path,
            first=first.name,
            last=last.name,
            chunk=b"",
            offset=place[1],
            data=data,
            extra=extra,
            content_ids=tuple(found - {b""}),
            has_links=any(content.link_group for content in made),
            takes_row=takes_row,
            stale=stale,
        )
        self._unplaced.append(new)
        self.refs.add(page_ids(data))
        for _, ids in extra:
            self.refs.add_joined(ids)
        self._usage.count(made, 1)

    def _group_closed(self, group: bytes, size: int) -> None:
        self.refs.add((group,))
        # What pages and blocks of this group name in it was counted under the mark.
        self._usage.made[group] = size + self._usage.made.pop(SELF_CHUNK, 0)
        self._usage.used[group] += self._usage.used.pop(SELF_CHUNK, 0)
        for page in self._unplaced:
            self._usage.used[group] += len(page.data)
            self._known.put(page._replace(chunk=group))
        self._unplaced.clear()

    def _refer(self, chunk: bytes, data: bytes, extra: Sequence[tuple[bytes, bytes]]) -> None:
        self.refs.add((chunk, *page_ids(data)))
        for _, ids in extra:
            self.refs.add_joined(ids)

    def _count(self, items: Sequence[Item]) -> None:
        tally = self._tally
        for run in _runs(items):
            count = run.end - run.start
            tally.files += count
            tally.files_unmodified += count
            tally.bytes_logical += run.size
        new = unmodified = 0
        for entry in _drafts(items):
            stat, old = entry.stat, entry.old
            if stat.type == _DIRECTORY:
                tally.dirs += not stat.flags & _IMPLIED
                continue
            tally.files += 1
            # Those that were skipped too: readers hold a tree against these counts.
            counted = tally.add_bytes(stat.size, entry.content.link_group)
            if stat.flags & _SKIPPED:
                tally.files_skipped += 1
                continue
            if old is None:
                new += 1
            elif is_unmodified(entry):
                unmodified += 1
                continue
            else:
                tally.files_changed += 1
            tally.bytes_changed += counted
        tally.files_new += new
        tally.files_unmodified += unmodified


def _drafts(items: Iterable[Item]) -> list[EntryDraft]:
    return [item for item in items if isinstance(item, EntryDraft)]


def _runs(items: Iterable[Item]) -> list[KeptRun]:
    return [item for item in items if isinstance(item, KeptRun)]


def _number_of(old: OldPage | None, runs: Sequence[KeptRun]) -> tuple[int | None, int]:
    """Return the parent's page whose number a new page takes, and the stale contents under it.

    It takes none where contents would have to be noted that are not in hand, or where it is better
    to note all of them anew: as many are stale as the parent's page has.
    """
    if old is None or not runs:
        return None, 0
    count = len(old.page.stats)
    stale = old.known.stale + count - entry_count(runs)
    return (old.known.row, stale) if stale <= count else (None, 0)


def _is_cut(parts: Parts | None) -> bool:
    """Tell whether a file has so many parts that they may not fit into a page."""
    return parts is not None and len(parts) > INLINE_EXTENTS_MAX

"""Stretches of a directory's names become pages, in the place of the parent's or beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from holdfast_agent.engine.entries import (
    DirectoryDraft,
    EntryDraft,
    Item,
    KeptRun,
    OldEntry,
    OldPage,
    PageDraft,
    PageSlot,
    entry_count,
    stats_of,
    taken_apart,
)
from holdfast_agent.tree.entry import EntryType, Stat
from holdfast_agent.tree.known import KnownPage, KnownTree
from holdfast_agent.tree.page import PAGE_ENTRIES_MAX, cut_pages, page_ids

_DIRECTORY: Final = int(EntryType.DIRECTORY)


class Pages(Protocol):
    """Where pages go (`assembly`, or the counts of a dry run)."""

    def keep(self, directory: DirectoryDraft, page: KnownPage) -> None:
        """Leave a page of the parent where it is."""

    def add(self, page: PageDraft) -> None:
        """Take the entries of a new page."""

    def drop(self, old: OldPage) -> None:
        """Take a page of the parent out of the tree."""


class Paging:
    """Turns entries into drafts of pages, and takes the parent's pages out of the tree."""

    def __init__(
        self, known: KnownTree, pages: Pages, *, name_key: bytes, avoid: frozenset[bytes]
    ) -> None:
        self._known = known
        self._pages = pages
        self._key = name_key
        self._avoid = avoid

    def keep(self, draft: DirectoryDraft, known: KnownPage) -> None:
        """Leave a page of the parent where it is."""
        self._pages.keep(draft, known)

    # --- what the parent has ---
    def touches(self, known: KnownPage) -> bool:
        """Tell whether a page lies in, or names, a chunk that is to be avoided."""
        avoid = self._avoid
        if known.chunk in avoid or not avoid.isdisjoint(page_ids(known.data)):
            return True
        if not known.has_extra:
            return False
        return any(_touched(ids, avoid) for _, ids in self._known.block_ids(known.row))

    def touches_entry(self, known: OldEntry, extra: bytes) -> bool:
        """Tell whether an entry names a chunk that is to be avoided."""
        content = known[1]
        named = (*content.extents, *content.xattr_blocks)
        return any(extent.chunk in self._avoid for extent in named) or _touched(extra, self._avoid)

    def touched(self, old: OldPage) -> AbstractSet[int]:
        """Return the indices of a page's entries whose extents lie in a chunk to be avoided."""
        return old.page.naming(self._avoid) if self._avoid else frozenset()

    # --- what the snapshot gets ---
    def add_stretch(
        self,
        draft: DirectoryDraft,
        items: list[Item],
        old: OldPage,
        *,
        takes_place: bool,
        is_end: bool,
    ) -> list[EntryDraft]:
        """Take the entries in place of an old page; return those whose page has not ended yet.

        `takes_place`: no entry of another page is among them, so that the old one may stay if they
        are equal.
        """
        if takes_place and self._is_one_page(items, is_end=is_end):
            self.add(draft, items, old, is_last=is_end)
            return []
        entries = taken_apart(items)
        self.drop(draft, old)
        if not is_end:
            return self.add_ended(draft, entries)
        self.add_last(draft, entries)
        return []

    def add_ended(self, draft: DirectoryDraft, entries: list[EntryDraft]) -> list[EntryDraft]:
        """Take the entries of which the page has ended; return the others."""
        start = 0
        for end in self._ends(entries, is_end=False):
            self.add(draft, entries[start:end], None, is_last=False)
            start = end
        return entries[start:]

    def add_last(self, draft: DirectoryDraft, entries: list[EntryDraft]) -> None:
        """Take the last entries of a directory; there may be none."""
        start = 0
        for end in self._ends(entries, is_end=True):
            self.add(draft, entries[start:end], None, is_last=end == len(entries))
            start = end

    def _is_one_page(self, items: Sequence[Item], *, is_end: bool) -> bool:
        """Tell whether entries make exactly one page that ends with them.

        Between entries that were neighbours in the parent's page none ended.
        """
        if not 0 < entry_count(items) <= PAGE_ENTRIES_MAX:
            return False
        names = [item.stat.name for item in items[:-1] if isinstance(item, EntryDraft)]
        if any(map(self._is_cut, names)):
            return False
        return is_end or self._is_cut(stats_of(items[-1:])[-1].name)

    def _ends(self, entries: list[EntryDraft], *, is_end: bool) -> list[int]:
        """Return where pages end; behind the last of them a page may be open, unless `is_end`."""
        ends = cut_pages([entry.stat.name for entry in entries], self._key)
        if entries and not is_end and not self._is_cut(entries[-1].stat.name):
            ends.pop()
        return ends

    def is_full(self, part: Sequence[Stat]) -> bool:
        """Tell whether a page that has exactly these entries ends here, whatever comes behind."""
        return len(part) >= PAGE_ENTRIES_MAX or (bool(part) and self._is_cut(part[-1].name))

    def _is_cut(self, name: bytes) -> bool:
        """Tell whether a page ends after this name, whatever comes behind it."""
        return cut_pages((name, name), self._key)[0] == 1

    def end(self, draft: DirectoryDraft, drafts: list[EntryDraft], olds: Sequence[OldPage]) -> None:
        """Take all entries of an implied directory at once."""
        if len(olds) == 1 and drafts:
            self.add(draft, drafts, olds[0], is_last=True)
            return
        for old in olds:
            self.drop(draft, old)
        if drafts:
            self.add(draft, drafts, None, is_last=True)

    def add(
        self,
        draft: DirectoryDraft,
        entries: Sequence[Item],
        old: OldPage | None,
        *,
        is_last: bool,
    ) -> None:
        """Take the entries of one page; `old` is the page whose place they take exactly."""
        draft.is_kept = False
        slot = PageSlot()
        draft.slots.append(slot)
        extra = {} if old is None else dict(old.extra)
        for entry in entries:
            # Entries of another page that were not touched bring their blocks along.
            if isinstance(entry, KeptRun):
                continue
            if entry.content.spill and entry.old is not None and entry.stat.name not in extra:
                extra[entry.stat.name] = self._extra_of(draft.path, entry.stat.name)
        self._pages.add(PageDraft(draft, slot, entries, old, extra, is_last))

    def _extra_of(self, path: bytes, name: bytes) -> bytes:
        for known in self._known.pages(path):
            if known.first <= name <= known.last:
                return dict(self._known.block_ids(known.row)).get(name, b"")
        return b""

    def drop(self, draft: DirectoryDraft, old: OldPage) -> None:
        """Take one of the directory's pages out of the tree."""
        draft.is_kept = False
        self._pages.drop(old)

    def drop_vanished(self, path: bytes, vanished: Iterable[Stat]) -> None:
        """Take what lies below vanished directories of `path` out of the tree."""
        for stat in vanished:
            if stat.type == _DIRECTORY:
                self.drop_below(path_below(path, stat.name))

    def drop_below(self, path: bytes) -> None:
        """Take the directory `path` and everything below it out of the tree."""
        for known in self._known.below(path):
            self._pages.drop(self.decoded(known))

    def decoded(self, known: KnownPage) -> OldPage:
        """Return a page of the parent taken apart.

        Raises:
            KnownTreeLost: the cache does not hold what was put into it.
        """
        page = known.opened()
        extra = dict(self._known.block_ids(known.row)) if known.has_extra else {}
        return OldPage(known, page, extra)


def with_last(pages: Iterable[KnownPage]) -> Iterator[tuple[KnownPage, bool]]:
    """Yield each page and whether it is the last."""
    before: KnownPage | None = None
    for page in pages:
        if before is not None:
            yield before, False
        before = page
    if before is not None:
        yield before, True


def path_below(path: bytes, name: bytes) -> bytes:
    """Return the absolute path of `name` in the directory `path`."""
    return path + name if path == b"/" else path + b"/" + name


def _touched(ids: bytes, avoid: frozenset[bytes]) -> bool:
    """Tell whether one of the joined ids is to be avoided."""
    return any(ids[at : at + 32] in avoid for at in range(0, len(ids), 32))

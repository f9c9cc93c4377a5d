"""The walk: depth-first, by name, one directory after the other; pages come out in post-order.

A stretch of names whose stat parts are, byte for byte, those of the parent's page is unchanged: the
page is neither decoded nor made anew, unless a directory in it has changed below, a file in it has
its turn to be read again, or it touches a chunk that is to be avoided.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, TypeAlias

from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.entries import (
    DirectoryDraft,
    Entries,
    EntryDraft,
    Item,
    KeptRun,
    OldEntry,
    OldPage,
    entry_count,
    taken_apart,
)
from holdfast_agent.engine.paging import Pages, Paging, path_below, with_last
from holdfast_agent.engine.parent import ParentEntries
from holdfast_agent.engine.source import AtRest, Listing, Place, Row, Source, Unreadable
from holdfast_agent.engine.tally import Tally
from holdfast_agent.engine.turn import Turn
from holdfast_agent.tree.entry import Content, EntryFlag, EntryType, Stat
from holdfast_agent.tree.known import KnownPage, KnownTree
from holdfast_agent.tree.page import PAGE_ENTRIES_MAX, encode_stat_part, page_stat_part
from holdfast_contract.limits import DEPTH_MAX, WALK_PATH_BYTES_MAX

_DIRECTORY: Final = int(EntryType.DIRECTORY)
_SKIPPED: Final = int(EntryFlag.SKIPPED)
_TAKEN_NAMES: Final = 1024
"""Names of which the status is asked at once where the parent has no page."""
_TOLD_FILES: Final = 32
"""Files counted before the progress is told: a call for each would cost a thirtieth of its time."""

Steps: TypeAlias = Generator["Steps", DirectoryDraft, DirectoryDraft]
"""A directory at work: yields the directories below it, is sent their drafts, returns its own."""
_Forest: TypeAlias = "dict[bytes, _Forest | bytes]"
"""Directories above the backup's paths: name -> what lies below, or the path itself."""


class _Stretch(NamedTuple):
    """Names of a directory that stand where the parent has a page."""

    draft: DirectoryDraft
    last: bytes
    """The page's last name; the stretch ends with it."""
    part: Sequence[Stat]
    """The first names of it, usually all."""
    pending: list[EntryDraft]
    """Entries before it whose page has not ended."""
    items: list[Item] | None = None
    """Its entries, where they are known already."""
    old: OldPage | None = None
    """The page itself, where it is decoded already."""


class Walk:
    """One round over the backup's paths."""

    def __init__(
        self,
        context: BackupContext,
        source: Source,
        *,
        known: KnownTree,
        pages: Pages,
        entries: Entries,
        tally: Tally,
        turn: Turn,
        avoid: frozenset[bytes],
    ) -> None:
        self._key = context.keys.name
        self._paging = Paging(known, pages, name_key=self._key, avoid=avoid)
        self._cancel = context.cancel
        self._progress = context.progress
        self._source = source
        self._known = known
        self._entries = entries
        self._tally = tally
        self._turn = turn
        self._avoids = bool(avoid)
        self.tops_read = 0
        """How many of the backup's paths could be read at all."""

    def run(self) -> DirectoryDraft:
        """Walk everything; return the draft of `/`, whose pages may still have to be made."""
        paths = self._source.tops()
        if list(paths) == [b"/"]:
            return self._run(self._whole())
        forest: _Forest = {}
        for path in paths:
            *above, name = path.strip(b"/").split(b"/")
            level = forest
            for part in above:
                below = level.setdefault(part, {})
                assert isinstance(below, dict), "a path lies below another"
                level = below
            level[name] = path
        return self._run(self._implied(forest, b"/"))

    def _run(self, first: Steps) -> DirectoryDraft:
        """Run directories on a stack of their own: the tree may be deeper than Python's."""
        stack = [first]
        sent: DirectoryDraft | None = None
        try:
            while True:
                try:
                    below = stack[-1].send(sent)  # type: ignore[arg-type] # None starts it
                except StopIteration as done:
                    stack.pop()
                    sent = done.value
                    if not stack:
                        assert sent is not None
                        return sent
                else:
                    stack.append(below)
                    sent = None
        finally:
            for steps in reversed(stack):
                steps.close()

    # --- above the backup's paths ---
    def _whole(self) -> Steps:
        draft = DirectoryDraft(b"/")
        try:
            place = self._source.open_top(b"/")
        except Unreadable as why:
            self._tally.list_row(Row(b"/", why.reason, why.message))
            return draft
        try:
            self.tops_read += 1
            return (yield self._directory(place, b"/", 0))
        finally:
            self._source.close_top(place)

    def _implied(self, level: _Forest, path: bytes) -> Steps:
        draft = DirectoryDraft(path)
        olds = [self._paging.decoded(page) for page in self._known.pages(path)]
        before = {entry[0].name: entry for old in olds for entry in old.entries()}
        drafts: list[EntryDraft] = []
        for name in sorted(level):
            below, here = level[name], path_below(path, name)
            old = before.pop(name, None)
            if isinstance(below, bytes):
                entry = yield from self._top(below, old)
                drafts += [] if entry is None else [entry]
                continue
            stat = Stat(name, _DIRECTORY, 0o755, 0, 0, 0, 0, int(EntryFlag.IMPLIED))
            child = yield self._implied(below, here)
            drafts.append(EntryDraft(stat, Content(), child=child, old=old))
        self._paging.drop_vanished(path, (stat for stat, _ in before.values()))
        self._paging.end(draft, drafts, olds)
        return draft

    def _top(
        self, path: bytes, old: OldEntry | None
    ) -> Generator[Steps, DirectoryDraft, EntryDraft | None]:
        name = path.rpartition(b"/")[2]
        try:
            place = self._source.open_top(path)
        except Unreadable as why:
            self._tally.list_row(Row(path, why.reason, why.message))
            return None
        try:
            stat = place.look(name)
            above = path[: -len(name) - 1] or b"/"
            entry: EntryDraft | None
            if stat.type == _DIRECTORY and not stat.flags & _SKIPPED:
                entry = yield from self._directory_entry(place, above, stat, old, 0)
            else:
                entry = self._leaf(place, above, stat, old)
                self._progress.add(files=1)
        except Unreadable as why:
            self._tally.list_row(Row(path, why.reason, why.message))
            return None
        finally:
            self._source.close_top(place)
        if entry is not None and not entry.is_skipped:
            self.tops_read += 1
        return entry

    # --- one directory ---
    def _directory(self, place: Place, path: bytes, depth: int) -> Steps:
        self._cancel.check()
        self._progress.current(path)
        listing = place.listing(self._known.pages(path))
        try:
            self._list(listing)
            draft = DirectoryDraft(path)
            if listing.at_rest is not None and not (self._avoids or self._turn.has_days):
                self._keep_all(draft, listing.at_rest)
                listing.note_kept()
                return draft
            is_kept = True
            pending: list[EntryDraft] = []
            for known, is_last in with_last(self._known.pages(path)):
                self._cancel.check()
                part = listing.take(known.last, PAGE_ENTRIES_MAX)
                ends = not listing.has(known.last)
                if is_last and listing.has():
                    # It ended with the directory, which goes on now: so may the page.
                    ends = ends and self._paging.is_full(part)
                stretch = _Stretch(draft, known.last, part, pending)
                if ends and not pending and self._is_unchanged(path, part, known):
                    items, old = yield from self._unless_kept(place, draft, part, known, depth)
                    if old is None:
                        self._list(listing)
                        continue
                    stretch = stretch._replace(items=items, old=old)
                is_kept = False
                pending = yield from self._stretch(place, listing, stretch, known, depth)
            yield from self._rest(place, draft, listing, pending, depth)
            self._list(listing)
            if is_kept:
                listing.note_kept()
        finally:
            listing.close()
        return draft

    def _list(self, listing: Listing) -> None:
        for row in listing.rows():
            self._tally.list_row(row)

    def _is_unchanged(self, path: bytes, part: Sequence[Stat], known: KnownPage) -> bool:
        if not part or part[0].name != known.first:
            return False
        if encode_stat_part(part) != page_stat_part(known.data):
            return False
        # A flag says that the entry must not be believed, also where the parent says the same.
        if any(stat.flags for stat in part) or self._turn.due(path, part):
            return False
        return not self._avoids or not self._paging.touches(known)

    def _unless_kept(
        self,
        place: Place,
        draft: DirectoryDraft,
        part: Sequence[Stat],
        known: KnownPage,
        depth: int,
    ) -> Generator[Steps, DirectoryDraft, tuple[list[Item], OldPage | None]]:
        """Keep an unchanged page if nothing below it has changed; otherwise return its entries."""
        children: dict[bytes, DirectoryDraft | Unreadable] = {}
        for stat in part:
            if stat.type == _DIRECTORY:
                children[stat.name] = yield from self._descend(place, draft.path, stat, depth)
        if all(isinstance(child, DirectoryDraft) and child.is_kept for child in children.values()):
            self._keep(draft, part, known, len(children))
            return [], None
        old = self._paging.decoded(known)
        items: list[Item] = []
        start = 0
        for index in sorted(old.page.bound()):
            if start < index:
                items.append(KeptRun(old, start, index))
            start = index + 1
            before = old.entry(index)
            child = children.get(before[0].name)
            if isinstance(child, Unreadable):
                items.append(self._entries.skipped(place, before[0], child, before))
            else:
                items.append(EntryDraft(*before, child=child, old=before))
        if start < len(part):
            items.append(KeptRun(old, start, len(part)))
        self._progress.add(files=len(part) - len(children), bytes=sum([stat.size for stat in part]))
        return items, old

    def _keep(
        self, draft: DirectoryDraft, part: Sequence[Stat], known: KnownPage, directories: int
    ) -> None:
        self._paging.keep(draft, known)
        tally = self._tally
        files = len(part) - directories
        tally.dirs += directories
        tally.files += files
        tally.files_unmodified += files
        before = tally.bytes_logical
        if known.has_links:
            for stat, content in self._paging.decoded(known).entries():
                tally.add_bytes(stat.size, content.link_group)
        else:
            tally.bytes_logical += sum(stat.size for stat in part)
        self._progress.add(files=files, bytes=tally.bytes_logical - before)

    def _keep_all(self, draft: DirectoryDraft, counted: AtRest) -> None:
        """Keep all pages of a directory of which no entry needs to be looked at."""
        for known in self._known.pages(draft.path):
            self._cancel.check()
            self._paging.keep(draft, known)
        tally = self._tally
        tally.files += counted.files
        tally.files_unmodified += counted.files
        tally.bytes_logical += counted.bytes
        self._progress.add(files=counted.files, bytes=counted.bytes)

    def _stretch(
        self, place: Place, listing: Listing, stretch: _Stretch, known: KnownPage, depth: int
    ) -> Generator[Steps, DirectoryDraft, list[EntryDraft]]:
        """Make the entries in place of a page of the parent; return those whose page is open."""
        draft, last, part, pending, items, old = stretch
        if old is None:
            old = self._paging.decoded(known)
        takes_place = not pending
        if items is None:
            before = ParentEntries(old, self._paging.touched(old))
            items = [
                *pending,
                *(yield from self._entries_of(place, draft.path, part, before, depth)),
            ]
            # More names than a page can have: they go on their way page by page.
            while listing.has(last):
                items = [*self._paging.add_ended(draft, taken_apart(items))]
                part = listing.take(last, PAGE_ENTRIES_MAX)
                items += yield from self._entries_of(place, draft.path, part, before, depth)
            self._paging.drop_vanished(draft.path, before.vanished())
        self._list(listing)
        return self._paging.add_stretch(
            draft, items, old, takes_place=takes_place, is_end=not listing.has()
        )

    def _entries_of(
        self,
        place: Place,
        path: bytes,
        part: Sequence[Stat],
        before: ParentEntries,
        depth: int,
    ) -> Generator[Steps, DirectoryDraft, list[Item]]:
        """Return the entries of some names, beside what the parent had up to the last of them."""
        items: list[Item] = []
        runs: list[KeptRun] = []
        due = self._turn.due(path, part)
        alike = before.alike(due)
        start = at = before.at
        untold = 0
        check = self._cancel.check
        entry_of = self._entries.entry
        check()
        for stat in part:
            if alike[at] == stat:
                # Nearly every entry of a page that has changed.
                at += 1
                continue
            check()
            if start < at:
                runs.append(KeptRun(before.old, start, at))
                items.append(runs[-1])
            known = before.take(at, stat.name)
            start = at = before.at
            entry: EntryDraft | None
            if stat.type == _DIRECTORY and not stat.flags & _SKIPPED:
                entry = yield from self._directory_entry(place, path, stat, known, depth)
            else:
                if known is None:
                    entry = entry_of(place, stat, None)
                else:
                    blocks = before.old.extra.get(stat.name, b"")
                    entry = self._known_leaf(place, path, stat, known, blocks, stat.name in due)
                untold += 1
                if untold == _TOLD_FILES:
                    self._progress.add(files=untold)
                    untold = 0
            if entry is not None:
                items.append(entry)
        if start < at:
            runs.append(KeptRun(before.old, start, at))
            items.append(runs[-1])
            before.at = at
        files = untold + entry_count(runs)
        self._progress.add(files=files, bytes=sum([run.size for run in runs]))
        return items

    def _new_entries(
        self, place: Place, path: bytes, part: Sequence[Stat], depth: int
    ) -> Generator[Steps, DirectoryDraft, list[EntryDraft]]:
        """Return the entries of names of which the parent has nothing."""
        drafts: list[EntryDraft] = []
        at = untold = 0
        while at < len(part):
            self._cancel.check()
            plain = self._entries.plain(place, part, at)
            if plain:
                drafts += plain
                at += len(plain)
                untold += len(plain)
            else:
                stat = part[at]
                at += 1
                entry: EntryDraft | None
                if stat.type == _DIRECTORY and not stat.flags & _SKIPPED:
                    entry = yield from self._directory_entry(place, path, stat, None, depth)
                else:
                    entry = self._entries.entry(place, stat, None)
                    untold += 1
                if entry is not None:
                    drafts.append(entry)
            if untold >= _TOLD_FILES:
                self._progress.add(files=untold)
                untold = 0
        self._progress.add(files=untold)
        return drafts

    def _rest(
        self,
        place: Place,
        draft: DirectoryDraft,
        listing: Listing,
        pending: list[EntryDraft],
        depth: int,
    ) -> Generator[Steps, DirectoryDraft, None]:
        """Take the names behind the parent's last page, one page after the other."""
        entries = pending
        while listing.has():
            part = listing.take(None, _TAKEN_NAMES)
            entries += yield from self._new_entries(place, draft.path, part, depth)
            self._list(listing)
            if listing.has():
                entries = self._paging.add_ended(draft, entries)
        self._paging.add_last(draft, entries)

    # --- one entry ---
    def _leaf(
        self, place: Place, path: bytes, stat: Stat, old: OldEntry | None
    ) -> EntryDraft | None:
        """Return the entry of anything but a directory, or of what is only listed."""
        if old is not None and old[0].type == _DIRECTORY:
            self._paging.drop_below(path_below(path, stat.name))
        return self._entries.entry(place, stat, old)

    def _known_leaf(
        self,
        place: Place,
        path: bytes,
        stat: Stat,
        known: OldEntry,
        blocks: bytes,
        is_due: bool,
    ) -> EntryDraft | None:
        """Return the entry of anything but a directory, of whose name the parent has one."""
        is_same = known[0] == stat and not (stat.flags or is_due)
        if is_same and not (self._avoids and self._paging.touches_entry(known, blocks)):
            self._progress.add(bytes=stat.size)
            # The parent's own objects: what is compared with them later is seen to be the same.
            return EntryDraft(known[0], known[1], None, None, known)
        return self._leaf(place, path, stat, known)

    def _directory_entry(
        self, place: Place, path: bytes, stat: Stat, old: OldEntry | None, depth: int
    ) -> Generator[Steps, DirectoryDraft, EntryDraft | None]:
        entry: EntryDraft | None
        if old is not None and old[0] == stat:
            entry = EntryDraft(stat, old[1], old=old)
        else:
            entry = self._entries.described(place, stat, old)
        if entry is None or entry.is_skipped:
            self._paging.drop_below(path_below(path, stat.name))
            return entry
        if entry.stat.type != _DIRECTORY:
            # Exchanged since it was scanned: what it is now is described, or read.
            self._paging.drop_below(path_below(path, stat.name))
            return self._entries.entry(place, entry.stat, old)
        child = yield from self._descend(place, path, stat, depth)
        if isinstance(child, Unreadable):
            return self._entries.skipped(place, stat, child, old)
        entry.child = child
        return entry

    def _descend(
        self, place: Place, path: bytes, stat: Stat, depth: int
    ) -> Generator[Steps, DirectoryDraft, DirectoryDraft | Unreadable]:
        here = path_below(path, stat.name)
        try:
            if depth >= DEPTH_MAX - 1:
                raise Unreadable("too-deep", f"more than {DEPTH_MAX} directories deep")
            if len(here) > WALK_PATH_BYTES_MAX:
                raise Unreadable("too-deep", f"a path of more than {WALK_PATH_BYTES_MAX} bytes")
            is_entered = place.enter(stat.name)
        except Unreadable as why:
            self._paging.drop_below(here)
            return why
        if not is_entered:
            self._paging.drop_below(here)
            return DirectoryDraft(here, is_kept=False)
        child = yield self._directory(place, here, depth + 1)
        row = place.leave()
        if row is not None:
            self._tally.list_row(row)
        return child

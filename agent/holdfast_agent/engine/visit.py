"""From a name to an entry: files are opened and read, everything else is described.

A file that changes while it is read is read again, at most three times; then what came last is
stored, marked unsettled (the next backup reads it again) and listed. Nothing here ends a backup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from holdfast_agent.engine.drafts import Parts
from holdfast_agent.engine.entries import EntryDraft, OldEntry
from holdfast_agent.engine.files import PLAIN_BYTES_MAX, FileContent, FileContents
from holdfast_agent.engine.source import (
    CHANGED,
    REPLACED,
    VANISHED,
    Attributes,
    DoubtKey,
    Place,
    Row,
    Source,
    Unreadable,
)
from holdfast_agent.engine.tally import Tally
from holdfast_agent.tree.entry import Content, EntryFlag, EntryType, Stat

_ATTEMPTS: Final = 3
_LINKS_MAX: Final = 65_536
"""Hard-linked inodes remembered while names of them are expected, about 50 MB; the content of
others is read again for each name."""
PLAIN_FILES_MAX: Final = 64
"""Files read in one go: between two such groups the job looks whether it was cancelled."""
_FILE: Final = int(EntryType.FILE)
_UNSETTLED: Final = int(EntryFlag.UNSETTLED)
_SKIPPED: Final = int(EntryFlag.SKIPPED)


@dataclass(slots=True)
class _Linked:
    """Content of an inode with several names, read at its first."""

    device: int
    signature: tuple[int, int, int]
    content: FileContent
    names_left: int


@dataclass(slots=True)
class _Names:
    """How many names an inode has, and how many of them the walk has visited."""

    inode: int
    links: int
    visited: int = 0


class _Result(NamedTuple):
    """One reading of a file."""

    entry: Stat
    attributes: Attributes
    content: FileContent
    is_whole: bool
    doubt: DoubtKey | None


class Visits:
    """Makes entries of what the walk meets."""

    def __init__(
        self,
        source: Source,
        files: FileContents,
        tally: Tally,
        make_room: Callable[[], None],
    ) -> None:
        self._source = source
        self._files = files
        self._small_max = files.small_max
        self._tally = tally
        self._make_room = make_room
        """Settles files in doubt when no more can be remembered."""
        self._links: dict[bytes, _Linked] = {}
        self._linked_inodes: set[int] = set()
        self._names: dict[bytes, _Names] = {}
        self._not_plain: Stat | None = None
        """The last file that turned out not to be ordinary."""
        self.doubts: dict[DoubtKey, EntryDraft] = {}
        """Entries that wait for the second look."""

    # --- entries that are not directories ---
    def plain(self, place: Place, stats: Sequence[Stat], at: int) -> list[EntryDraft]:
        """Return the entries of ordinary small files that stand from `at` on, new to the parent.

        As many as are read in one go, none where `stats[at]` is something else. Nearly all files
        of a first backup come this way, and little is done for each of them alone.
        """
        small_max, linked = self._small_max, self._linked_inodes
        total, end = 0, at
        for stat in islice(stats, at, at + PLAIN_FILES_MAX):
            size = stat.size
            if stat.type != _FILE or size > small_max or stat.flags & _SKIPPED:
                break
            if linked and stat.inode in linked:
                break
            if total + size > PLAIN_BYTES_MAX and end > at:
                break
            total += size
            end += 1
        return self._read_plain(place, stats[at:end], total, None) if end > at else []

    def _read_plain(
        self, place: Place, stats: Sequence[Stat], size: int, old: OldEntry | None
    ) -> list[EntryDraft]:
        data = self._files.room(size)
        contents = place.read_plain(stats, data)
        if len(contents) < len(stats):
            self._not_plain = stats[len(contents)]
        return self._files.keep_plain(stats, contents, data, old)

    def entry(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry for a name that was scanned as `stat`; None when it is gone by now."""
        entry = self._entry(place, stat, old)
        if entry is not None and entry.content.link_group in self._names:
            self._names[entry.content.link_group].visited += 1
        return entry

    def unvisited(self) -> frozenset[int] | None:
        """Return the inodes that were new or changed and have more names than were visited.

        None: too many to remember.
        """
        if len(self._names) >= _LINKS_MAX:
            return None
        return frozenset(n.inode for n in self._names.values() if n.visited < n.links)

    def _grouped(self, place: Place, found: Attributes) -> bytes:
        """Return the link group of what has other names, and remember how many."""
        group = place.link_group(found.inode)
        names = self._names.get(group)
        if names is not None:
            names.links = max(names.links, found.links)
        elif len(self._names) < _LINKS_MAX:
            self._names[group] = _Names(found.inode, found.links)
        return group

    def _entry(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        if stat.flags & _SKIPPED:
            return EntryDraft(stat, Content(), old=old)
        if stat.type == _FILE:
            return self._file(place, stat, old)
        found = self.described(place, stat, old)
        if found is not None and found.stat.type == EntryType.FILE and not found.is_skipped:
            return self._file(place, found.stat, old)
        return self._no_directory(place, found, old)

    def described(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry of what has no content of its own: a directory, a link, a device.

        Another thing may have taken the name meanwhile: then the entry is of that one's type.
        """
        try:
            found = place.attributes(stat.name)
            for _ in range(_ATTEMPTS):
                if _is_of(found, stat):
                    break
                stat = place.look(stat.name)
                found = place.attributes(stat.name)
        except Unreadable as why:
            if why.reason == VANISHED:
                return None
            return self.skipped(place, stat, why, old)
        if not _is_of(found, stat):
            changing = Unreadable(CHANGED, "replaced whenever it was looked at")
            return self.skipped(place, stat, changing, old)
        content = found.content
        if found.links > 1 and stat.type != EntryType.DIRECTORY:
            content = msgspec.structs.replace(content, link_group=self._grouped(place, found))
        return self._with_failures(place, EntryDraft(stat, content, old=old), found)

    def skipped(
        self, place: Place, stat: Stat, why: Unreadable, old: OldEntry | None
    ) -> EntryDraft:
        """List a name, and return the entry that only says that it was there."""
        self._list(place, stat.name, why.reason, why.message)
        content = Content()
        with suppress(Unreadable):
            found = place.attributes(stat.name)
            content = found.content if _is_of(found, stat) else content
        return EntryDraft(_flagged(stat, _SKIPPED), content, old=old)

    def _list(self, place: Place, name: bytes, reason: str, message: str) -> None:
        above = place.path()
        path = above + name if above.endswith(b"/") else above + b"/" + name
        self._tally.list_row(Row(path, reason, message))

    def _with_failures(self, place: Place, entry: EntryDraft, found: Attributes) -> EntryDraft:
        for reason, message in found.failures:
            self._list(place, entry.stat.name, reason, message)
        if found.failures:
            # Looked at again by the next backup, whatever its times say.
            entry.stat = _flagged(entry.stat, _UNSETTLED)
        return entry

    # --- files ---
    def _file(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        if stat.inode in self._linked_inodes:
            linked = self._other_name(place, stat, old)
            if linked is not None:
                return linked
        if stat.size <= self._small_max and stat is not self._not_plain:
            found = self._read_plain(place, (stat,), stat.size, old)
            if found:
                return found[0]
        last: _Result | None = None
        for _ in range(_ATTEMPTS):
            try:
                last = self._read_once(place, stat, old)
            except Unreadable as why:
                if why.reason not in (VANISHED, CHANGED, REPLACED):
                    return self.skipped(place, stat, why, old)
                try:
                    stat = place.look(stat.name)
                except Unreadable as gone:
                    if gone.reason == VANISHED:
                        return None
                    return self.skipped(place, stat, gone, old)
                if stat.type != EntryType.FILE:
                    return self._other_kind(place, stat, old)
                continue
            if last.is_whole:
                return self._taken(place, last, old)
        changing = Unreadable(CHANGED, "changed while it was read, three times")
        if last is None:
            return self.skipped(place, stat, changing, old)
        self._list(place, stat.name, changing.reason, changing.message)
        last = last._replace(entry=_flagged(last.entry, _UNSETTLED))
        return self._taken(place, last, old)

    def _other_kind(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry of what has taken a file's name."""
        found = EntryDraft(stat, Content(), old=old)
        if stat.type != EntryType.DIRECTORY:
            described = self.described(place, stat, old)
            if described is None:
                return None
            found = described
        if found.stat.type == EntryType.FILE and not found.is_skipped:
            changing = Unreadable(CHANGED, "replaced whenever it was looked at")
            return self.skipped(place, found.stat, changing, old)
        return self._no_directory(place, found, old)

    def _no_directory(
        self, place: Place, found: EntryDraft | None, old: OldEntry | None
    ) -> EntryDraft | None:
        """Return `found`, listed where it is a directory now: the walk has passed its name."""
        if found is None or not found.is_directory or found.is_skipped:
            return found
        why = Unreadable(REPLACED, "became a directory while the backup was here")
        return self.skipped(place, found.stat, why, old)

    def _read_once(self, place: Place, stat: Stat, old: OldEntry | None) -> _Result:
        reader = place.open(stat)
        try:
            attributes = reader.attributes()
            content = self._files.read(reader, old)
            is_whole = reader.is_unchanged()
            entry = reader.entry
            if content.size != entry.size:
                is_whole = False
                entry = msgspec.structs.replace(entry, size=content.size)
            doubt = place.doubt(reader) if is_whole else None
        finally:
            reader.close()
        return _Result(entry, attributes, content, is_whole, doubt)

    def _taken(self, place: Place, result: _Result, old: OldEntry | None) -> EntryDraft:
        stat, attributes, (parts, content_id, _, is_parents), is_whole, doubt = result
        content = attributes.content
        if attributes.links > 1:
            group = self._grouped(place, attributes)
            content = msgspec.structs.replace(content, link_group=group, content_id=content_id)
            if is_whole and doubt is None:
                self._remember(group, result)
        elif content_id:
            content = msgspec.structs.replace(content, content_id=content_id)
        kept: Parts | None = parts
        if is_parents and old is not None and old[1].spill:
            # The list of its extents stands in blocks of the parent's tree: they stay.
            extents, spill = old[1].extents, old[1].spill
            content = msgspec.structs.replace(content, extents=extents, spill=spill)
            kept = None
        entry = EntryDraft(stat, content, kept, None, old, doubt)
        if attributes.failures:
            self._with_failures(place, entry, attributes)
        if doubt is not None:
            self.doubts[doubt] = entry
            if self._source.is_full():
                self._make_room()
        return entry

    # --- hard links ---
    def _remember(self, group: bytes, result: _Result) -> None:
        found = result.attributes
        if len(self._links) < _LINKS_MAX:
            signature = (found.size, found.mtime_ns, found.ctime_ns)
            self._links[group] = _Linked(found.device, signature, result.content, found.links - 1)
            self._linked_inodes.add(found.inode)

    def _other_name(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry of a further name of a file that was read; None when it is not one."""
        group = place.link_group(stat.inode)
        linked = self._links.get(group)
        if linked is None or linked.device != place.device():
            return None
        try:
            found = place.attributes(stat.name)
        except Unreadable:
            return None
        signature = (found.size, found.mtime_ns, found.ctime_ns)
        same = (linked.device, linked.signature) == (found.device, signature)
        if not same or found.inode != stat.inode:
            return None
        linked.names_left -= 1
        if linked.names_left <= 0:
            del self._links[group]
            self._linked_inodes.discard(stat.inode)
        content = msgspec.structs.replace(
            found.content, link_group=group, content_id=linked.content.content_id
        )
        entry = EntryDraft(stat, content, parts=linked.content.parts, old=old)
        return self._with_failures(place, entry, found)

    # --- second look ---
    def settle(self) -> None:
        """Look again at every file in doubt, and read again what has to be."""
        for _ in range(_ATTEMPTS):
            doubts, self.doubts = self.doubts, {}
            if not doubts:
                return
            again = self._source.settle()
            for key, entry in doubts.items():
                entry.doubt = None
                if key in again:
                    self._read_again(key, entry)
        self._source.settle()
        for key, entry in self.doubts.items():
            entry.doubt = None
            entry.stat = _flagged(entry.stat, _UNSETTLED)
            path = b"/".join((key.base.rstrip(b"/"), *key.parents, key.name))
            self._tally.list_row(Row(path, CHANGED, "changed whenever it was looked at"))
        self.doubts = {}

    def _read_again(self, key: DoubtKey, entry: EntryDraft) -> None:
        try:
            place = self._source.reopen(key)
        except Unreadable:
            # The way to it is gone, and so is it.
            entry.is_gone = True
            return
        try:
            fresh = self._again(place, key.name, entry)
        finally:
            self._source.close_top(place)
        if fresh is None:
            entry.is_gone = True
            return
        entry.stat, entry.content, entry.parts = fresh.stat, fresh.content, fresh.parts
        entry.doubt = fresh.doubt
        if fresh.doubt is not None:
            self.doubts[fresh.doubt] = entry

    def _again(self, place: Place, name: bytes, entry: EntryDraft) -> EntryDraft | None:
        try:
            stat = place.look(name)
        except Unreadable as why:
            if why.reason == VANISHED:
                return None
            return self.skipped(place, entry.stat, why, entry.old)
        if stat.type == EntryType.DIRECTORY:
            return self._other_kind(place, stat, entry.old)
        return self._entry(place, stat, entry.old)


def _is_of(found: Attributes, stat: Stat) -> bool:
    """Tell whether attributes are those of what was scanned."""
    return (found.type, found.inode) == (stat.type, stat.inode)


def _flagged(stat: Stat, flag: int) -> Stat:
    return msgspec.structs.replace(stat, flags=stat.flags | flag)

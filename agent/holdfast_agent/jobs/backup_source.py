"""The volume as a backup reads it: rules, own files and roots applied, findings turned into errors.

The engine knows no paths of the machine and the walk of `sources` no snapshots: this joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import DirEntry
from typing import Final, NamedTuple, TypeVar

import msgspec

from holdfast_agent.crypto.keys import DomainKeys, link_group
from holdfast_agent.engine.source import (
    AtRest,
    Attributes,
    DoubtKey,
    Listing,
    Place,
    Reader,
    Row,
    Unreadable,
)
from holdfast_agent.jobs.backup_hints import AuditedListing, Hints, QuietListing
from holdfast_agent.sorting import OpenSpool
from holdfast_agent.sources.attributes import Attributes as VolumeAttributes
from holdfast_agent.sources.attributes import OwnerNames, attributes_at, attributes_of
from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.descent import Descent
from holdfast_agent.sources.filesystems import FilesystemKind, Filesystems
from holdfast_agent.sources.findings import Finding, joined
from holdfast_agent.sources.names import Names
from holdfast_agent.sources.reading import FileReader, ReadFailed, open_file, read_plain
from holdfast_agent.sources.roots import OwnFiles, Roots, is_within, own_file_note
from holdfast_agent.sources.rules import Rules
from holdfast_agent.sources.scan import look, pseudo_note, stat_of, stats_of
from holdfast_agent.sources.secondlook import YOUNG_NS, SecondLook
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_agent.tree.known import KnownPage

_NOTES_MAX: Final = 1000
_FILE: Final = int(EntryType.FILE)
_Found = TypeVar("_Found")


def _readable(found: _Found | Finding) -> _Found:
    """Return what was found.

    Raises:
        Unreadable: it is a finding.
    """
    if isinstance(found, Finding):
        raise Unreadable(found.reason.value, found.message)
    return found


def _row(finding: Finding) -> Row:
    return Row(finding.path, finding.reason.value, finding.message)


class Top(NamedTuple):
    """One path of the backup, and where it is on disk."""

    path: bytes
    above: bytes
    """The directory above it (`/` for `/`), as snapshots show it."""
    name: bytes
    real_above: bytes
    real_name: bytes
    rules: Rules

    @classmethod
    def of(cls, path: bytes, real: bytes, rules: Rules) -> Top:
        """Return the top for `path`, which is `real` on disk."""
        above, _, name = path.rpartition(b"/")
        real_above, _, real_name = real.rpartition(b"/")
        return cls(path, above or b"/", name, real_above or b"/", real_name, rules)


class VolumeReader:
    """A file that is open; fits engine.source.Reader."""

    __slots__ = ("_owners", "entry", "is_local", "reader", "started_ns")

    def __init__(
        self,
        reader: FileReader,
        owners: OwnerNames,
        started_ns: int,
        *,
        shown: bytes,
        is_local: bool,
    ) -> None:
        self.reader = reader
        self.started_ns = started_ns
        self.is_local = is_local
        self.entry = reader.entry
        """The stat part as it was when opened."""
        if shown != reader.entry.name:
            self.entry = msgspec.structs.replace(reader.entry, name=shown)
        self._owners = owners

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; return how much came."""
        try:
            return self.reader.read_into(buffer, offset)
        except ReadFailed as exc:
            raise Unreadable(exc.finding.reason.value, exc.finding.message) from exc

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not a hole."""
        return self.reader.data_runs()

    def is_unchanged(self) -> bool:
        """Tell whether the file still looks as it did when it was opened."""
        return self.reader.is_unchanged()

    def attributes(self) -> Attributes:
        """Return owners, attributes and link count."""
        reader = self.reader
        return _attributes(attributes_of(reader.descriptor, reader.info, self._owners), _FILE)

    def close(self) -> None:
        """Close the file."""
        self.reader.close()


def _attributes(found: VolumeAttributes, kind: int) -> Attributes:
    info, content, findings = found
    failures: tuple[tuple[str, str], ...] = ()
    if findings:
        failures = tuple((finding.reason.value, finding.message) for finding in findings)
    # By position: of every file that is read, and names would double its cost.
    return Attributes(
        content,
        kind,
        info.st_dev,
        info.st_ino,
        info.st_nlink,
        info.st_size,
        info.st_mtime_ns,
        info.st_ctime_ns,
        failures,
    )


class VolumePlace:
    """Where the walk stands; fits engine.source.Place."""

    def __init__(self, volume: VolumeSource, descent: Descent, top: Top) -> None:
        self.descent = descent
        self._volume = volume
        self._top = top
        self._names: list[bytes] = []

    def enter(self, name: bytes) -> bool:
        """Go down; False where the kernel shows its own state."""
        finding = self.descent.enter(self._real(name))
        if finding is not None:
            raise Unreadable(finding.reason.value, finding.message)
        self._names.append(name)
        if self.descent.current.kind is FilesystemKind.PSEUDO:
            self._volume.note(pseudo_note(self.path()))
            self.leave()
            return False
        return True

    def leave(self) -> Row | None:
        """Go back up."""
        self._names.pop()
        finding = self.descent.leave()
        return None if finding is None else _row(finding._replace(path=self.path()))

    def path(self) -> bytes:
        """Return the absolute path of the current directory, as snapshots show it."""
        return joined(self._top.above, b"/".join(self._names))

    def device(self) -> int:
        """Return the device number of the current directory."""
        return self.descent.current.device

    def listing(self, parent: Iterator[KnownPage]) -> Listing:
        """Return the entries that are to be backed up, those of a quiet directory unread."""
        volume, here = self._volume, self.path()
        hints, directory = volume.hints, self.descent.current
        if hints is None or not volume.filesystems.tells_changes(directory.device):
            return VolumeListing(volume, self.descent, self._top, here)
        # Watched before a name is read: what changes from now on is told.
        watch, is_quiet = hints.watching.look(directory, here)
        if not is_quiet:
            return VolumeListing(volume, self.descent, self._top, here, watch)
        quiet = QuietListing(directory, here, parent, hints, watch)
        if hints.watching.is_audit:
            read = VolumeListing(volume, self.descent, self._top, here, watch)
            return AuditedListing(read, quiet, partial(hints.watching.suspect, watch))
        hints.watching.unread += 1
        return quiet

    def look(self, name: bytes) -> Stat:
        """Return the stat part of one name as it is now."""
        found = _readable(look(self.descent.current, self._real(name)))
        if not self._names and self._volume.own.leaves_out(self.descent, found.name, found.inode):
            note = own_file_note(joined(self.path(), name))
            raise Unreadable(note.reason.value, note.message)
        return msgspec.structs.replace(found, name=name)

    def attributes(self, name: bytes) -> Attributes:
        """Return the attributes of any kind of entry without opening it."""
        here = self.descent.current
        found = _readable(attributes_at(here, self._real(name), self._volume.owners))
        return _attributes(found, stat_of(here, name, found.info).type)

    def read_plain(self, entries: Sequence[Stat], buffer: memoryview) -> list[Content]:
        """Read ordinary files in one go, up to the first that is not one."""
        if not self._names:
            # A path of the backup itself may have another name on disk.
            return []
        volume = self._volume
        # The young need a second look.
        young_ns = volume.clock.stamp_ns() - YOUNG_NS
        return read_plain(self.descent.current, entries, buffer, volume.owners, young_ns=young_ns)

    def open(self, entry: Stat) -> VolumeReader:
        """Open a regular file."""
        started_ns = self._volume.clock.stamp_ns()
        shown, real = entry.name, self._real(entry.name)
        if real != shown:
            entry = msgspec.structs.replace(entry, name=real)
        reader = _readable(open_file(self.descent.current, entry))
        is_local = self.descent.current.kind is FilesystemKind.LOCAL
        return VolumeReader(reader, self._volume.owners, started_ns, shown=shown, is_local=is_local)

    def link_group(self, inode: int) -> bytes:
        """Return the hard-link group of an inode here."""
        return link_group(self._volume.keys, self.descent.mount_path(), inode)

    def doubt(self, reader: Reader) -> DoubtKey | None:
        """Remember a young file for the second look."""
        assert isinstance(reader, VolumeReader)
        # Asked first: nearly every file is older, and its place need not be named.
        if reader.reader.info.st_ctime_ns < self._volume.clock.stamp_ns() - YOUNG_NS:
            return None
        key = DoubtKey(self._top.above, tuple(self._names), reader.entry.name)
        parents = tuple(self._names)
        if parents:
            parents = (self._top.real_name, *parents[1:])
        return key if self._volume.doubt(key, self._top, parents, reader) else None

    def _real(self, name: bytes) -> bytes:
        """Return a name as it is on disk: a root may be configured by a symlink."""
        return name if self._names or name != self._top.name else self._top.real_name


class VolumeListing:
    """The entries of one directory; fits engine.source.Listing."""

    at_rest: AtRest | None = None

    def __init__(
        self, volume: VolumeSource, descent: Descent, top: Top, here: bytes, watch: int = -1
    ) -> None:
        """Read the names; what is not ordinary about them has `watch` forgotten."""
        self._watch = watch
        self._volume = volume
        self._descent = descent
        self._here = here
        self._rules = top.rules
        self._within = here[len(top.path) :].lstrip(b"/")
        self._findings: list[Finding] = []
        leaves_out = self._is_excluded if top.rules else None
        self._names = Names(descent.current, volume.open_spool, leaves_out)
        self._findings += self._names.findings
        if self._findings:
            self._distrust()
        self.has = self._names.has
        self.close = self._names.close

    def take(self, last: bytes | None, entries_max: int) -> list[Stat]:
        """Return the next entries as they are now."""
        entries, findings = stats_of(self._descent.current, self._names.take(last, entries_max))
        self._findings += findings
        own = self._volume.own.among(self._descent, entries)
        if own:
            for name in own:
                self._volume.note(own_file_note(joined(self._here, name)))
            entries = [entry for entry in entries if entry.name not in own]
        if own or self._findings:
            self._distrust()
        return entries

    def rows(self) -> list[Row]:
        """Return, once each, what could not be looked at so far."""
        found, self._findings = self._findings, []
        return [_row(finding.within(self._here)) for finding in found]

    def note_kept(self) -> None:
        """Do nothing: only of what is not read it matters."""

    def _distrust(self) -> None:
        if self._volume.hints is not None:
            self._volume.hints.watching.distrust(self._watch)

    def _is_excluded(self, name: bytes, item: DirEntry[str]) -> bool:
        try:
            is_directory = item.is_dir(follow_symlinks=False)
        except OSError:
            is_directory = False
        return self._rules.match(joined(self._within, name), is_directory)


class VolumeSource:
    """The paths of one backup; fits engine.source.Source."""

    def __init__(
        self,
        paths: Sequence[bytes],
        excludes: Sequence[str],
        *,
        keys: DomainKeys,
        roots: Roots,
        own: OwnFiles,
        clock: FileClock,
        sleep: Callable[[float], None],
        open_spool: OpenSpool,
    ) -> None:
        """Take absolute paths.

        Raises:
            InvalidInput: an exclude is no gitignore pattern, a path not plain.
            OutsideRoots: a path is outside the roots.
        """
        self.keys = keys
        self.own = own
        self.clock = clock
        self.open_spool = open_spool
        self.owners = OwnerNames()
        self.hints: Hints | None = None
        """Set where directories may be left unread."""
        self.notes: dict[bytes, Finding] = {}
        """What was left out on purpose, by path: no skips."""
        self._sleep = sleep
        self.filesystems = Filesystems()
        self._second = SecondLook(clock, self.filesystems)
        self._doubts: dict[tuple[bytes, tuple[bytes, ...], bytes], DoubtKey] = {}
        self._doubt_tops: dict[DoubtKey, Top] = {}
        checked = sorted({roots.check(path) for path in paths})
        self._tops = {
            path: Top.of(path, roots.real(path), Rules(excludes, path))
            for path in outermost(checked)
        }

    def tops(self) -> Sequence[bytes]:
        """Return the backup's paths, sorted, none below another."""
        return tuple(self._tops)

    def real_paths(self) -> tuple[bytes, ...]:
        """Return what is opened for each of them."""
        return tuple(joined(top.real_above, top.real_name) for top in self._tops.values())

    def open_top(self, path: bytes) -> VolumePlace:
        """Return the place from which `path` is read."""
        return self._place(self._tops[path])

    def close_top(self, place: Place) -> None:
        """Give back what `open_top` opened."""
        assert isinstance(place, VolumePlace)
        place.descent.close()

    def is_full(self) -> bool:
        """Tell whether no further file can be remembered."""
        return self._second.is_full

    def settle(self) -> set[DoubtKey]:
        """Look again at every remembered file; return those that have to be read again."""
        found = self._second.settle(self._sleep)
        again = {self._doubts[doubt.base, doubt.parents, doubt.name] for doubt in found}
        self._doubts.clear()
        self._doubt_tops = {key: top for key, top in self._doubt_tops.items() if key in again}
        return again

    def reopen(self, key: DoubtKey) -> VolumePlace:
        """Return a place that stands in the directory of a file in doubt."""
        place = self._place(self._doubt_tops[key])
        try:
            for name in key.parents:
                if not place.enter(name):
                    raise Unreadable("replaced", "shows the state of the kernel now")
        except Unreadable:
            place.descent.close()
            raise
        return place

    def note(self, finding: Finding) -> None:
        """Remember that something was left out on purpose."""
        if len(self.notes) < _NOTES_MAX:
            self.notes[finding.path] = finding

    def doubt(
        self, key: DoubtKey, top: Top, parents: tuple[bytes, ...], reader: VolumeReader
    ) -> bool:
        """Remember a file for the second look if it is young; tell whether."""
        base = top.real_above
        if not self._second.note(
            base, parents, reader.reader, reader.started_ns, is_local=reader.is_local
        ):
            return False
        self._doubts[base, parents, reader.reader.entry.name] = key
        self._doubt_tops[key] = top
        return True

    def _place(self, top: Top) -> VolumePlace:
        descent = Descent.open(
            top.real_above,
            clock=self.clock,
            filesystems=self.filesystems,
            listing=top.path == b"/",
        )
        return VolumePlace(self, _readable(descent), top)


def outermost(paths: Sequence[bytes]) -> list[bytes]:
    """Return sorted paths without those that lie below another of them."""
    kept: list[bytes] = []
    for path in paths:
        if not any(is_within(path, above) for above in kept):
            kept.append(path)
    return kept

"""The agent's view of a volume in memory: what comes in place of `VolumeSource`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from holdfast_agent.crypto.keys import DomainKeys, link_group
from holdfast_agent.engine.source import AtRest, Attributes, DoubtKey, Listing, Row, Unreadable
from holdfast_agent.jobs.backup_hints import AuditedListing, Hints, QuietListing
from holdfast_agent.sources import scan
from holdfast_agent.sources.filesystems import FilesystemKind
from holdfast_agent.sources.findings import Finding
from holdfast_agent.sources.roots import Roots
from holdfast_agent.sources.secondlook import WAIT_SECONDS, is_young
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_agent.tree.known import KnownPage
from tests.simulation.loop import pause
from tests.simulation.volume import TOP, SimFile, Volume


class SimReader:
    """A file that is open; fits engine.source.Reader."""

    def __init__(
        self, node: SimFile, entry: Stat, started_ns: int, after: Callable[[], None]
    ) -> None:
        self._node = node
        self._after = after
        self._info = info_of(node)
        self.entry = entry
        self.started_ns = started_ns

    def read_into(self, buffer: memoryview, offset: int) -> int:
        pause(0.0005)
        piece = (self._node.content or b"")[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._after()
        return len(piece)

    def data_runs(self) -> Iterator[tuple[int, int]]:
        if self.entry.size:
            yield 0, self.entry.size

    def is_unchanged(self) -> bool:
        return info_of(self._node) == self._info

    @property
    def info(self) -> tuple[int, int, int, int]:
        return self._info

    def attributes(self) -> Attributes:
        return attributes_of(self._node)

    def close(self) -> None:
        pause(0.0002)


def info_of(node: SimFile) -> tuple[int, int, int, int]:
    """Return what a status shows of a change."""
    return len(node.content or b""), node.mtime_ns, node.ctime_ns, node.inode


def attributes_of(node: SimFile) -> Attributes:
    kind = EntryType.DIRECTORY if node.content is None else EntryType.FILE
    size, mtime_ns, ctime_ns, inode = info_of(node)
    owner = Content(uid=1, gid=1)
    return Attributes(owner, int(kind), 1, inode, 1, size, mtime_ns, ctime_ns, ())


class SimDirectory(NamedTuple):
    """A directory that is open."""

    kind: FilesystemKind
    opened_ns: int
    descriptor: int
    look: Callable[[bytes], Stat]


def stats_of(directory: SimDirectory, names: Iterable[bytes]) -> scan.Listing:
    """Return what these names are now, as `scan.stats_of` does."""
    entries = []
    for name in names:
        with suppress(Unreadable):
            entries.append(directory.look(name))
    pause(0.0002)
    return scan.Listing(entries, [])


class SimListing:
    """The names of one directory; fits engine.source.Listing."""

    at_rest: AtRest | None = None

    def __init__(self, place: SimPlace, names: list[bytes]) -> None:
        self._place = place
        self._names = names

    def has(self, last: bytes | None = None) -> bool:
        return bool(self._names) and (last is None or self._names[0] <= last)

    def take(self, last: bytes | None, entries_max: int) -> list[Stat]:
        found = []
        for _ in range(entries_max):
            if not self.has(last):
                break
            with suppress(Unreadable):  # gone since the names were read
                found.append(self._place.look(self._names.pop(0)))
        pause(0.0002)
        return found

    def rows(self) -> list[Row]:
        return []

    def note_kept(self) -> None:
        pass

    def close(self) -> None:
        self._names = []


class SimPlace:
    """Where the walk stands; fits engine.source.Place."""

    def __init__(self, source: SimSource) -> None:
        self._source = source
        self._path = b""
        self._opened: list[Any] = [self._looked(0)]

    def _looked(self, inode: int) -> SimDirectory:
        opened_ns = self._source.clock.stamp_ns()
        return SimDirectory(FilesystemKind.LOCAL, opened_ns, inode, self.look)

    def _node(self, name: bytes) -> SimFile:
        node = self._source.volume.nodes.get(self._path + b"/" + name)
        if node is None:
            raise Unreadable("vanished", "it is gone")
        return node

    def _stat(self, name: bytes, node: SimFile) -> Stat:
        size, mtime_ns, ctime_ns, inode = info_of(node)
        if node.content is None:
            return Stat(name, int(EntryType.DIRECTORY), 0o755, 0, mtime_ns, ctime_ns, inode, 0)
        flags = scan._flags(self._opened[-1], mtime_ns, ctime_ns)
        return Stat(name, int(EntryType.FILE), 0o644, size, mtime_ns, ctime_ns, inode, flags)

    def enter(self, name: bytes) -> bool:
        node = self._node(name)
        if node.content is not None:
            raise Unreadable("replaced", "no directory")
        self._opened.append(self._looked(node.inode))
        pause(0.0002)
        self._path += b"/" + name
        return True

    def leave(self) -> Row | None:
        self._opened.pop()
        self._path = self._path.rpartition(b"/")[0]
        return None

    def path(self) -> bytes:
        return self._path or b"/"

    def device(self) -> int:
        return 1

    def listing(self, parent: Iterator[KnownPage]) -> Listing:
        hints, directory = self._source.hints, self._opened[-1]
        if hints is None:
            return self._read()
        watch, is_quiet = hints.watching.look(directory, self._path)
        if not is_quiet:
            return self._read()
        quiet = QuietListing(directory, self._path, parent, hints, watch)
        if hints.watching.is_audit:
            return AuditedListing(self._read(), quiet, partial(hints.watching.suspect, watch))
        hints.watching.unread += 1
        return quiet

    def _read(self) -> SimListing:
        here = self._path + b"/"
        names = [
            path[len(here) :]
            for path in self._source.volume.nodes
            if path.startswith(here) and b"/" not in path[len(here) :]
        ]
        pause(0.001)
        return SimListing(self, sorted(names))

    def read_plain(self, entries: Sequence[Stat], buffer: memoryview) -> list[Content]:
        return []  # every file here is one that may be raced

    def look(self, name: bytes) -> Stat:
        return self._stat(name, self._node(name))

    def attributes(self, name: bytes) -> Attributes:
        return attributes_of(self._node(name))

    def open(self, entry: Stat) -> SimReader:
        started_ns = self._source.clock.stamp_ns()
        node = self._node(entry.name)
        if node.content is None:
            raise Unreadable("replaced", "a directory now")
        if self._path + b"/" + entry.name in self._source.volume.locked:
            raise Unreadable("unreadable", "permission denied")
        if node.inode != entry.inode:
            raise Unreadable("changed", "another file has its name")
        path = self._path + b"/" + entry.name
        after = self._source.volume.race(path)
        return SimReader(node, self._stat(entry.name, node), started_ns, after)

    def link_group(self, inode: int) -> bytes:
        return link_group(self._source.keys, b"/", inode)

    def doubt(self, reader: Any) -> DoubtKey | None:
        names = tuple(self._path.strip(b"/").split(b"/"))
        key = DoubtKey(b"/", names, reader.entry.name)
        return key if self._source.doubt(key, reader) else None

    def at(self, names: Sequence[bytes]) -> SimPlace:
        for name in names:
            self.enter(name)
        return self


class SimSource:
    """What a backup reads; made like `VolumeSource`, in place of which it comes."""

    def __init__(
        self,
        paths: Sequence[bytes],
        excludes: Sequence[str],
        *,
        keys: DomainKeys,
        roots: Roots,
        own: object,
        clock: Any,
        sleep: Callable[[float], None],
        open_spool: object,
    ) -> None:
        assert list(paths) == [TOP] and not excludes
        assert clock.volume is not None
        self.keys = keys
        self.clock = clock
        self.volume: Volume = clock.volume
        self.hints: Hints | None = None
        self.notes: dict[bytes, Finding] = {}
        self._sleep = sleep
        self._doubts: dict[DoubtKey, tuple[tuple[int, int, int, int], float, bool]] = {}

    def tops(self) -> Sequence[bytes]:
        return (TOP,)

    def real_paths(self) -> tuple[bytes, ...]:
        return (TOP,)

    def open_top(self, path: bytes) -> SimPlace:
        return SimPlace(self)

    def close_top(self, place: object) -> None:
        pass

    def is_full(self) -> bool:
        return False

    def doubt(self, key: DoubtKey, reader: SimReader) -> bool:
        ctime_ns = reader.info[2]
        if not is_young(ctime_ns, self.clock.stamp_ns(), is_local=True):
            return False
        due = self.clock.monotonic() + WAIT_SECONDS
        self._doubts[key] = (reader.info, due, ctime_ns < reader.started_ns)
        return True

    def settle(self) -> set[DoubtKey]:
        doubts, self._doubts = self._doubts, {}
        again = set()
        for key, (info, due, is_proven) in doubts.items():
            early = due - self.clock.monotonic()
            if early > 0:
                self._sleep(early)
            path = b"/" + b"/".join((*key.parents, key.name))
            node = self.volume.nodes.get(path)
            if not is_proven or node is None or info_of(node) != info:
                again.add(key)
        return again

    def reopen(self, key: DoubtKey) -> SimPlace:
        return SimPlace(self).at(key.parents)

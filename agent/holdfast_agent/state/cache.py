"""The tree cache: the parent's pages on disk, and what a running backup puts in their place.

Two SQLite files. `cache.sqlite` describes exactly one committed snapshot, named in its header.
`cache.next` is the overlay: rows that a running backup adds or drops. Once that backup's snapshot
stands, one transaction brings the overlay into the cache and the new snapshot's id into the
header. Killed before: the overlay is thrown away with the next backup, or, where the journal shows
that the commit happened, applied then.

A cache that cannot be written (full or read-only state directory) only makes the next backup
slower: nothing here raises for that; `is_writable` tells.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from holdfast_agent.sorting import RecordSorter
from holdfast_agent.state.cache_tables import (
    CONTENT_RECORD_BYTES,
    HEADER_KEY,
    OVERLAY_TABLES,
    PAGE_COLUMNS,
    TABLES,
    TABLES_VERSION,
    merge_contents,
)
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.tree.known import KnownPage, KnownTreeLost, NewPage

_CACHE: Final = "cache.sqlite"
_OVERLAY: Final = "cache.next"
_KEY_BYTES: Final = 12
"""A content record is the first 12 bytes of a content id and the page's row, u32: a hint."""
_REFS_BATCH: Final = 2048
"""Ids of one row of refs: 64 KiB."""
_SEGMENT: Final = 256
"""Records of one row of the content index: 4 KiB, one SQLite page."""
_EXTRA_BYTES: Final = 1 << 16


class CacheHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the cache describes; it is used only for a job whose parent is `snapshot`."""

    domain: bytes
    lineage: bytes
    dataset: bytes
    snapshot: bytes
    """Id of the snapshot; empty while none is described."""
    agent_time_ns: int
    """The snapshot's agent time: since then nothing was read again by turn."""
    refs_set: bytes
    refs_count: int
    refs_depth: int
    """Differences below which the snapshot's refs object lies; -1: unknown, no base for another."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(CacheHeader)


class TreeCache:
    """The cache of one state directory, opened for one job; a KnownTree."""

    def __init__(self, state: StateDirectory) -> None:
        """Open the cache; one that is torn is thrown away.

        Raises:
            KnownTreeLost: the state directory cannot hold one.
        """
        self._state = state
        self._contents: RecordSorter | None = None
        self._runs: list[int] | None = None
        """Runs of the content index; asked once, they stay while an overlay is built."""
        self.is_writable = True
        try:
            self._open()
        except sqlite3.OperationalError as exc:
            raise KnownTreeLost("no cache can be kept in the state directory") from exc
        except sqlite3.Error:
            self._discard()
            self._open_or_lose()

    # --- what it describes ---
    def header(self) -> CacheHeader | None:
        """Return what the cache describes, None when nothing."""
        try:
            row = self._db.execute("SELECT value FROM main.meta WHERE key = ?", HEADER_KEY)
            found = row.fetchone()
            header = None if found is None else _DECODER.decode(found[0])
        except (sqlite3.Error, msgspec.MsgspecError, RecursionError) as exc:
            raise KnownTreeLost("the cache's header cannot be read") from exc
        return header if header is not None and header.snapshot else None

    def pending(self) -> CacheHeader | None:
        """Return what the cache will describe once a finished overlay is applied."""
        with suppress(sqlite3.Error, msgspec.MsgspecError, RecursionError):
            row = self._db.execute("SELECT value FROM over.meta WHERE key = ?", HEADER_KEY)
            found = row.fetchone()
            return None if found is None else _DECODER.decode(found[0])
        return None

    # --- KnownTree: reading the parent ---
    def pages(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield the parent's pages of a directory, in order."""
        yield from self._pages("dir = ? ORDER BY first", directory)

    def page(self, row: int) -> KnownPage | None:
        """Return a page of the parent by its number."""
        return next(self._pages("id = ?", row), None)

    def below(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield every page of the directory and of all directories below it."""
        if directory == b"/":
            yield from self._pages("dir >= ?", directory)
            return
        yield from self._pages("dir = ?", directory)
        yield from self._pages("dir > ? AND dir < ?", directory + b"/", directory + b"0")

    def everything(self) -> Iterator[tuple[KnownPage, bytes]]:
        """Yield every page of the parent with its directory's path."""
        for (directory,) in self._read("SELECT DISTINCT dir FROM main.pages ORDER BY dir"):
            for page in self.pages(directory):
                yield page, directory

    def block_ids(self, row: int) -> list[tuple[bytes, bytes]]:
        """Return (name, joined ids) of the page's entries that have blocks."""
        found: dict[bytes, list[bytes]] = {}
        query = "SELECT name, ids FROM main.extra WHERE page = ? ORDER BY name, part"
        for name, ids in self._read(query, row):
            found.setdefault(name, []).append(ids)
        return [(name, b"".join(parts)) for name, parts in found.items()]

    def has_contents(self) -> bool:
        """Tell whether the parent has any small file to be found by its content."""
        return bool(self._content_runs())

    def _content_runs(self) -> list[int]:
        if self._runs is None:
            found = self._read("SELECT DISTINCT run FROM main.contents")
            self._runs = [run for (run,) in found]
        return self._runs

    def rows_with_content(self, content_id: bytes) -> list[int]:
        """Return numbers of pages that may hold a file of that content: only a hint."""
        key = content_id[:_KEY_BYTES]
        rows: list[int] = []
        query = (
            "SELECT records FROM main.contents WHERE run = ? AND first <= ?"
            " ORDER BY first DESC LIMIT 1"
        )
        for run in self._content_runs():
            for (records,) in self._read(query, run, key + b"\xff" * 4):
                rows += _rows_of(records, key)
        return rows

    def half_empty(self) -> frozenset[bytes]:
        """Return the bundles and groups of which the parent uses less than half."""
        query = "SELECT id FROM main.chunks WHERE used * 2 < total"
        return frozenset(chunk for (chunk,) in self._read(query))

    def refs(self) -> Iterator[bytes]:
        """Yield the ids of the parent's refs, ascending."""
        for (ids,) in self._read("SELECT ids FROM main.refs ORDER BY number"):
            yield from (ids[at : at + 32] for at in range(0, len(ids), 32))

    # --- KnownTree: what is new ---
    def put(self, page: NewPage) -> None:
        """Note a new page."""
        row = self._next_row if page.takes_row is None else page.takes_row
        flags = (1 if page.extra else 0) | (2 if page.has_links else 0)
        place = (page.directory, page.first, page.last, page.chunk, page.offset)
        values = (row, *place, page.data, flags, blake3(page.data).digest(), page.stale)
        if not self._write("INSERT INTO over.pages VALUES (?,?,?,?,?,?,?,?,?,?)", values):
            return
        self._next_row += page.takes_row is None
        for name, ids in page.extra:
            for part, start in enumerate(range(0, len(ids), _EXTRA_BYTES)):
                values_of_part = (row, name, part, ids[start : start + _EXTRA_BYTES])
                self._write("INSERT INTO over.extra VALUES (?,?,?,?)", values_of_part)
        if self._contents is not None and page.content_ids:
            suffix = row.to_bytes(4, "big")
            self._contents.add(found[:_KEY_BYTES] + suffix for found in page.content_ids)

    def drop(self, row: int) -> None:
        """Note that the parent's page `row` is not in the new snapshot."""
        self._write("INSERT OR IGNORE INTO over.dropped VALUES (?)", (row,))

    def use(self, made: Mapping[bytes, int], used: Mapping[bytes, int]) -> None:
        """Note new bundles and groups with their length, and by how many bytes use changed."""
        query = (
            "INSERT INTO over.chunks VALUES (?,?,?)"
            " ON CONFLICT(id) DO UPDATE SET used = used + excluded.used"
        )
        for chunk, delta in used.items():
            self._write(query, (chunk, made.get(chunk, 0), delta))

    # --- life of the overlay ---
    def begin(self) -> None:
        """Begin an overlay, empty."""
        self.abandon()
        self._runs = None
        try:
            self._db.executescript(OVERLAY_TABLES)
            (highest,) = self._db.execute("SELECT MAX(id) FROM main.pages").fetchone()
            self._db.execute("BEGIN")
            self.is_writable = True
        except sqlite3.Error:
            self.is_writable = False
            highest = 0
        self._next_row = (highest or 0) + 1
        self._contents = RecordSorter(CONTENT_RECORD_BYTES, self._state.spool)

    def finish(self, header: CacheHeader, refs: Iterable[bytes]) -> None:
        """Make the overlay durable: what it makes of the cache is the snapshot of `header`."""
        assert self._contents is not None
        ids = iter(refs)
        number = 0
        while batch := b"".join(islice(ids, _REFS_BATCH)):
            self._write("INSERT INTO over.refs VALUES (?,?)", (number, batch))
            number += 1
        records = self._contents.sorted()
        while segment := list(islice(records, _SEGMENT)):
            values = (segment[0], b"".join(segment))
            self._write("INSERT INTO over.contents VALUES (?,?)", values)
        self._write("INSERT INTO over.meta VALUES (?,?)", (*HEADER_KEY, _ENCODER.encode(header)))
        try:
            # The whole file was written without syncing: one durable commit is enough.
            self._db.execute("COMMIT")
            self._sync_overlay()
        except (sqlite3.Error, OSError):
            self.is_writable = False

    def apply(self) -> None:
        """Bring the finished overlay into the cache, in one transaction; then it is gone."""
        pending = self.pending()
        if not self.is_writable or pending is None:
            self.abandon()
            return
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._apply(pending)
        except sqlite3.Error:
            self.is_writable = False
        self.abandon()

    def promote(self) -> None:
        """Make the overlay the parent although no snapshot is it yet: for another round.

        The cache describes nothing until a later overlay is finished and applied.
        """
        self._write(
            "UPDATE over.meta SET value = ? WHERE key = ?",
            (_ENCODER.encode(_nothing(self.pending())), *HEADER_KEY),
        )
        self.apply()
        self.begin()

    def abandon(self) -> None:
        """Throw the overlay away."""
        if self._contents is not None:
            self._contents.close()
            self._contents = None
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        with suppress(sqlite3.Error, OSError):
            self._db.execute("DETACH over")
            self._path(_OVERLAY).unlink(missing_ok=True)
        with suppress(sqlite3.Error):
            self._attach()

    def clear(self) -> None:
        """Forget everything: the cache describes nothing."""
        self.close()
        self._discard()
        self._open_or_lose()

    def close(self) -> None:
        """Close both files; a finished overlay stays for the next start."""
        if self._contents is not None:
            self._contents.close()
            self._contents = None
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self._db.close()

    # --- inside ---
    def _open_or_lose(self) -> None:
        try:
            self._open()
        except sqlite3.Error as exc:
            raise KnownTreeLost("no cache can be kept in the state directory") from exc

    def _path(self, name: str) -> Path:
        return self._state.path / name

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path(_CACHE), isolation_level=None)
        try:
            self._db.execute("PRAGMA cache_size = -4096")
            self._require_version()
            self._db.executescript(TABLES)
            self._attach()
        except sqlite3.Error:
            self._db.close()
            raise
        self._next_row = 1

    def _require_version(self) -> None:
        """Return if the file is new or has these tables.

        Raises:
            sqlite3.DatabaseError: it has those of another version.
        """
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            (tables,) = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if not tables:
                self._db.execute(f"PRAGMA user_version = {TABLES_VERSION}")
                return
        if version != TABLES_VERSION:
            raise sqlite3.DatabaseError(f"tables of version {version}")

    def _attach(self) -> None:
        self._db.execute("ATTACH ? AS over", (str(self._path(_OVERLAY)),))
        # The overlay is worth nothing before it is finished: no journal, one sync at the end.
        self._db.execute("PRAGMA over.journal_mode = OFF")
        self._db.execute("PRAGMA over.synchronous = OFF")

    def _discard(self) -> None:
        for name in (_CACHE, _CACHE + "-journal", _OVERLAY):
            with suppress(OSError):
                self._path(name).unlink(missing_ok=True)

    def _sync_overlay(self) -> None:
        fd = os.open(self._path(_OVERLAY), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _apply(self, pending: CacheHeader) -> None:
        run = self._db.execute
        run("DELETE FROM main.extra WHERE page IN (SELECT id FROM over.dropped)")
        run("DELETE FROM main.pages WHERE id IN (SELECT id FROM over.dropped)")
        run("INSERT INTO main.pages SELECT * FROM over.pages")
        run("INSERT INTO main.extra SELECT * FROM over.extra")
        run(
            "INSERT INTO main.chunks SELECT id, total, used FROM over.chunks WHERE total > 0 OR"
            " id IN (SELECT id FROM main.chunks)"
            " ON CONFLICT(id) DO UPDATE SET used = used + excluded.used"
        )
        run("DELETE FROM main.chunks WHERE used <= 0")
        run("DELETE FROM main.refs")
        run("INSERT INTO main.refs SELECT * FROM over.refs")
        (last,) = run("SELECT COALESCE(MAX(run), 0) FROM main.contents").fetchone()
        run("INSERT INTO main.contents SELECT ?, first, records FROM over.contents", (last + 1,))
        merge_contents(self._db, _SEGMENT, self._state.spool)
        values = (*HEADER_KEY, _ENCODER.encode(pending))
        run("INSERT OR REPLACE INTO main.meta VALUES (?,?)", values)

    def _pages(self, where: str, *values: bytes | int) -> Iterator[KnownPage]:
        query = f"SELECT {PAGE_COLUMNS} FROM main.pages WHERE {where}"  # noqa: S608
        for row, first, last, chunk, place, data, flags, digest, stale in self._read(
            query, *values
        ):
            extra, links = bool(flags & 1), bool(flags & 2)
            yield KnownPage(row, first, last, chunk, place, data, extra, links, digest, stale)

    def _read(self, query: str, *values: bytes | int) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as exc:
            raise KnownTreeLost("the cache cannot be read") from exc

    def _write(self, query: str, values: tuple[object, ...]) -> bool:
        if self.is_writable:
            try:
                self._db.execute(query, values)
            except sqlite3.Error:
                self.is_writable = False
        return self.is_writable


def _nothing(header: CacheHeader | None) -> CacheHeader:
    if header is None:
        return CacheHeader(
            domain=b"",
            lineage=b"",
            dataset=b"",
            snapshot=b"",
            agent_time_ns=0,
            refs_set=b"",
            refs_count=0,
            refs_depth=-1,
        )
    return msgspec.structs.replace(header, snapshot=b"")


def _rows_of(records: bytes, key: bytes) -> list[int]:
    """Return the page rows of the records that begin with `key`."""
    width = CONTENT_RECORD_BYTES
    rows = []
    at = records.find(key)
    while at >= 0:
        if at % width == 0:
            rows.append(int.from_bytes(records[at + _KEY_BYTES : at + width], "big"))
        at = records.find(key, at + 1)
    return rows

"""Answers about the live pod and about snapshots: NDJSON rows, or a file's bytes.

The pod decides what may be shown (HOLDFAST_BROWSE). Errors before the first row are raised by the
call itself; later ones by the iterator.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing

from holdfast_agent.crypto.keys import DomainKeys, content_id
from holdfast_agent.crypto.sealing import Opener
from holdfast_agent.jobs.differences import Difference, Side, differences
from holdfast_agent.jobs.rows import END, entry_lines, entry_row, finding_row, line, live_row
from holdfast_agent.ports import Cancel, ChunkSource
from holdfast_agent.restore.tally import TYPE_NAMES
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Found, Snapshot, joined
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.live import LiveView
from holdfast_agent.sources.roots import Roots, normal_path
from holdfast_agent.tree.entry import HOLE_CHUNK, EntryType, Extent
from holdfast_contract.errors import Damaged, InvalidInput, NotAtHand, NotFound
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.report import Report, decode_report
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import PAGE_ROWS_MAX
from holdfast_contract.protocol.control import Browse, Query, RestoreItem

_CHUNKS_AT_ONCE = 4
_ZEROS = bytes(64 << 10)


def answer_query(
    query: Query,
    *,
    keys: DomainKeys | None,
    source: ChunkSource | None,
    roots: Roots | None,
    browse: Browse,
    cancel: Cancel,
) -> Iterator[bytes]:
    """Return the answer: lines of JSON ending with `{"type": "end"}`; for `dump` the file's bytes.

    `keys` and `source` are needed for snapshots, `roots` for the live pod. Nothing is half-checked:
    a small file's bytes begin when its content id is found right, a large one's chunk by chunk.

    Raises:
        NotAtHand: the pod does not show this.
        OutsideRoots, NotFound, Refused: of the live path.
        WrongKey, NotFound, Damaged: of the snapshot or the path in it.
        InvalidInput: a wrong number of items, a pattern that is none, a dump of no regular file.
    """
    if browse is Browse.NEVER or (query.kind == "dump" and browse is not Browse.CONTENT):
        raise NotAtHand(
            "this pod does not show that",
            hint="Use the domain's key file, or set HOLDFAST_BROWSE in the pod.",
        )
    if query.kind == "browse":
        return _begun(_browse(query, roots))
    if keys is None:
        raise NotAtHand("there is no key to open snapshots with")
    if query.kind == "report" and query.blob:
        return _begun(_ended(_report_rows(iter([_opened_report(keys, query.blob)]))))
    if source is None or not query.items:
        raise InvalidInput("the query names no snapshot")
    return _begun(_about_snapshots(query, keys, source, cancel))


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Return the same pieces, the first one made already: early errors are raised here."""
    first = next(pieces, None)

    def all_pieces() -> Iterator[bytes]:
        with closing(pieces):  # type: ignore[type-var]
            if first is not None:
                yield first
            yield from pieces

    return all_pieces()


def _ended(lines: Iterator[bytes]) -> Iterator[bytes]:
    yield from lines
    yield line(END)


# --- the live pod
def _browse(query: Query, roots: Roots | None) -> Iterator[bytes]:
    if roots is None:
        raise NotAtHand("there is no live pod here")
    view = LiveView(roots, clock=SystemFileClock(), filesystems=Filesystems())
    after = b""
    while True:
        page = view.browse(query.path, after=after, rows_max=PAGE_ROWS_MAX)
        yield from (line(live_row(row)) for row in page.rows)
        if not page.more or not page.rows:
            break
        after = page.rows[-1].path.rpartition(b"/")[2]
    yield line(END)


# --- snapshots
def _about_snapshots(
    query: Query, keys: DomainKeys, source: ChunkSource, cancel: Cancel
) -> Iterator[bytes]:
    reader = ChunkReader(keys, source)
    try:

        def opened(item: RestoreItem) -> Side:
            cancel.check()
            snapshot = Snapshot(item.snapshot, keys=keys, source=source, chunks=reader)
            return Side(snapshot, snapshot.find(normal_path(item.path)))

        if query.kind == "dump":
            side = opened(query.items[0])
            yield from _dump(side, keys, reader, cancel)
        else:
            yield from _ended(_rows(query, opened, cancel))
    finally:
        reader.close()


def _rows(query: Query, opened: Callable[[RestoreItem], Side], cancel: Cancel) -> Iterator[bytes]:
    if query.kind == "ls":
        return _ls(opened(query.items[0]), cancel, recursive=query.recursive)
    if query.kind == "find":
        return _find(query, opened, cancel)
    if query.kind == "report":
        return _report_rows(opened(query.items[0]).snapshot.reports())
    if len(query.items) != 2:
        raise InvalidInput("a difference is between two snapshots")
    one, two = map(opened, query.items)
    return map(_difference_line, differences(one, two, cancel))


def _ls(side: Side, cancel: Cancel, *, recursive: bool) -> Iterator[bytes]:
    snapshot, top = side
    if not top.is_directory:
        yield line(entry_row(top))
        return
    if recursive:
        for run in snapshot.listing(top):
            cancel.check()
            yield entry_lines(run)
        return
    for entry in snapshot.children(top.entry, top.path):
        cancel.check()
        yield line(entry_row(Found(joined(top.path, entry.stat.name), entry)))


def _find(query: Query, opened: Callable[[RestoreItem], Side], cancel: Cancel) -> Iterator[bytes]:
    matches = _matcher(query.pattern)
    for item in query.items:
        try:
            snapshot, top = opened(item)
        except NotFound:
            if len(query.items) == 1:
                raise
            continue
        for found in snapshot.walk(top):
            cancel.check()
            if found.path != b"/" and matches(found.path):
                row = entry_row(found)
                yield line({**row, "snapshot": snapshot.id.hex(), "client": snapshot.body.client})


def _matcher(pattern: str) -> Callable[[bytes], bool]:
    """Return whether a path fits a shell pattern: its name, or all of it where there is a slash."""
    if not pattern.strip():
        raise InvalidInput("the pattern is empty")
    expression = re.compile(fnmatch.translate(pattern))
    if "/" in pattern:
        return lambda path: expression.match(os.fsdecode(path)) is not None
    return lambda path: expression.match(os.fsdecode(path.rpartition(b"/")[2])) is not None


def _difference_line(difference: Difference) -> bytes:
    found = difference.found
    row = {"change": difference.change.value, **entry_row(found)}
    return line(row)


def _report_rows(reports: Iterator[Report]) -> Iterator[bytes]:
    for report in reports:
        for row in report.rows:
            yield line(finding_row(row.path, row.reason, row.message))
        if report.more:
            yield line(finding_row(b"", "more", f"{report.more} more are not named"))


def _opened_report(keys: DomainKeys, blob: bytes) -> Report:
    """Return a restore's sealed list: chunk id, then the sealed chunk."""
    try:
        plain = Opener(keys).open(ChunkType.REPORT, ChunkId(blob[:32]), blob[32:])
    except Damaged as exc:
        raise Damaged("the sealed list is damaged", object="sealed list", reason="open") from exc
    return decode_report(plain)


# --- a file's bytes
def _dump(side: Side, keys: DomainKeys, reader: ChunkReader, cancel: Cancel) -> Iterator[bytes]:
    snapshot, found = side
    if found.entry.stat.type != EntryType.FILE:
        kind = TYPE_NAMES[EntryType(found.entry.stat.type)]
        raise InvalidInput(f"this is a {kind}, not a regular file")
    pieces = _content(snapshot, found, reader, cancel)
    expected = found.entry.content.content_id
    if not expected:
        yield from pieces
        return
    whole = b"".join(pieces)
    if content_id(keys, whole) != expected:
        chunk = found.entry.content.extents[0].chunk.hex() if found.entry.content.extents else ""
        raise Damaged("the content is not the file's", object=chunk, chunk=chunk)
    yield whole


def _content(
    snapshot: Snapshot, found: Found, reader: ChunkReader, cancel: Cancel
) -> Iterator[bytes]:
    batch: list[Extent] = []
    for extent in snapshot.extents(found.entry):
        batch.append(extent)
        if len({one.chunk for one in batch}) >= _CHUNKS_AT_ONCE:
            yield from _pieces(batch, reader, cancel)
            batch = []
    yield from _pieces(batch, reader, cancel)


def _pieces(extents: list[Extent], reader: ChunkReader, cancel: Cancel) -> Iterator[bytes]:
    cancel.check()
    wanted = [extent.chunk for extent in extents if extent.chunk != HOLE_CHUNK]
    opened = reader.read(ChunkType.CONTENT, wanted) if wanted else {}
    for extent in extents:
        if extent.chunk == HOLE_CHUNK:
            for start in range(0, extent.length, len(_ZEROS)):
                cancel.check()
                yield _ZEROS[: extent.length - start]
            continue
        plain = opened[extent.chunk]
        if isinstance(plain, Damaged):
            raise plain
        part = bytes(memoryview(plain)[extent.offset : extent.offset + extent.length])
        if len(part) != extent.length:
            chunk = extent.chunk.hex()
            raise Damaged(f"chunk {chunk[:16]} is shorter than named", object=chunk, chunk=chunk)
        yield part

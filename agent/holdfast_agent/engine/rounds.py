"""One round: walk, make the pages, send what is missing. A commit that finds chunks missing asks
for another round, which avoids them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from holdfast_agent.engine.assembly import Assembly
from holdfast_agent.engine.content_index import BundledFiles
from holdfast_agent.engine.context import BackupContext
from holdfast_agent.engine.drafts import ChunkDraft, known_id
from holdfast_agent.engine.entries import (
    DirectoryDraft,
    EntryDraft,
    KeptRun,
    OldEntry,
    OldPage,
    PageDraft,
    entry_count,
)
from holdfast_agent.engine.files import FileContents
from holdfast_agent.engine.shipping import Piece, Shipping
from holdfast_agent.engine.source import Place, Row, Source, Unreadable
from holdfast_agent.engine.tally import Tally
from holdfast_agent.engine.turn import Turn
from holdfast_agent.engine.visit import Visits
from holdfast_agent.engine.walk import Walk
from holdfast_agent.sorting import RecordSorter
from holdfast_agent.tree.entry import Content, EntryFlag, Stat
from holdfast_agent.tree.known import KnownPage, KnownTree, NothingKnown
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.manifest import RootExtent
from holdfast_contract.format.report import ReportKind, ReportRow, encode_report
from holdfast_contract.limits import MIB, REPORT_CHUNKS_MAX

_REPORT_BYTES: int = 3 * MIB
"""A report chunk is ended here: well below 4 MiB."""


@dataclass(slots=True)
class Round:
    """What a round came to; everything it names is durable on the server."""

    tree: tuple[RootExtent, ...]
    report: tuple[bytes, ...]
    refs: RecordSorter
    tally: Tally
    tops_read: int
    unvisited: frozenset[int] | None
    """Inodes with names that this walk did not visit, although they are new or have changed; None:
    too many to tell. Such a name is outside the backup, or in a directory that was left unread."""


def run_round(
    context: BackupContext,
    source: Source,
    shipping: Shipping,
    known: KnownTree,
    *,
    avoid: frozenset[bytes],
    turn: Turn,
    rows: Sequence[Row] = (),
) -> Round:
    """Walk once and send everything that the snapshot needs and the server has not.

    `rows` are known before and come into the report as well.

    Raises:
        KnownTreeLost: the cache broke on the way; run again without it.
        Cancelled, or the first error of the shipping threads.
    """
    tally = Tally(rows=list(rows))
    bundled = BundledFiles(context.open_spool)
    files = FileContents(context, shipping, known, bundled, avoid)
    visits: Visits | None = None

    def settle() -> None:
        assert visits is not None
        visits.settle()

    assembly = Assembly(context, shipping, files=files, known=known, tally=tally, settle=settle)
    visits = Visits(source, files, tally, settle)
    walk = Walk(
        context,
        source,
        known=known,
        pages=assembly,
        entries=visits,
        tally=tally,
        turn=turn,
        avoid=avoid,
    )
    try:
        root = walk.run()
        assembly.finish()
    finally:
        files.close()
        bundled.close()
    tree = tuple(RootExtent(known_id(chunk), at, size) for chunk, at, size in root.places())
    report = ship_report(tally, shipping)
    shipping.flush()
    context.progress.phase("finalizing")
    report_ids = tuple(draft.id for draft in report)
    assembly.refs.add(report_ids)
    return Round(
        tree, report_ids, assembly.refs, tally, walk.tops_read, unvisited=visits.unvisited()
    )


def ship_report(tally: Tally, shipping: Shipping) -> list[ChunkDraft]:
    """Send the rows as report chunks; return their drafts, in order."""
    parts = _report_parts(tally.rows)
    left_out = tally.more_rows + sum(len(part) for part in parts[REPORT_CHUNKS_MAX:])
    parts = parts[:REPORT_CHUNKS_MAX]
    drafts = []
    for number, part in enumerate(parts, 1):
        more = left_out if number == len(parts) else 0
        data = encode_report(ReportKind.SKIPPED, part, more)
        draft = ChunkDraft()
        shipping.submit(Piece(ChunkType.REPORT, draft, data, lambda: None))
        drafts.append(draft)
    return drafts


def _report_parts(rows: list[Row]) -> list[list[ReportRow]]:
    parts: list[list[ReportRow]] = []
    size = _REPORT_BYTES
    for row in sorted(set(rows)):
        length = len(row.path) + len(row.reason) + len(row.message.encode()) + 16
        if size + length > _REPORT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(ReportRow(*row))
        size += length
    return parts


class _DryPages:
    """Counts what would become pages."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def keep(self, directory: DirectoryDraft, page: KnownPage) -> None:
        """Nothing would change."""

    def drop(self, old: OldPage) -> None:
        """Nothing is dropped."""

    def add(self, page: PageDraft) -> None:
        """Count the entries."""
        for item in page.entries:
            if isinstance(item, KeptRun):
                count = entry_count([item])
                self._tally.files += count
                self._tally.files_unmodified += count
                self._tally.bytes_logical += item.size
            else:
                self._count(item)

    def _count(self, entry: EntryDraft) -> None:
        tally = self._tally
        if entry.is_directory:
            tally.dirs += not entry.stat.flags & EntryFlag.IMPLIED
            return
        tally.files += 1
        counted = tally.add_bytes(entry.stat.size, entry.content.link_group)
        if entry.is_skipped:
            tally.files_skipped += 1
        elif entry.old is not None and entry.content is entry.old[1]:
            tally.files_unmodified += 1
        else:
            tally.bytes_changed += counted
            if entry.old is None:
                tally.files_new += 1
            else:
                tally.files_changed += 1


class _DryEntries:
    """Makes entries from what the scan saw: nothing is opened."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def plain(self, place: Place, stats: Sequence[Stat], at: int) -> list[EntryDraft]:
        """Return nothing: a name after the other is counted."""
        return []

    def entry(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return an entry without content."""
        return EntryDraft(stat, Content(), old=old)

    def described(self, place: Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return an entry without attributes."""
        return EntryDraft(stat, Content(), old=old)

    def skipped(
        self, place: Place, stat: Stat, why: Unreadable, old: OldEntry | None
    ) -> EntryDraft:
        """List a directory that cannot be entered."""
        above = place.path()
        path = above + stat.name if above.endswith(b"/") else above + b"/" + stat.name
        self._tally.list_row(Row(path, why.reason, why.message))
        flagged = msgspec.structs.replace(stat, flags=stat.flags | EntryFlag.SKIPPED)
        return EntryDraft(flagged, Content(), old=old)


def run_dry(context: BackupContext, source: Source, known: KnownTree | None) -> tuple[Tally, int]:
    """Walk and count what a backup would read and what is new by its status; nothing is sent.

    Returns the counts, and how many of the paths could be read at all.
    """
    tally = Tally()
    walk = Walk(
        context,
        source,
        known=known or NothingKnown(),
        pages=_DryPages(tally),
        entries=_DryEntries(tally),
        tally=tally,
        turn=Turn(context.keys, since_ns=0, now_ns=-1),
        avoid=frozenset(),
    )
    walk.run()
    return tally, walk.tops_read

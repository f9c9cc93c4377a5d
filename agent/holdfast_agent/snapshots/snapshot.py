"""One stored snapshot: believed by MAC and signature, walked page by page in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.records import open_signed_manifest
from holdfast_agent.ports import ChunkSource
from holdfast_agent.snapshots.chunks import ChunkReader, broken_tree
from holdfast_agent.tree.block import (
    attributes_of,
    block_ids,
    decode_extents_block,
    extents_of,
)
from holdfast_agent.tree.entry import (
    Content,
    Entry,
    EntryFlag,
    EntryType,
    Extent,
    Stat,
)
from holdfast_agent.tree.page import Page, decode_page, list_page, page_stats
from holdfast_contract import limits
from holdfast_contract.errors import (
    Damaged,
    InvalidInput,
    NotFound,
    TooLarge,
    UnsupportedVersion,
)
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.format.manifest import (
    decode_manifest_body,
    snapshot_id,
    split_manifest,
)
from holdfast_contract.format.report import Report, decode_report
from holdfast_contract.ids import ChunkId

_DIRECTORY: Final = int(EntryType.DIRECTORY)

_Listed = tuple[Sequence[Stat], Sequence[Content] | None]
_Run = tuple[bytes, Sequence[Stat], Sequence[Content] | None]
Run = tuple[bytes, Sequence[Stat], Sequence[Content]]
"""Entries of one directory: what stands before their names in their paths, stat and content parts
of each."""

OnDamage = Callable[[bytes, Damaged], None]
"""Called with the path of a directory of which a part cannot be read."""


class Found(msgspec.Struct, frozen=True):
    """One entry and where it stands."""

    path: bytes
    """Absolute; b"/" for the root."""
    entry: Entry

    @property
    def is_directory(self) -> bool:
        """Tell whether the entry has children."""
        return self.entry.stat.type == _DIRECTORY

    @property
    def is_implied(self) -> bool:
        """Tell whether it only leads to the backed-up paths."""
        return bool(self.entry.stat.flags & EntryFlag.IMPLIED)


class Snapshot:
    """A snapshot whose manifest was verified. Thread-safe but for its iterators."""

    def __init__(
        self, snapshot: bytes, *, keys: DomainKeys, source: ChunkSource, chunks: ChunkReader
    ) -> None:
        """Fetch and verify the manifest.

        Raises:
            WrongKey: it is of another domain than the key.
            Damaged: it is not what its id says, or MAC or signature do not fit.
            NotFound: the server does not give it.
        """
        data = source.manifest(snapshot)
        if snapshot_id(data) != snapshot:
            raise Damaged(
                f"manifest of snapshot {snapshot.hex()[:16]} is damaged",
                object=f"manifest {snapshot.hex()}",
                reason="hash",
            )
        claimed = decode_manifest_body(split_manifest(data).body)
        record = source.identity(claimed.identity)
        signed = open_signed_manifest(data, record, keys)
        self.id = snapshot
        self.body = signed.body
        self.chunks = chunks
        self.root = Entry(
            Stat(b"/", EntryType.DIRECTORY, 0o755, 0, 0, 0, 0, EntryFlag.IMPLIED),
            Content(extents=tuple(Extent(e.chunk, e.offset, e.length) for e in self.body.tree)),
        )

    # --- entries
    def pages(self, directory: Entry, path: bytes, on_damage: OnDamage | None) -> Iterator[Page]:
        """Yield the pages of a directory in order; parts that cannot be read go to `on_damage`.

        Raises:
            Damaged: a page cannot be read and `on_damage` is None.
        """
        last = b""
        try:
            for extent in self.extents(directory):
                try:
                    page = self._page(extent)
                    if page.stats and page.stats[0].name <= last:
                        raise broken_tree("pages out of order", extent)
                except Damaged as damage:
                    if on_damage is None:
                        raise
                    on_damage(path, damage)
                    continue
                last = page.stats[-1].name if page.stats else last
                yield page
        except Damaged as damage:
            if on_damage is None:
                raise
            on_damage(path, damage)

    def children(
        self, directory: Entry, path: bytes = b"/", on_damage: OnDamage | None = None
    ) -> Iterator[Entry]:
        """Yield the entries of a directory, sorted by name."""
        for page in self.pages(directory, path, on_damage):
            for stat, content in zip(page.stats, page.contents, strict=True):
                yield Entry(stat, content)

    def find(self, path: bytes) -> Found:
        """Return the entry at an absolute path.

        Raises:
            NotFound: the snapshot does not have it.
        """
        found = Found(b"/", self.root)
        for name in filter(None, path.split(b"/")):
            entry = self._child(found.entry, name) if found.is_directory else None
            if entry is None:
                shown = path.decode("utf-8", "backslashreplace")
                raise NotFound(f"the snapshot does not have {shown}")
            found = Found(joined(found.path, name), entry)
        return found

    def walk(
        self,
        start: Found | None = None,
        on_damage: OnDamage | None = None,
        *,
        enters: Callable[[Found], bool] = lambda found: True,
    ) -> Iterator[Found]:
        """Yield `start` (default: the root) and everything below it, parents first.

        `enters` is asked of a directory after it was yielded: whether to go down into it.

        Raises:
            Damaged: the tree has more entries or bytes than the manifest counts, or is too deep;
                or a page cannot be read and `on_damage` is None.
        """
        for step in self.walk_in_runs(start, on_damage, enters=enters):
            if isinstance(step, Found):
                yield step
                continue
            prefix, stats, contents = step
            for stat, content in zip(stats, contents, strict=True):
                yield Found(prefix + stat.name, Entry(stat, content))

    def walk_in_runs(
        self,
        start: Found | None = None,
        on_damage: OnDamage | None = None,
        *,
        enters: Callable[[Found], bool] = lambda found: True,
    ) -> Iterator[Found | Run]:
        """Yield what `walk` does, neighbours of one page that are no directories as one run.

        Raises:
            Damaged: as `walk`.
        """
        budget = _Budget(self)
        first = start or Found(b"/", self.root)
        stack: list[Iterator[Found | Run]] = [iter([first])]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                continue
            if not isinstance(step, Found):
                budget.spend(step[1], step[2])
                yield step
                continue
            entry = step.entry
            budget.spend([entry.stat], [entry.content])
            yield step
            if (
                entry.stat.type == _DIRECTORY
                and not entry.stat.flags & EntryFlag.SKIPPED
                and enters(step)
            ):
                if len(stack) > limits.DEPTH_MAX:
                    raise budget.broken("is deeper than the format allows")
                stack.append(self._below(step, on_damage))

    def paths(self, start: Found) -> Iterator[list[bytes]]:
        """Yield the paths of everything below `start`, in the order of `walk`, some at a time.

        Cost: of a page without directories only the stat part is decoded, a microsecond an entry.

        Raises:
            Damaged: as `walk`.
        """

        def names(extent: Extent) -> _Listed:
            with _as_damage(extent):
                return page_stats(self.part(extent)), None

        if not start.is_directory:
            yield [start.path]
            return
        for prefix, stats, _ in self._runs(start, names):
            yield [prefix + stat.name for stat in stats]

    def listing(self, start: Found) -> Iterator[Run]:
        """Yield everything below the directory `start`, in the order of `walk`, some at a time.

        Contents are those of `list_page`.

        Raises:
            Damaged: as `walk`.
        """

        def shown(extent: Extent) -> _Listed:
            data = self.part(extent)
            with _as_damage(extent):
                page = list_page(data, ChunkId(extent.chunk), extent.offset)
            return page.stats, page.contents

        for prefix, stats, contents in self._runs(start, shown):
            assert contents is not None
            yield prefix, stats, contents

    def _runs(self, start: Found, read: Callable[[Extent], _Listed]) -> Iterator[_Run]:
        """Yield runs of entries; where one ends with a directory, what is below it follows."""
        budget = _Budget(self)
        stack = [self._runs_in(start, budget, read)]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                continue
            run, below = step
            yield run
            if below is not None:
                if len(stack) > limits.DEPTH_MAX:
                    raise budget.broken("is deeper than the format allows")
                stack.append(self._runs_in(below, budget, read))

    def _runs_in(
        self, directory: Found, budget: _Budget, read: Callable[[Extent], _Listed]
    ) -> Iterator[tuple[_Run, Found | None]]:
        """Yield the runs of one directory, each with the directory to go down into after it."""
        prefix = joined(directory.path, b"")
        last = b""
        for extent in self.extents(directory.entry):
            stats, contents = read(extent)
            if stats[0].name <= last:
                raise broken_tree("pages out of order", extent)
            last = stats[-1].name
            budget.spend_entries(len(stats))
            first = 0
            for at, stat in enumerate(stats):
                if stat.type == _DIRECTORY and not stat.flags & EntryFlag.SKIPPED:
                    if contents is None:
                        contents = self._page(extent).contents
                    run = prefix, stats[first : at + 1], contents[first : at + 1]
                    yield run, Found(prefix + stat.name, Entry(stat, contents[at]))
                    first = at + 1
            yield (prefix, stats[first:], None if contents is None else contents[first:]), None

    def _below(self, found: Found, on_damage: OnDamage | None) -> Iterator[Found | Run]:
        prefix = joined(found.path, b"")
        for stats, contents, _ in self.pages(found.entry, found.path, on_damage):
            first = 0
            for at, stat in enumerate(stats):
                if stat.type == _DIRECTORY:
                    if first < at:
                        yield prefix, stats[first:at], contents[first:at]
                    yield Found(prefix + stat.name, Entry(stat, contents[at]))
                    first = at + 1
            if first < len(stats):
                yield prefix, stats[first:], contents[first:]

    def _child(self, directory: Entry, name: bytes) -> Entry | None:
        for page in self.pages(directory, b"", None):
            if page.stats and page.stats[-1].name < name:
                continue
            for stat, content in zip(page.stats, page.contents, strict=True):
                if stat.name == name:
                    return Entry(stat, content)
            return None
        return None

    # --- parts of entries
    def extents(self, entry: Entry) -> Iterator[Extent]:
        """Yield a file's content or a directory's pages, in order, wherever they are listed."""
        if not entry.content.spill:
            # In the page itself: decoding has held their sum against the file's size.
            return iter(entry.content.extents)
        return self._spilled(entry)

    def _spilled(self, entry: Entry) -> Iterator[Extent]:
        with _as_damage():
            yield from extents_of(entry.stat, entry.content, self._block)

    def attributes(self, entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
        """Return the extended attributes of an entry, sorted by name."""
        with _as_damage():
            return tuple(attributes_of(entry.content, self._block))

    def reports(self) -> Iterator[Report]:
        """Yield the report chunks: what the backup skipped."""
        for chunk in self.body.report:
            with _as_damage():
                yield decode_report(self.chunks.read_one(ChunkType.REPORT, chunk))

    def reached(self) -> Iterator[bytes]:
        """Yield every id that the manifest reaches, repeatedly: content, tree and report chunks."""
        yield from self.body.report
        for extent in self.root.content.extents:
            yield extent.chunk
        for found in self.walk():
            if found.is_directory:
                for extent in self.extents(found.entry):
                    yield extent.chunk
                    yield from self._page(extent).ids
            yield from self._blocks_reached(found.entry.content)

    def _blocks_reached(self, content: Content) -> Iterator[bytes]:
        blocks: Sequence[Extent] = content.xattr_blocks + (content.extents if content.spill else ())
        for extent in blocks:
            with _as_damage():
                ids = block_ids(self.part(extent))
            yield extent.chunk
            yield from ids
        if content.spill == 2:
            for outer in content.extents:
                with _as_damage():
                    inner = decode_extents_block(*self._block(outer))
                    ids = [one for extent in inner for one in block_ids(self.part(extent))]
                yield from ids

    def _page(self, extent: Extent) -> Page:
        # Outside: what the transport refuses is the server's fault, and no damage of the store.
        data = self.part(extent)
        with _as_damage(extent):
            return decode_page(data, ChunkId(extent.chunk), extent.offset)

    def _block(self, extent: Extent) -> tuple[Buffer, ChunkId, int]:
        return self.part(extent), ChunkId(extent.chunk), extent.offset

    def part(self, extent: Extent) -> memoryview:
        """Return the bytes of a page or block; a memoryview of the opened chunk."""
        return self.chunks.read_part(extent)


def joined(directory: bytes, name: bytes) -> bytes:
    """Return the absolute path of `name` in `directory`."""
    return (b"" if directory == b"/" else directory) + b"/" + name


class _Budget:
    """How much a walk may still meet: a forged tree could name one child twice at every level."""

    def __init__(self, snapshot: Snapshot) -> None:
        body = snapshot.body
        implied = 1 + sum(path.count(b"/") for path in body.paths)
        self._snapshot = snapshot
        self._entries = body.files + body.dirs + implied
        self._bytes = body.bytes

    def spend(self, stats: Sequence[Stat], contents: Sequence[Content]) -> None:
        self._entries -= len(stats)
        # Only files have a size.
        for stat, content in zip(stats, contents, strict=True):
            if not content.link_group:
                self._bytes -= stat.size
        if self._entries < 0 or self._bytes < 0:
            raise self.broken("has more entries or bytes than its manifest counts")

    def spend_entries(self, count: int) -> None:
        """Spend entries of which the bytes are not looked at."""
        self._entries -= count
        if self._entries < 0:
            raise self.broken("has more entries than its manifest counts")

    def broken(self, what: str) -> Damaged:
        name = self._snapshot.id.hex()
        return Damaged(f"snapshot {name[:16]} {what}", object=f"manifest {name}", reason="count")


@contextmanager
def _as_damage(extent: Extent | None = None) -> Iterator[None]:
    """What a decoder refuses came out of an authenticated chunk: to a reader it is damage."""
    try:
        yield
    except (InvalidInput, TooLarge, UnsupportedVersion) as exc:
        chunk = extent.chunk.hex() if extent else ""
        raise Damaged(exc.message, object=chunk, chunk=chunk, reason="layout") from exc

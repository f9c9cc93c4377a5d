"""What is known of the parent's tree without asking the server: pages by directory, and their use.

The engine reads the parent through it and puts beside it what the new snapshot has instead; the
state keeps it on disk. All of it is a cache: without it everything is read anew, and is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from blake3 import blake3

from holdfast_agent.tree.page import Page, open_page
from holdfast_agent.tree.rows import PageRows
from holdfast_contract.errors import HoldfastError
from holdfast_contract.ids import ChunkId


class KnownTreeLost(Exception):
    """The cache cannot be read any further: go on without it."""


class KnownPage(NamedTuple):
    """One page of a directory."""

    row: int
    """Number of the page in the cache; of another page only where that one takes its place."""
    first: bytes
    """Name of its first entry."""
    last: bytes
    """Name of its last entry."""
    chunk: bytes
    """Tree chunk in which it lies."""
    offset: int
    data: bytes
    """The page as stored."""
    has_extra: bool
    """Whether `block_ids` has anything of it."""
    has_links: bool
    """Whether one of its entries has other names."""
    digest: bytes
    """BLAKE3 of `data` when it was put: what is taken over from it goes into the next snapshot."""
    stale: int
    """How many contents `rows_with_content` may find under `row` that are no longer in the page."""

    def opened(self) -> PageRows:
        """Return its entries.

        Raises:
            KnownTreeLost: the cache does not hold what was put into it.
        """
        if blake3(self.data).digest() != self.digest:
            raise KnownTreeLost("a cached page has changed on the disk")
        try:
            return open_page(self.data, ChunkId(self.chunk), self.offset)
        except HoldfastError as exc:
            raise KnownTreeLost("a cached page cannot be decoded") from exc

    def decoded(self) -> Page:
        """Return its entries and their contents.

        Raises:
            KnownTreeLost: as `opened`.
        """
        page = self.opened()
        try:
            return Page(page.stats, page.contents(), page.ids)
        except HoldfastError as exc:
            raise KnownTreeLost("a cached page cannot be decoded") from exc


class NewPage(NamedTuple):
    """A page that the new snapshot has and the parent had not, or had elsewhere."""

    directory: bytes
    first: bytes
    last: bytes
    chunk: bytes
    offset: int
    data: bytes
    extra: tuple[tuple[bytes, bytes], ...]
    """(name of an entry, distinct ids that its blocks name beside the page's own, joined)."""
    content_ids: tuple[bytes, ...]
    """Of its small files; with `takes_row` of those that the parent's page has not."""
    has_links: bool
    takes_row: int | None = None
    """Number of the parent's page in whose place it stands, and under which most of its contents
    are found already; that page is dropped. None: it gets a number of its own."""
    stale: int = 0
    """How many contents found under that number it has not."""


class KnownTree(Protocol):
    """The parent's tree, and what is put in its place. Used by one thread."""

    def pages(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield the parent's pages of a directory (absolute path), in order.

        Raises:
            KnownTreeLost: from here as from every other method that reads.
        """

    def page(self, row: int) -> KnownPage | None:
        """Return a page of the parent by its number, None when there is no such page."""

    def block_ids(self, row: int) -> list[tuple[bytes, bytes]]:
        """Return (name, joined ids) of the page's entries that have blocks."""

    def has_contents(self) -> bool:
        """Tell whether the parent has any small file to be found by its content."""

    def rows_with_content(self, content_id: bytes) -> list[int]:
        """Return numbers of pages that may hold a file of that content: only a hint."""

    def below(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield every page of the directory and of all directories below it."""

    def everything(self) -> Iterator[tuple[KnownPage, bytes]]:
        """Yield every page of the parent with its directory's path."""

    def put(self, page: NewPage) -> None:
        """Note a new page."""

    def drop(self, row: int) -> None:
        """Note that the parent's page `row` is not in the new snapshot."""

    def half_empty(self) -> frozenset[bytes]:
        """Return the bundles and groups of which the parent uses less than half."""

    def use(self, made: Mapping[bytes, int], used: Mapping[bytes, int]) -> None:
        """Note new bundles and groups with their length, and by how many bytes use changed."""

    def refs(self) -> Iterable[bytes]:
        """Yield the ids of the parent's refs, ascending."""


class NothingKnown:
    """A KnownTree of a parent that is unknown."""

    def pages(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield nothing."""
        return iter(())

    def page(self, row: int) -> KnownPage | None:
        """Return None."""
        return None

    def block_ids(self, row: int) -> list[tuple[bytes, bytes]]:
        """Return nothing."""
        return []

    def has_contents(self) -> bool:
        """Return False."""
        return False

    def rows_with_content(self, content_id: bytes) -> list[int]:
        """Return nothing."""
        return []

    def below(self, directory: bytes) -> Iterator[KnownPage]:
        """Yield nothing."""
        return iter(())

    def everything(self) -> Iterator[tuple[KnownPage, bytes]]:
        """Yield nothing."""
        return iter(())

    def put(self, page: NewPage) -> None:
        """Forget it."""

    def drop(self, row: int) -> None:
        """Forget it."""

    def half_empty(self) -> frozenset[bytes]:
        """Return nothing."""
        return frozenset()

    def use(self, made: Mapping[bytes, int], used: Mapping[bytes, int]) -> None:
        """Forget it."""

    def refs(self) -> Iterable[bytes]:
        """Yield nothing."""
        return ()

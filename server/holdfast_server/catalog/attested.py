"""A view of the catalog whose writes record the act that they are, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from holdfast_server.catalog.connection import Catalog, Tx

T = TypeVar("T")


class Attested(Catalog):
    """Hands everything on to the catalog; `note(tx, result)` runs behind each piece of work.

    So an act and its row in the trail stand together or not at all.
    """

    def __init__(self, catalog: Catalog, note: Callable[[Tx, Any], None]) -> None:
        self._catalog = catalog
        self._note = note
        self.clock = catalog.clock

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """Give a transaction that reads; see `Catalog.read`."""
        with self._catalog.read() as tx:
            yield tx

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run `work` and record it; see `Catalog.write`."""

        def both(tx: Tx) -> T:
            result = work(tx)
            self._note(tx, result)
            return result

        return self._catalog.write(both)

    def close(self) -> None:
        """Close nothing: the catalog is somebody else's."""

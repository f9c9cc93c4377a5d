"""What every part of the repository works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast_contract.clock import Clock
from holdfast_contract.ids import new_ulid
from holdfast_server.catalog.connection import Catalog
from holdfast_server.repository.journal import Journal, JournalDiverged
from holdfast_server.stores.port import Store


@dataclass
class Parts:
    """Catalog, store, clock and randomness, and whether writing is allowed at all."""

    catalog: Catalog
    store: Store
    clock: Clock
    random: Callable[[int], bytes]
    journal: Journal = field(init=False)
    refusal: str = "the repository has not been started"
    """Why nothing may be written now; empty when it may."""

    def __post_init__(self) -> None:
        self.journal = Journal(self.catalog, self.store)

    def require_writable(self) -> None:
        """Raise JournalDiverged unless catalog and store are known to agree.

        A catalog that is older than its store would call chunks live that are long gone.
        """
        if self.refusal:
            raise JournalDiverged(
                f"nothing can be stored: {self.refusal}",
                hint="holdfast doctor tells more; restores still work",
            )

    def new_ulid(self) -> str:
        """Return a name that was never used."""
        return new_ulid(self.clock, self.random)

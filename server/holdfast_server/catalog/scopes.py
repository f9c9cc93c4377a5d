"""Scopes: of which domains a caller may know anything.

A look-up takes the scope into its query, so that what is foreign and what does not exist take the
same way and get the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, and_, false, or_, true

from holdfast_contract.ids import ClientName

_BEHIND_SLASH: Final = chr(ord("/") + 1)


@dataclass(frozen=True)
class Scope:
    """Of which domains rows may be seen; None: of all, and of what belongs to none."""

    domains: frozenset[str] | None

    @property
    def is_whole(self) -> bool:
        """Nothing of this server is hidden."""
        return self.domains is None

    def has_domain(self, name: str) -> bool:
        """Tell whether the domain lies within."""
        return self.domains is None or name in self.domains

    def of_domains(self, column: Column[Any]) -> ColumnElement[bool]:
        """Return what holds for rows whose `column` names a domain within."""
        return true() if self.domains is None else column.in_(sorted(self.domains))

    def of_clients(self, column: Column[Any]) -> ColumnElement[bool]:
        """Return what holds for rows whose `column` names a client of a domain within."""
        if self.domains is None:
            return true()
        # A range of names instead of a pattern: indexes of client names serve it.
        ranges = [
            and_(column >= f"{name}/", column < f"{name}{_BEHIND_SLASH}")
            for name in sorted(self.domains)
        ]
        return or_(false(), *ranges)


EVERYWHERE: Final = Scope(None)
"""The server's own look-ups, and callers that are not limited to domains."""


def scope_of(domains: Iterable[str]) -> Scope:
    """Return the scope of a token: naming no domain, it is good for all."""
    found = frozenset(domains)
    return Scope(found) if found else EVERYWHERE


def own_domain(client: ClientName) -> Scope:
    """Return the scope of an agent: its client's domain."""
    return Scope(frozenset({client.domain}))

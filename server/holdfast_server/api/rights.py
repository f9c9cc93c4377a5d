"""What the holder of a token may do: by its role, and within the domains of the token."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from holdfast_contract.errors import Refused


class Right(IntEnum):
    """What a route needs; each includes those before it."""

    READ = 1
    """Lists, details, sealed chunks, and questions to pods."""
    RUN = 2
    """Jobs: backup, restore, verify, cancel; and contents of files out of a pod."""
    ADMINISTER = 3
    """Clients, domains, tokens."""


_HIGHEST: Final = {"viewer": Right.READ, "operator": Right.RUN, "admin": Right.ADMINISTER}


def check_right(role: str, right: Right) -> None:
    """Refuse what `role` may not do; a role that is not known may do nothing.

    Raises:
        Refused: always in the same words, whatever is asked for.
    """
    if right > _HIGHEST.get(role, 0):
        raise Refused(
            "the role of this token does not allow it",
            hint=f"it takes the role {role_for(right)}: holdfast token create --role",
        )


def role_for(right: Right) -> str:
    """Return the least role that has `right`."""
    return next(role for role, highest in _HIGHEST.items() if highest >= right)

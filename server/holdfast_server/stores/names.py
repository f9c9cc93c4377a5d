"""The grammar of object names: what a store accepts, whoever made the name."""

from __future__ import annotations

import re

from holdfast_contract.errors import InvalidInput
from holdfast_contract.ids import ObjectName

COMPONENTS_MAX = 4
COMPONENT_CHARACTERS_MAX = 128
"""Below NAME_MAX (255) of every file system, and room for what a store adds."""

_COMPONENT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{COMPONENT_CHARACTERS_MAX - 1}}}")


def is_component(text: str) -> bool:
    """Tell whether `text` can be one part of a name; a dot never comes first.

    What begins with a dot is the store's own: no object can be named like it.
    """
    return _COMPONENT.fullmatch(text) is not None


def check_object_name(text: str) -> ObjectName:
    """Return `text` if it can name an object: 1 to 4 components of letters, digits, `.`, `_`, `-`.

    Raises:
        InvalidInput: it can not.
    """
    parts = text.split("/")
    if len(parts) > COMPONENTS_MAX or not all(is_component(part) for part in parts):
        raise InvalidInput(f"not an object name: {text[:120]!r}")
    return ObjectName(text)


def check_prefix(text: str) -> tuple[str, ...]:
    """Return the components of `text`, which names a folder of objects; empty: all of them.

    Raises:
        InvalidInput: it can not name one.
    """
    if not text:
        return ()
    parts = check_object_name(text).split("/")
    if len(parts) == COMPONENTS_MAX:
        raise InvalidInput(f"nothing can lie below: {text[:120]!r}")
    return tuple(parts)

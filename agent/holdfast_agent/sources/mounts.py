"""What is mounted where, as one value to compare: a mount changes files without touching any."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from holdfast_agent.sources.roots import is_within

_TABLE: Final = "/proc/self/mountinfo"
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
_FIELDS: Final = 5
"""Id, parent's id, device, what of it, where: proc(5)."""


def mounts_below(paths: Iterable[bytes], table: str = _TABLE) -> bytes:
    """Return a digest of all mounts at or below `paths` (real, absolute); equal where none changed.

    A file may be mounted over a file: nothing is told of that, and the directory stays as it was.

    Raises:
        OSError: the table cannot be read.
    """
    tops = tuple(paths)
    digest = blake3()
    with open(table, "rb") as lines:
        for line in lines:
            fields = line.split(b" ", _FIELDS)[:_FIELDS]
            place = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), fields[-1])
            if any(is_within(place, top) for top in tops):
                digest.update(b" ".join(fields) + b"\n")
    return digest.digest()

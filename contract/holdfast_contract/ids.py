"""Small types for names and numbers that must not be mixed up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NewType

from holdfast_contract.clock import Clock, SystemClock
from holdfast_contract.errors import InvalidInput

DomainId = NewType("DomainId", bytes)
"""16 random bytes, public; in text 32 hex digits."""
ChunkId = NewType("ChunkId", bytes)
"""32 bytes: keyed hash of a chunk's type and plaintext."""
SnapshotId = NewType("SnapshotId", bytes)
"""32 bytes: BLAKE3 of the whole stored manifest; in text 64 hex digits."""
ObjectName = NewType("ObjectName", str)
"""Name of a stored object, slash-separated, chosen by the server (docs/format.md, Objects)."""
JobId = NewType("JobId", str)
"""ULID of a job."""
SessionId = NewType("SessionId", str)
"""ULID of an upload session."""

ZERO_HASH = bytes(32)
"""Stands for «none» where a hash is expected (first `prev`, no parent)."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID_PATTERN = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
_ULID = re.compile(ULID_PATTERN)
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?")
_REPLICA = re.compile(r"(.+)-(0|[1-9][0-9]*)")


def new_ulid(clock: Clock | None = None, random: Callable[[int], bytes] = os.urandom) -> str:
    """Return a new ULID: 26 characters, sorted by time, 80 random bits."""
    time_ms = (clock or SystemClock()).now_ns() // 1_000_000
    value = (max(time_ms, 0) & (1 << 48) - 1) << 80 | int.from_bytes(random(10), "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -5, -5))


def is_ulid(text: str) -> bool:
    """Tell whether `text` is a ULID in canonical form."""
    return _ULID.fullmatch(text) is not None


class ClientName(str):
    """`DOMAIN/NAME`.

    Both parts are 1 to 100 characters of a-z, 0-9, dot, dash and underscore; both ends are a
    letter or a digit.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> ClientName:
        """Return `text` as a client name.

        Raises:
            InvalidInput: it is not of that form.
        """
        domain, slash, name = text.partition("/")
        if not slash or not _NAME.fullmatch(domain) or not _NAME.fullmatch(name):
            raise InvalidInput(
                f"not a client name: {text[:120]!r}",
                hint="a client is DOMAIN/NAME, both of a-z, 0-9, '.', '-', '_'",
            )
        return cls(text)

    @property
    def domain(self) -> str:
        """The part before the slash."""
        return self.partition("/")[0]

    @property
    def name(self) -> str:
        """The part after the slash."""
        return self.partition("/")[2]

    @property
    def workload(self) -> str:
        """`DOMAIN/WORKLOAD` of a replica `DOMAIN/WORKLOAD-ORDINAL`; the whole name of any other."""
        found = _REPLICA.fullmatch(self)
        return str(self) if found is None else found[1]

    @property
    def ordinal(self) -> int:
        """Number of a replica; -1 of what is none."""
        found = _REPLICA.fullmatch(self)
        return -1 if found is None else int(found[2])

    def is_relative_of(self, other: ClientName) -> bool:
        """Tell whether both are replicas of one workload, and not the same one."""
        both_replicas = self.ordinal >= 0 and other.ordinal >= 0
        return both_replicas and self != other and self.workload == other.workload


def check_domain_name(text: str) -> str:
    """Return `text` if it can name a domain.

    Raises:
        InvalidInput: it can not.
    """
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"not a domain name: {text[:120]!r}",
            hint="1 to 100 characters of a-z, 0-9, '.', '-', '_'; both ends a letter or digit",
        )
    return text

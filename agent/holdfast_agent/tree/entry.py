"""What a snapshot says of one name: stat part, content part, extents."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec

HOLE_CHUNK: Final = bytes(32)
"""`Extent.chunk` of a hole: `length` bytes of zeros, `offset` is 0."""
SELF_CHUNK: Final = b"\xff" * 32
"""`Extent.chunk` while writing: the tree chunk in which the page or block itself will lie.

Its id cannot be known before it is complete. Decoders give the real id instead.
"""


class EntryType(IntEnum):
    """Kind of a directory entry; the numbers are part of the format."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHAR_DEVICE = 6
    BLOCK_DEVICE = 7


class EntryFlag(IntEnum):
    """Bits of an entry's stat part; unknown bits are refused by readers.

    No IntFlag: its operators are written in Python and cost 3 microseconds each, for every entry.
    """

    UNSETTLED = 1
    """The file may have changed within one timestamp tick after it was read: never «unchanged»."""
    IMPLIED = 2
    """A directory above the paths of the backup: made on restore, nothing known of it."""
    SKIPPED = 4
    """The entry's content or children could not be read: listed in the report, not restored."""


Signed64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Stat(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """The stat part: what decides whether an entry is unchanged.

    Bounds hold when decoding; who makes one keeps them.
    """

    name: Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]
    """1 to 255 bytes without NUL and slash, not `.` or `..`."""
    type: Annotated[int, msgspec.Meta(ge=1, le=7)]
    """EntryType."""
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    """Permission bits, 0 to 0o7777."""
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    """Logical bytes of a regular file, otherwise 0."""
    mtime_ns: Signed64
    """Nanoseconds since 1970, negative before."""
    ctime_ns: Signed64
    inode: Annotated[int, msgspec.Meta(ge=0)]
    """Up to 64 bits."""
    flags: Annotated[int, msgspec.Meta(ge=0, le=7)]
    """EntryFlag."""


class Extent(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """A part of a chunk's plaintext; in pages `chunk` is an index into the page's id table."""

    chunk: bytes
    """32 bytes: chunk id, or HOLE_CHUNK; in what is encoded also SELF_CHUNK."""
    offset: int
    length: int
    """At least 1."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """The content part: everything of an entry that its stat part does not say."""

    uid: int = 0
    gid: int = 0
    user: str = ""
    """Owner by name where the agent could resolve it, else empty."""
    group: str = ""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """(name, value), sorted by name; POSIX ACLs are `system.posix_acl_access` / `_default`."""
    xattr_blocks: tuple[Extent, ...] = ()
    """Where the attributes lie in blocks instead: in `tree.block`, `attributes_of` reads both."""
    link_group: bytes = b""
    """16 bytes where the file has other names (nlink > 1), else empty."""
    target: bytes = b""
    """Of a symlink."""
    device: int = 0
    """st_rdev of a device."""
    content_id: bytes = b""
    """32 bytes for a small regular file that is not empty, else empty."""
    extents: tuple[Extent, ...] = ()
    """A file's content in order, or a directory's pages in order; see `spill`."""
    spill: int = 0
    """1: `extents` name blocks that hold the entry's extents; 2: blocks that name such blocks."""


class Entry(msgspec.Struct, frozen=True):
    """One name of a directory."""

    stat: Stat
    content: Content

"""What of the target is right already: content by its ids, metadata by reading it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from holdfast_agent.crypto.keys import ContentHasher, DomainKeys, chunk_id
from holdfast_agent.ports import Cancel
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.writer import ExistingFile
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sources.attributes import read_xattrs
from holdfast_agent.sources.directory import by_descriptor
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, Entry, EntryType, Extent, Stat
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, KIB

_SETID: Final = stat.S_ISUID | stat.S_ISGID
_FORMATS: Final[dict[int, int]] = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}


def is_of_type(info: os.stat_result, entry: Stat) -> bool:
    """Tell whether what is there is of the entry's type."""
    return stat.S_IFMT(info.st_mode) == _FORMATS[entry.type]


def standing_of(info: os.stat_result) -> tuple[int, ...]:
    """Return what tells a thing from another one; inode numbers alone are soon used again."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def metadata_differs(
    descriptor: int, entry: Stat, content: Content, policy: Policy, *, is_handle: bool = False
) -> bool:
    """Tell whether owner, mode, time or attributes are not what a restore under `policy` gives.

    `is_handle`: the descriptor is an O_PATH one.
    """
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (content.uid, content.gid):
        return True
    if info.st_mtime_ns != entry.mtime_ns:
        return True
    mode = entry.mode if policy.special else entry.mode & ~_SETID
    if entry.type != EntryType.SYMLINK and stat.S_IMODE(info.st_mode) != mode:
        return True
    wanted = tuple(pair for pair in content.xattrs if policy.special or not _is_special(pair[0]))
    return read_xattrs(by_descriptor(descriptor) if is_handle else descriptor)[0] != wanted


def policy_takes_away(entry: Stat, content: Content, policy: Policy) -> bool:
    """Tell whether `policy` leaves something of the entry out, which has to be listed."""
    if policy.special:
        return False
    has_bits = entry.type != EntryType.SYMLINK and bool(entry.mode & _SETID)
    return has_bits or any(_is_special(name) for name, _ in content.xattrs)


def gives_privilege(entry: Stat, content: Content, policy: Policy) -> bool:
    """Tell whether running the file gives somebody more than he has: setuid, setgid, capabilities.

    Such a file is never made of one that stands there: whoever owned that may still write to it
    between the look at its content and the change of its mode.
    """
    return policy.special and (
        bool(entry.mode & _SETID)
        or any(name.startswith(b"security.") for name, _ in content.xattrs)
    )


def _is_special(name: bytes) -> bool:
    return name.startswith((b"security.", b"trusted."))


class Readable(Protocol):
    """A file of the target, old or new."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on and return how much came."""


class _Run(NamedTuple):
    """A part of one chunk's plaintext that lies in the buffer."""

    chunk: bytes
    first: int
    """Offset of the part in the chunk."""
    length: int

    def goes_on_with(self, extent: Extent) -> bool:
        """Tell whether `extent` is the part that follows."""
        return self.chunk == extent.chunk and self.first + self.length == extent.offset


class ContentCheck:
    """Compares files of the target with what a snapshot says of them; one buffer for all."""

    def __init__(self, keys: DomainKeys, reader: ChunkReader, cancel: Cancel) -> None:
        self._keys = keys
        self._reader = reader
        self._cancel = cancel
        self._buffer = memoryview(bytearray(CHUNK_PLAIN_BYTES_MAX))
        self._scratch = memoryview(bytearray(256 * KIB))

    def is_right(
        self, existing: ExistingFile, snapshot: Snapshot, entry: Entry, *, fetches: bool = False
    ) -> bool:
        """Tell whether the file has exactly the entry's content.

        A part of a chunk can only be told by fetching the chunk: without `fetches` it counts as
        wrong.

        Raises:
            Damaged: the snapshot's list of extents, or a chunk that has to be fetched, cannot be
                read.
            EntryFailed: the file cannot be read.
        """
        if existing.info.st_size != entry.stat.size:
            return False
        if entry.content.content_id:
            return self._content_id(existing, entry.stat.size) == entry.content.content_id
        return self._has_extents(existing, snapshot, entry, fetches)

    def _has_extents(
        self, existing: ExistingFile, snapshot: Snapshot, entry: Entry, fetches: bool
    ) -> bool:
        """Compare chunk by chunk: in a sparse file one chunk may lie on both sides of a hole."""
        run = _Run(HOLE_CHUNK, 0, 0)
        for extent, offset in placed(snapshot.extents(entry)):
            self._cancel.check()
            if extent.chunk == HOLE_CHUNK:
                if not self._is_zero(existing, offset, extent.length):
                    return False
                continue
            if not run.goes_on_with(extent):
                if not self._has_run(run, fetches):
                    return False
                run = _Run(extent.chunk, extent.offset, 0)
            view = self._buffer[run.length : run.length + extent.length]
            if existing.read_into(view, offset) < extent.length:
                return False
            run = run._replace(length=run.length + extent.length)
        return self._has_run(run, fetches)

    def _has_run(self, run: _Run, fetches: bool) -> bool:
        view = self._buffer[: run.length]
        if not run.length or (
            not run.first and chunk_id(self._keys, ChunkType.CONTENT, view) == run.chunk
        ):
            return True
        if not fetches:
            return False
        plain = self._reader.read_one(ChunkType.CONTENT, run.chunk)
        return plain[run.first : run.first + run.length] == bytes(view)

    def has_part(self, existing: ExistingFile, extent: Extent, offset: int) -> bool:
        """Tell whether the file has at `offset` what `extent` says: by the chunk's id, no fetch."""
        self._cancel.check()
        if extent.chunk == HOLE_CHUNK:
            return self._is_zero(existing, offset, extent.length)
        if extent.offset or extent.length > len(self._buffer):
            return False
        return self.range_id(existing, offset, extent.length) == extent.chunk

    def range_id(self, file: Readable, offset: int, length: int) -> bytes:
        """Return the chunk id of a range; of a shorter one where the file ends before."""
        view = self._buffer[:length]
        return chunk_id(self._keys, ChunkType.CONTENT, view[: file.read_into(view, offset)])

    def _content_id(self, existing: ExistingFile, size: int) -> bytes:
        hasher = ContentHasher(self._keys)
        for offset in range(0, size, len(self._buffer)):
            self._cancel.check()
            view = self._buffer[: size - offset]
            got = existing.read_into(view, offset)
            hasher.update(view[:got])
        return hasher.digest()

    def _is_zero(self, existing: ExistingFile, offset: int, length: int) -> bool:
        """Tell whether a range reads as zeros; where the file has holes nothing is read."""
        end = offset + length
        while offset < end:
            self._cancel.check()
            try:
                offset = os.lseek(existing.descriptor, offset, os.SEEK_DATA)
            except OSError:
                return True  # ENXIO: a hole up to the end
            view = self._scratch[: max(0, end - offset)]
            got = existing.read_into(view, offset)
            if got < len(view) or any(view[:got].tobytes().strip(b"\0")):
                return False
            offset += got
        return True


def placed(extents: Iterator[Extent]) -> Iterator[tuple[Extent, int]]:
    """Yield every extent with its offset in the file."""
    offset = 0
    for extent in extents:
        yield extent, offset
        offset += extent.length

"""The content of regular files: opened safely, read in pieces, and known to be whole or not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from holdfast_agent.sources.attributes import Attribute, OwnerNames, read_xattrs
from holdfast_agent.sources.directory import Directory, open_unstamped
from holdfast_agent.sources.findings import Finding, Reason, finding_from
from holdfast_agent.sources.scan import is_as_scanned, stat_of
from holdfast_agent.tree.entry import Content, Stat

HOLE_BYTES_MIN: Final = 64 * 1024
"""Smaller holes are read as zeros; others are counted in units of it, so that the same file has
the same runs on file systems of different block sizes."""

# O_NONBLOCK: should a FIFO or a device stand there in place of the file, nothing waits for it.
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NONE: Final[tuple[tuple[Attribute, ...], tuple[Finding, ...]]] = ((), ())


class Signature(NamedTuple):
    """What changes whenever the content of a file does (within the tick of its clock)."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


def signature_of(info: os.stat_result) -> Signature:
    """Return the signature that a status shows."""
    return Signature(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)


class ReadFailed(Exception):
    """Reading stopped in the middle of a file; the finding says why (its path is the name)."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class FileReader:
    """A regular file open for reading; a context manager that closes it."""

    __slots__ = ("descriptor", "entry", "info")

    def __init__(self, descriptor: int, info: os.stat_result, entry: Stat) -> None:
        self.descriptor = descriptor
        self.info = info
        self.entry = entry
        """The stat part as it was when opened: newer than the directory's scan."""

    @property
    def signature(self) -> Signature:
        """What it looked like when it was opened."""
        return signature_of(self.info)

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.info.st_size

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on and return how much came; less only at the end.

        Raises:
            ReadFailed: the kernel refuses (as an input/output error).
        """
        wanted = len(buffer)
        try:
            filled = os.preadv(self.descriptor, (buffer,), offset)
            while 0 < filled < wanted:
                got = os.preadv(self.descriptor, (buffer[filled:],), offset + filled)
                if got == 0:
                    break
                filled += got
        except OSError as exc:
            raise ReadFailed(finding_from(self.entry.name, exc)) from exc
        return filled

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not a hole, in order; see `data_runs`."""
        return data_runs(self.descriptor, self.info)

    def is_unchanged(self) -> bool:
        """Return whether the file still looks as it did when it was opened."""
        try:
            now = os.fstat(self.descriptor)
        except OSError:
            return False
        # What is open stays the same inode: only the rest of the signature can differ.
        before = self.info
        return (
            now.st_mtime_ns == before.st_mtime_ns
            and now.st_ctime_ns == before.st_ctime_ns
            and now.st_size == before.st_size
        )

    def close(self) -> None:
        """Give the descriptor back; doing so twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_file(directory: Directory, entry: Stat) -> FileReader | Finding:
    """Open the regular file that `entry` was scanned as.

    Another kind of thing in its place is a finding with reason `replaced`; another file (as an
    editor leaves that saves by renaming) one with reason `changed`: look again, and read that.
    """
    try:
        descriptor = open_unstamped(entry.name, _FLAGS, directory.descriptor)
    except OSError as exc:
        return finding_from(entry.name, exc)
    try:
        info = os.fstat(descriptor)
    except OSError as exc:
        os.close(descriptor)
        return finding_from(entry.name, exc)
    if stat.S_ISREG(info.st_mode) and info.st_ino == entry.inode:
        if is_as_scanned(entry, info):
            return FileReader(descriptor, info, entry)
        return FileReader(descriptor, info, stat_of(directory, entry.name, info))
    os.close(descriptor)
    if not stat.S_ISREG(info.st_mode):
        return Finding(entry.name, Reason.REPLACED, "no longer a regular file")
    return Finding(entry.name, Reason.CHANGED, "replaced by another file")


def read_plain(
    directory: Directory,
    entries: Sequence[Stat],
    buffer: memoryview,
    names: OwnerNames,
    *,
    young_ns: int,
) -> list[Content]:
    """Read ordinary files, one behind the other into `buffer`; return owners and attributes.

    `entries` are regular files of `entry.size` bytes, for which `buffer` has room. It ends before
    the first that is not ordinary: it cannot be opened or read, was changed at `young_ns` or later,
    is not as it was scanned once it is read, has holes, other names, or attributes that cannot be
    read. `open_file` finds out what it is; nothing is lost but time.
    Cost: five calls of the kernel a file and little else, since most files of most volumes come
    here. What the status shows behind the last byte is compared with what was scanned before the
    first, so that it need not be asked in between. Nothing is lost by reading before the type is
    known: what gives its data only once, as a FIFO or a terminal, cannot be read at an offset.
    """
    found: list[Content] = []
    parent = directory.descriptor
    read_into, status, attributes, close = os.preadv, os.fstat, os.listxattr, os.close
    at, owner = 0, (-1, -1)
    for entry in entries:
        size = entry.size
        if entry.ctime_ns >= young_ns:
            break
        try:
            descriptor = open_unstamped(entry.name, _FLAGS, parent)
            try:
                if size and read_into(descriptor, (buffer[at : at + size],), 0) != size:
                    break
                xattrs, findings = read_xattrs(descriptor) if attributes(descriptor) else _NONE
                info = status(descriptor)
            finally:
                close(descriptor)
        except OSError:
            break
        if (
            info.st_mtime_ns != entry.mtime_ns
            or info.st_ctime_ns != entry.ctime_ns
            or info.st_ino != entry.inode
            or info.st_size != size
            or info.st_mode != entry.mode | stat.S_IFREG
            or info.st_nlink != 1
            or (size >= HOLE_BYTES_MIN and info.st_blocks * 512 < size)
            or findings
        ):
            break
        if owner != (owner := (info.st_uid, info.st_gid)):
            owned = names.owned(*owner)
        found.append(msgspec.structs.replace(owned, xattrs=xattrs) if xattrs else owned)
        at += size
    return found


def data_runs(descriptor: int, info: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the data of a file, in order; what lies between is holes.

    Shape:  an empty file and one that is a single hole yield nothing.
    Units:  bytes; holes begin and end at multiples of HOLE_BYTES_MIN, or end with the file.
    Cost:   none for a file without holes; otherwise two lseek calls a run.
    Errors: a file system that does not tell holes has none.
    """
    size = info.st_size
    if info.st_blocks * 512 >= size or size < HOLE_BYTES_MIN:
        return iter(((0, size),) if size else ())
    return _runs_between_holes(descriptor, size)


def _runs_between_holes(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    start = 0  # of the run that is being collected
    position = 0
    while position < size:
        hole = _seek(descriptor, position, os.SEEK_HOLE, size)
        if hole >= size:
            break
        data = _seek(descriptor, hole, os.SEEK_DATA, size)
        hole_from = -(-hole // HOLE_BYTES_MIN) * HOLE_BYTES_MIN
        hole_to = data if data >= size else data // HOLE_BYTES_MIN * HOLE_BYTES_MIN
        if hole_from < hole_to:
            if hole_from > start:
                yield start, hole_from - start
            start = hole_to
        position = max(data, hole + 1)
    if start < size:
        yield start, size - start


def _seek(descriptor: int, offset: int, whence: int, size: int) -> int:
    """Return where the next hole or data begins, at most `size`."""
    try:
        return min(max(os.lseek(descriptor, offset, whence), offset), size)
    except OSError as exc:
        # ENXIO: no more data up to the end. Anything else: all that is left counts as data.
        if exc.errno == errno.ENXIO or whence == os.SEEK_HOLE:
            return size
        return offset

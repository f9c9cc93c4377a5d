"""Ordinary new files: found in runs of a page, and written by one flat function.

Nearly every file of most snapshots is one. Whatever is not, or comes out differently, goes the long
way through `Whole` and `Writer`, which answers why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from holdfast_agent.crypto.keys import ContentKey, DomainKeys, content_id
from holdfast_agent.restore.directory import TargetDirectory, is_plain_name
from holdfast_agent.restore.metadata import SETID_BITS, Loss, Policy, apply_plain, apply_wholly
from holdfast_agent.restore.writer import NEW_FLAGS, NEW_MODE
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, EntryFlag, EntryType, Stat

BUNDLE_FILES_MAX: Final = 64
"""Files of one step: they are counted together, and a slow volume takes 10 ms for each."""
_FILE: Final = int(EntryType.FILE)
_SKIPPED: Final = int(EntryFlag.SKIPPED)


def bundles_in(
    stats: Sequence[Stat], contents: Sequence[Content]
) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield (first, end, chunk, bytes of it that are used) of neighbours that lie in one chunk.

    Shape: first < end, in order; what is in none of them is no ordinary file.
    Cost:  half a microsecond an entry.
    """
    first = used = 0
    chunk = b""
    for at, stat in enumerate(stats):
        content = contents[at]
        if not is_plain(stat, content):
            if chunk:
                yield first, at, chunk, used
                chunk = b""
            continue
        extent = content.extents[0]
        if extent.chunk != chunk or at - first == BUNDLE_FILES_MAX:
            if chunk:
                yield first, at, chunk, used
            first, chunk, used = at, extent.chunk, 0
        used = max(used, extent.offset + extent.length)
    if chunk:
        yield first, len(stats), chunk, used


def is_plain(stat: Stat, content: Content) -> bool:
    """Tell whether an entry is a file of one part of one chunk, with one name and no attributes."""
    return (
        bool(content.content_id)
        and len(content.extents) == 1
        and stat.type == _FILE
        and not stat.flags & _SKIPPED
        and not stat.mode & SETID_BITS
        and not (content.xattrs or content.link_group or content.xattr_blocks or content.spill)
        and content.extents[0].chunk != HOLE_CHUNK
    )


class PlainWriter:
    """Writes ordinary files into a directory that this run has made."""

    def __init__(
        self, home: TargetDirectory, keys: DomainKeys | ContentKey, policy: Policy
    ) -> None:
        assert home.created, "the agent's own files may stand in any other"
        self._home = home
        self._keys = keys
        self._policy = policy
        self._made: tuple[tuple[int, int], int] | None = None
        """Owner and access time of the first file: those that follow have the same."""

    def write(self, data: memoryview, stat: Stat, content: Content) -> list[Loss] | None:
        """Write a file under a temporary name, then give it its own; return what it lost.

        None: nothing of it is left here, and the long way tells why. What is looked at in the end
        is the file itself: that its first neighbour was owned by somebody is only an expectation.
        """
        name, parent = stat.name, self._home.descriptor
        # Decoding has refused such a page: this is the last line.
        if not is_plain_name(name):
            return None
        temporary = self._home.temporary_name()
        try:
            file = os.open(temporary, NEW_FLAGS, NEW_MODE, dir_fd=parent)
        except OSError:
            return None
        is_named, losses = False, None
        try:
            try:
                # Copied first, then hashed: another core has opened it, and the copy fetches it
                # faster.
                if (
                    os.pwrite(file, data, 0) == stat.size
                    and content_id(self._keys, data) == content.content_id
                ):
                    losses = self._given(file, stat, content)
            finally:
                # Before it gets its name: a volume may first tell here that it is full.
                os.close(file)
            if losses is not None:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
                is_named = True
        except OSError:
            losses = None
        finally:
            if not is_named:
                self._home.discard(temporary)
        return losses

    def _given(self, file: int, stat: Stat, content: Content) -> list[Loss]:
        if self._made is None:
            info = os.fstat(file)
            self._made = (info.st_uid, info.st_gid), info.st_atime_ns
        owner, atime_ns = self._made
        if apply_plain(file, owner, atime_ns, stat, content):
            return []
        return apply_wholly(file, stat, content, self._policy)

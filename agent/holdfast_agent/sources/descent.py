"""The way down a tree: a stack of open directories that never follows a symlink.

At most `OPEN_MAX` descriptors are held, however deep the tree. Above that the shallowest are
closed, and opened again name by name on the way back; what is found there has to be the very same
directory as before (device and inode), otherwise its rest is a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.findings import Finding, Reason, joined

OPEN_MAX: Final = 256
"""Most directory descriptors of one descent: well below the usual limit of 1,024."""

_MOVED = "moved or replaced while the backup was below it"


def components(path: bytes) -> list[bytes]:
    """Return the names of an absolute path; `/` has none."""
    return [name for name in path.split(b"/") if name]


class Descent:
    """Where a walk stands: the directories from its base down to the current one."""

    def __init__(
        self,
        base: bytes,
        directory: Directory,
        mount: bytes,
        shown: bytes,
        *,
        clock: FileClock,
        filesystems: Filesystems,
    ) -> None:
        self._shown = shown
        self._names: list[bytes] = [base]
        self._levels: list[Directory] = [directory]
        self._mounts: list[tuple[int, bytes]] = [(0, mount)]
        """(level, path) of the mount points passed, the innermost last."""
        self._first_open = 1
        """Levels from 1 up to this one are closed; the base (0) is always kept."""
        self._clock = clock
        self._filesystems = filesystems

    @classmethod
    def open(
        cls,
        base: bytes,
        *,
        clock: FileClock,
        filesystems: Filesystems,
        listing: bool = True,
        shown: bytes = b"",
    ) -> Self | Finding:
        """Return a descent that stands at `base`, an absolute path, opened name by name from `/`.

        `shown` is the path that users know it by (below a root that is given by a symlink), if it
        is another. The directories above it need search permission only; with `listing=False` the
        base too. A symlink anywhere in `base` gives a finding.
        """
        names = components(base)
        opened: Directory | Finding = Directory.open(
            None, b"/", clock=clock, filesystems=filesystems, listing=listing and not names
        )
        mount = b"/"
        for index, name in enumerate(names):
            if isinstance(opened, Finding):
                break
            with opened as parent:
                opened = Directory.open(
                    parent.descriptor,
                    name,
                    clock=clock,
                    filesystems=filesystems,
                    listing=listing and index == len(names) - 1,
                )
                if not isinstance(opened, Finding) and opened.device != parent.device:
                    mount = b"/" + b"/".join(names[: index + 1])
        if isinstance(opened, Finding):
            return opened._replace(path=shown or base)
        return cls(base, opened, mount, shown or base, clock=clock, filesystems=filesystems)

    @property
    def current(self) -> Directory:
        """The directory that the walk is in."""
        return self._levels[-1]

    @property
    def depth(self) -> int:
        """Levels below the base."""
        return len(self._levels) - 1

    @property
    def base(self) -> bytes:
        """The real path at which it began."""
        return self._names[0]

    @property
    def parents(self) -> tuple[bytes, ...]:
        """The names from the base down to the current directory."""
        return tuple(self._names[1:])

    def path(self) -> bytes:
        """Return the absolute path of the current directory as users know it.

        Built anew at each call, and as long as the tree is deep.
        """
        return joined(self._shown, b"/".join(self._names[1:]))

    def real_path(self) -> bytes:
        """Return the absolute path of the current directory without symlinks."""
        return joined(self._names[0], b"/".join(self._names[1:]))

    def mount_path(self) -> bytes:
        """Return the path of the mount point that the current directory lies on.

        A change of st_dev shows one; a bind mount within one file system is none, so that hard
        links across it stay one group.
        """
        return self._mounts[-1][1]

    def enter(self, name: bytes) -> Finding | None:
        """Go down into `name`; after a finding (path: absolute) the walk stands as before."""
        above = self.current
        below = self._opened(above, name)
        if isinstance(below, Finding):
            return below.within(self.path())
        self._names.append(name)
        self._levels.append(below)
        if below.device != above.device:
            self._mounts.append((self.depth, self.real_path()))
        self._close_shallowest()
        return None

    def leave(self) -> Finding | None:
        """Go back up; a finding when the directory above is no longer where it was.

        After a finding the walk stands in that directory all the same, but has no open descriptor
        of it (`current.is_open` is false): the rest of its entries cannot be read.
        """
        assert self.depth > 0, "already at the base"
        self._levels.pop().close()
        self._names.pop()
        while self._mounts[-1][0] > self.depth:
            self._mounts.pop()
        return None if self.current.is_open else self._reopen()

    def _opened(self, parent: Directory, name: bytes) -> Directory | Finding:
        if not parent.is_open:
            return Finding(name, Reason.REPLACED, _MOVED)
        return Directory.open(
            parent.descriptor, name, clock=self._clock, filesystems=self._filesystems
        )

    def _close_shallowest(self) -> None:
        self._first_open = min(self._first_open, self.depth)
        if self.depth - self._first_open + 2 > OPEN_MAX:
            self._levels[self._first_open].close()
            self._first_open += 1

    def _reopen(self) -> Finding | None:
        """Open the current directory and those just above it again, from the base down."""
        keep_from = max(1, len(self._levels) - (OPEN_MAX - 1))
        self._first_open = keep_from
        parent = self._levels[0]
        for level in range(1, len(self._levels)):
            found = self._opened(parent, self._names[level])
            if not isinstance(found, Finding) and found.identity != self._levels[level].identity:
                found.close()
                found = Finding(b"", Reason.REPLACED, _MOVED)
            if 0 < level - 1 < keep_from:
                parent.close()
            if isinstance(found, Finding):
                return Finding(self.path(), found.reason, found.message)
            found.opened_ns = self._levels[level].opened_ns
            self._levels[level] = parent = found
        return None

    def close(self) -> None:
        """Give every descriptor back."""
        for directory in self._levels:
            directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def enter_all(descent: Descent, names: Sequence[bytes]) -> Finding | None:
    """Go down through all of `names`; stop at the first that cannot be entered."""
    for name in names:
        finding = descent.enter(name)
        if finding is not None:
            return finding
    return None

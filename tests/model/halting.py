"""Calls of agents that stand still where the model does, so that others come in between.

Each runs on a thread of its own: it stops between the bytes of a pack and its index, between a
commit's check and its transaction, between the transaction and the journal. Only one moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from holdfast_server.catalog.schema import ObjectKind
from tests.support.filesystem import Crash
from tests.support.uploads import Served

PATIENCE_SECONDS: Final = 120.0
"""How long a call may take: only a call that hangs takes longer, however slow the machine."""


class Call:
    """One call of an agent on its own thread, from stop to stop."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.stop = ""
        """Where it stands; empty once it is over."""
        self.facts: tuple[Any, ...] = ()
        self.decided = b""
        """The snapshot that its transaction has made."""
        self._is_cut = False
        self._moved, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Call:
        """Run to the first stop."""
        CALLS[self._thread] = self
        self._thread.start()
        self._wait()
        return self

    def go_on(self) -> None:
        """Run to the next stop."""
        self._go.release()
        self._wait()

    def cut(self) -> None:
        """Let it end where it stands, as its machine does."""
        self._is_cut = True
        while self.stop:
            self.go_on()

    def halt(self, where: str, *facts: Any) -> None:
        """Stand still until told to go on; called by the product's code on the call's thread."""
        self.stop = where
        self.facts = facts or self.facts
        self._moved.release()
        self._go.acquire()
        if self._is_cut:
            raise Crash(where)

    def _run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        self.stop = ""
        CALLS.pop(self._thread, None)
        self._moved.release()

    def _wait(self) -> None:
        assert self._moved.acquire(timeout=PATIENCE_SECONDS), f"a call hangs behind {self.stop!r}"


CALLS: Final[dict[threading.Thread, Call]] = {}


def _halt(where: str, *facts: Any) -> None:
    call = CALLS.get(threading.current_thread())
    if call is not None:
        call.halt(where, *facts)


class HaltingServed(Served):
    """A repository whose calls stand still at the model's seams."""

    def start(self) -> None:
        super().start()
        deposits, commits = self.repository._deposits, self.repository._commits
        journal = self.repository._parts.journal
        count, written, decide = deposits.count, commits._written, commits._decide
        flush = journal.flush

        def counting(row: Any, *rest: Any, **named: Any) -> Any:
            if row.kind is ObjectKind.PACK:
                _halt("sent")
            return count(row, *rest, **named)

        def writing(candidate: Any, parent: Any, left: int) -> Any:
            call = CALLS.get(threading.current_thread())
            if call is not None and not call.facts:
                call.halt("checked", parent is not None, left)
            return written(candidate, parent, left)

        def deciding(candidate: Any) -> Any:
            found = decide(candidate)
            call = CALLS.get(threading.current_thread())
            if call is not None:
                call.decided = found.id
            return found

        def flushing(number: int) -> None:
            call = CALLS.get(threading.current_thread())
            if call is not None and call.decided:
                call.halt("written")
            flush(number)

        deposits.count = counting  # type: ignore[method-assign]
        commits._written = writing  # type: ignore[method-assign]
        commits._decide = deciding  # type: ignore[method-assign]
        journal.flush = flushing  # type: ignore[method-assign]

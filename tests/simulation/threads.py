"""Stands in for `threading` and for pools of threads: waiting hands the baton on.

Only one fiber runs at a time and none is interrupted between two waits, so a lock is only ever
contended where its holder waits for something.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tests.simulation.loop import MACHINE, Fiber, Stuck, loop_now, running

local = threading.local
get_ident = threading.get_ident
current_thread = threading.current_thread


class Lock:
    """A lock; also what `threading.RLock` is: the same fiber may take it again."""

    def __init__(self) -> None:
        self._owner: object = None
        self._depth = 0
        self._waiting: deque[Fiber] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me: object = running() or "loop"
        while self._owner is not None and self._owner is not me:
            fiber = running()
            if not blocking:
                return False
            if fiber is None:
                if isinstance(self._owner, Fiber) and self._owner.machine.is_down:
                    break
                raise Stuck("the event loop waits for a lock")
            self._waiting.append(fiber)
            try:
                fiber.wait(None)
            finally:
                if fiber in self._waiting:
                    self._waiting.remove(fiber)
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            if self._waiting:
                self._waiting.popleft().wake()

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


RLock = Lock


class Condition:
    """A condition."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = lock or Lock()
        self._waiting: deque[Fiber] = deque()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        fiber = running()
        if fiber is None:
            raise Stuck("the event loop waits for a condition")
        depth, self._lock._depth = self._lock._depth, 1
        self._lock.release()
        self._waiting.append(fiber)
        try:
            fiber.wait(timeout)
        finally:
            was_told = fiber not in self._waiting
            if not was_told:
                self._waiting.remove(fiber)
            if fiber.machine.is_down:
                # Others of the dead machine may hold it: nobody will ever ask again.
                self._lock._owner, self._lock._depth = fiber, depth
            else:
                self._lock.acquire()
                self._lock._depth = depth
        return was_told

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
        while not predicate():
            if not self.wait(timeout) and timeout is not None:
                return bool(predicate())
        return True

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            self._waiting.popleft().wake()

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Event:
    """An event."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Fiber] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for fiber in waiting:
            fiber.wake()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_set:
            return True
        fiber = running()
        assert fiber is not None, "the event loop waits for an event"
        self._waiting.append(fiber)
        try:
            fiber.wait(timeout)
        finally:
            if fiber in self._waiting:
                self._waiting.remove(fiber)
        return self._is_set


class Thread:
    """A thread: a fiber of the machine that starts it."""

    def __init__(
        self,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = False,
    ) -> None:
        self._target = target
        self._args = args
        self.name = name
        self._over = Event()

    def start(self) -> None:
        loop = loop_now()
        Fiber(loop, MACHINE.get(), self._run).start(loop.rng.uniform(0, 0.0005))

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._over.set()

    def join(self, timeout: float | None = None) -> None:
        if running() is not None:
            self._over.wait(timeout)

    def is_alive(self) -> bool:
        return not self._over.is_set()


class InlinePool:
    """A pool that does everything at once, in the fiber that asks."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        pass

    def submit(self, call: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass

"""Virtual time, and fibers: threads of which exactly one runs, handed on by an event loop.

The event loop is the scheduler. A fiber is an operating system's thread that only goes on when a
callback of the loop hands it the baton, and gives the baton back when it waits. So everything that
happens is ordered by the loop's timers, and those by virtual time and the seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from asyncio import base_events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from random import Random
from typing import Any, Final

from tests.support.filesystem import Crash

SWITCHES_MAX: Final = 200_000
"""Hand-overs of one run: more than any has ever needed; a run that spins ends with an error."""


class Stuck(Exception):
    """Nothing can happen any more, or far too much does, and somebody still waits."""


class Machine:
    """What crashes as a whole: its fibers, its tasks, and everything that they touch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_down = False
        self.fibers: dict[Fiber, None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        # Dictionaries: who is first to go must not depend on addresses.

    def check(self) -> None:
        """Raise Crash when the machine has stopped: whoever is left must not do anything more."""
        if self.is_down:
            raise Crash(self.name)


MACHINE: contextvars.ContextVar[Machine] = contextvars.ContextVar("machine")


class _Idle:
    """Stands in for a selector: waiting is what lets virtual time pass."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is left that could happen")
        self._loop.now += timeout
        return []


class SimLoop(base_events.BaseEventLoop):
    """An event loop whose time passes only while it has nothing to do."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng
        self.now = 1_000.0
        self.switches = 0
        self.is_hasty = False
        """Nothing takes time any more: the oracle reads."""
        self._selector = _Idle(self)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # options are the context
        self.set_exception_handler(_note_exception)
        self.broken: list[dict[str, Any]] = []
        self.current: Fiber | None = None
        self.back = threading.Lock()
        self.back.acquire()
        self._workers: list[Worker] = []
        self.idle: list[Worker] = []
        self._readers: dict[int, Callable[[], None]] = {}

    def time(self) -> float:
        """Return virtual seconds."""
        return self.now

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nobody has to be woken: who calls from a fiber holds the baton."""

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Have something simulated polled: see `readable`."""
        self._readers[fd] = partial(callback, *args)
        self.readable(fd, 0.0)

    def remove_reader(self, fd: Any) -> bool:
        """Poll it no more."""
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: int, delay: float) -> None:
        """Have whoever polls `fd` told, after `delay`, that it can be read."""

        def tell() -> None:
            if fd in self._readers:
                self._readers[fd]()

        self.call_later(delay, tell)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run a call in a fiber of the machine that asks."""
        machine = MACHINE.get()
        machine.check()
        future: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Crash:
                self._settle(future, None, Crash(machine.name))
            except BaseException as error:
                self._settle(future, None, error)
            else:
                self._settle(future, result, None)

        Fiber(self, machine, work).start(self.rng.uniform(0, 0.0005))
        return future

    @staticmethod
    def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def worker(self) -> Worker:
        """Return a thread that has nothing to do."""
        if self.idle:
            return self.idle.pop()
        made = Worker(self)
        self._workers.append(made)
        return made

    def close(self) -> None:
        """End all threads."""
        for worker in self._workers:
            worker.end()
        super().close()


def _make_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    # Of the machine that it works for, which need not be the one that gives the occasion.
    machine = MACHINE.get(None) if context is None else context.get(MACHINE)
    if machine is not None:
        machine.tasks[task] = None
        task.add_done_callback(lambda task: machine.tasks.pop(task, None))
    return task


def _note_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), (Crash, asyncio.CancelledError)):
        assert isinstance(loop, SimLoop)
        loop.broken.append(context)


class Worker:
    """A thread of the pool: threads cost more to make than to hand a fiber to."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.go = threading.Lock()
        self.go.acquire()
        self.job: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            job()
            self._loop.idle.append(self)
            self._loop.back.release()

    def end(self) -> None:
        """Have the thread return; one that still waits in a fiber is left to the process."""
        if self in self._loop.idle:
            self.go.release()
            self.thread.join()


class Fiber:
    """One thread of the simulated world."""

    def __init__(self, loop: SimLoop, machine: Machine, work: Callable[[], None]) -> None:
        self._loop = loop
        self._work = work
        self._context = contextvars.copy_context()
        self._context.run(MACHINE.set, machine)
        self._worker: Worker | None = None
        self._tickets = 0
        """Counts waits: a wake-up for an earlier one is late and does nothing."""
        self.machine = machine
        self.is_over = False
        machine.fibers[self] = None

    def start(self, delay: float) -> None:
        """Begin after `delay` virtual seconds."""
        self._loop.call_later(delay, self._wake, self._tickets)

    def _wake(self, ticket: int) -> None:
        if self.is_over or ticket != self._tickets:
            return
        if self._worker is None:
            if self.machine.is_down:
                self._end()
                return
            self._worker = self._loop.worker()
            self._worker.job = lambda: self._context.run(self._main)
        self._switch()

    def _switch(self) -> None:
        loop = self._loop
        loop.switches += 1
        if loop.switches > SWITCHES_MAX:
            raise Stuck("far too many steps: somebody spins")
        assert loop.current is None and self._worker is not None
        loop.current = self
        self._worker.go.release()
        loop.back.acquire()
        loop.current = None

    def _main(self) -> None:
        try:
            self.machine.check()
            self._work()
        except Crash:
            pass
        except BaseException as error:
            self._loop.broken.append({"message": "a fiber broke", "exception": error})
        finally:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self.machine.fibers.pop(self, None)

    # --- called by the fiber itself
    def wait(self, seconds: float | None) -> None:
        """Give the baton away until `wake` is called, or `seconds` have passed."""
        self.machine.check()
        self._tickets += 1
        if seconds is not None:
            self._loop.call_later(max(seconds, 0.0), self._wake, self._tickets)
        worker = self._worker
        assert worker is not None and self._loop.current is self
        self._loop.back.release()
        worker.go.acquire()
        self.machine.check()

    # --- called by whoever has the baton
    def wake(self, delay: float = 0.0) -> None:
        """Have a waiting fiber go on."""
        self._loop.call_later(delay, self._wake, self._tickets)

    def kill(self) -> None:
        """Have a fiber of a machine that is down meet its end at once."""
        if self._worker is not None:
            while not self.is_over:
                self._switch()
        else:
            self._end()


def running() -> Fiber | None:
    """Return the fiber that has the baton; None: the loop itself has it."""
    loop = _LOOPS[-1]
    return loop.current


_LOOPS: list[SimLoop] = []


def loop_now() -> SimLoop:
    """Return the loop of the run under way."""
    return _LOOPS[-1]


def enter(loop: SimLoop) -> None:
    """Make `loop` that of the run under way."""
    _LOOPS.append(loop)


def leave() -> None:
    """End what `enter` began."""
    _LOOPS.pop()


def pause(seconds: float) -> None:
    """Let virtual seconds pass in a fiber, others go on meanwhile; elsewhere do nothing."""
    fiber = running()
    if fiber is not None and not loop_now().is_hasty:
        fiber.wait(seconds)


def crash(machine: Machine) -> None:
    """Stop a machine at this very moment: nothing of it does anything any more.

    Only the loop may call it: a fiber that is to crash its own machine raises Crash after having
    asked the loop.
    """
    machine.is_down = True
    for fiber in list(machine.fibers):
        fiber.kill()
    for task in list(machine.tasks):
        task.cancel()


async def bury(machine: Machine) -> None:
    """Return when nothing is left of a machine that is down."""
    for _ in range(1_000):
        if not (machine.fibers or machine.tasks):
            return
        crash(machine)
        await asyncio.sleep(0)
    raise Stuck(f"{machine.name} does not end: {machine.fibers} {machine.tasks}")

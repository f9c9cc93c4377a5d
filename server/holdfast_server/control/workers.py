"""The threads in which everything that blocks runs, so that nothing blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16
"""More than cores: most of them wait for fsync or for the catalog's single writer."""


class Workers:
    """One bounded pool for catalog, repository and store."""

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="worker")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `call` returns in a thread; fields bound for logs go with it.

        When the waiting task is cancelled, the call still runs to its end.
        """
        bound = partial(copy_context().run, call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, bound)

    def close(self) -> None:
        """Wait for calls under way, and take no more."""
        self._pool.shutdown(wait=True)

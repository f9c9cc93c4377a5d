"""Requests under way, by the token that they came with: they end when the token does.

A long poll, a stream of chunks or an upload may outlive the moment in which its token was checked.
Whoever makes a token worthless ends them, so that «revoked at once» holds for them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from holdfast_contract.errors import NotAuthenticated

UNKNOWN_TOKEN = "the token is unknown, expired or revoked"  # noqa: S105  (what is said of one)


@dataclass(eq=False)
class OpenCall:
    """One request under way."""

    task: asyncio.Task[object]
    is_ended: bool = False
    timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Break it off; it raises NotAuthenticated where it waits."""
        if not self.is_ended:
            self.is_ended = True
            self.task.cancel()

    def end_after(self, seconds: float) -> None:
        """Break it off when so much time has passed: then its token expires."""
        self.timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self.end)


class OpenCalls:
    """Who is being served; belongs to one event loop."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, set[OpenCall]] = {}

    @contextmanager
    def under(self, token_hash: bytes) -> Iterator[OpenCall]:
        """Serve a request inside the block; enter it before the token is looked up.

        Raises:
            NotAuthenticated: the token became worthless meanwhile.
        """
        task = asyncio.current_task()
        assert task is not None
        call = OpenCall(task)
        self._by_token.setdefault(token_hash, set()).add(call)
        try:
            yield call
        except asyncio.CancelledError:
            # Uncancelled, as asyncio.timeout does: somebody else may want the task to end as well.
            if call.is_ended and task.uncancel() == 0:
                raise NotAuthenticated(UNKNOWN_TOKEN) from None
            raise
        finally:
            if call.timer is not None:
                call.timer.cancel()
            self._leave(token_hash, call)

    def _leave(self, token_hash: bytes, call: OpenCall) -> None:
        calls = self._by_token[token_hash]
        calls.discard(call)
        if not calls:
            del self._by_token[token_hash]

    def end(self, token_hash: bytes) -> None:
        """Break off what is under way with this token, except the request that asks for it."""
        own = asyncio.current_task()
        for call in list(self._by_token.get(token_hash, ())):
            if call.task is not own:
                call.end()

    def __len__(self) -> int:
        return sum(map(len, self._by_token.values()))

"""Doing the same again, by error class: wait with full jitter, or prove the identity anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from holdfast_agent.ports import Cancel
from holdfast_contract.clock import Clock
from holdfast_contract.errors import (
    HoldfastError,
    NoSpace,
    NotAuthenticated,
    StoreFailed,
    TooMany,
    Unreachable,
)
from holdfast_contract.logs import get_logger

_log = get_logger(__name__)
_T = TypeVar("_T")

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_CEILING_SECONDS = 15.0
UNFIT_SECONDS = 60.0
"""How long a server whose store is full or broken is asked again before the job fails."""


class Backoff:
    """Waiting times with full jitter: up to 1 s, doubled at each step, up to 15 s."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._ceiling = BACKOFF_FIRST_SECONDS

    def next(self) -> float:
        """Return the next time to wait, seconds."""
        ceiling = self._ceiling
        self._ceiling = min(ceiling * 2, BACKOFF_CEILING_SECONDS)
        return self._uniform(0, ceiling)

    def reset(self) -> None:
        """Begin again with short times."""
        self._ceiling = BACKOFF_FIRST_SECONDS


class Credential:
    """The connection token of the moment; None while there is no connection."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._token: str | None = None

    def set(self, token: str | None) -> None:
        """Install a new token (the control channel is up) or none (it is down)."""
        with self._changed:
            self._token = token
            self._changed.notify_all()

    def bearer(self) -> str:
        """Return the token.

        Raises:
            NotAuthenticated: not connected at the moment.
        """
        token = self._token
        if token is None:
            raise NotAuthenticated("not connected to the server")
        return token

    def wait_for_other(self, than: str | None, cancel: Cancel) -> None:
        """Block until there is a token and it is not `than`."""
        with self._changed:
            while self._token is None or self._token == than:
                cancel.check()
                self._changed.wait(0.25)

    @property
    def token(self) -> str | None:
        """The token of the moment."""
        return self._token


class Attempts(Protocol):
    """One call and its repetitions."""

    def failed(self, error: HoldfastError) -> None:
        """Return when the call may be repeated; raise `error` (or Cancelled) when it may not."""


class Repeating(Protocol):
    """How calls are repeated."""

    def begin(self) -> Attempts:
        """Return the bookkeeping of a new call."""


class NoRepeat:
    """Every error is final: for a person who waits and can decide."""

    def begin(self) -> NoRepeat:
        """Return the bookkeeping of a new call: none."""
        return self

    def failed(self, error: HoldfastError) -> None:
        """Raise `error`."""
        raise error


class Retrying:
    """Repeats calls of one job until they succeed, fail for good, or the job is cancelled.

    There is no limit on the time without a server: a job goes on when the server is back. A server
    that answers, but whose store is full or broken, is asked for a minute.
    """

    def __init__(
        self,
        credential: Credential,
        cancel: Cancel,
        clock: Clock,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._credential = credential
        self._cancel = cancel
        self._clock = clock
        self._uniform = uniform

    def begin(self) -> Attempts:
        """Return the bookkeeping of a new call.

        Raises:
            Cancelled: the job was cancelled.
        """
        self._cancel.check()
        return _Attempts(self._credential, self._cancel, self._clock, Backoff(self._uniform))


class _Attempts:
    def __init__(
        self, credential: Credential, cancel: Cancel, clock: Clock, backoff: Backoff
    ) -> None:
        self._credential = credential
        self._cancel = cancel
        self._clock = clock
        self._backoff = backoff
        self._token = credential.token
        self._unfit_since: float | None = None

    def failed(self, error: HoldfastError) -> None:
        self._cancel.check()
        if not isinstance(error, _PASSING):
            raise error
        if isinstance(error, (NoSpace, StoreFailed)):
            now = self._clock.monotonic()
            self._unfit_since = now if self._unfit_since is None else self._unfit_since
            if now - self._unfit_since > UNFIT_SECONDS:
                raise error
        _log.info("request will be repeated", code=error.code, reason=error.message)
        if isinstance(error, NotAuthenticated):
            self._credential.wait_for_other(self._token, self._cancel)
            self._token = self._credential.token
        else:
            self._cancel.wait(self._backoff.next())
        self._cancel.check()


def call(repeating: Repeating, action: Callable[[], _T]) -> _T:
    """Return what `action` returns, repeating it as `repeating` allows.

    Raises:
        HoldfastError: an error that no repetition mends, or Cancelled.
    """
    attempts = repeating.begin()
    while True:
        try:
            return action()
        except HoldfastError as error:
            attempts.failed(error)


# MissingChunks may be retried too, but wants another commit and not the same one.
_PASSING = (Unreachable, NotAuthenticated, NoSpace, TooMany, StoreFailed)

"""Repeating by error class: what passes by itself is repeated, the rest is told at once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.transport.retry import Backoff, Credential, NoRepeat, Retrying, call
from holdfast_contract.errors import (
    Cancelled,
    Damaged,
    HoldfastError,
    MissingChunks,
    NoSpace,
    NotAuthenticated,
    Refused,
    StoreFailed,
    Unreachable,
    error_classes,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now


class Cancel(JobCancel):
    """Notes the waits instead of waiting."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []

    def wait(self, timeout_seconds: float) -> bool:
        self.waits.append(timeout_seconds)
        self.clock.now += max(timeout_seconds, 0.5)
        return self.is_set()


class Flaky:
    """Raises the given errors one after the other, then returns."""

    def __init__(self, *errors: HoldfastError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def longest(low: float, high: float) -> float:
    assert low == 0
    return high


def retrying(cancel: Cancel, credential: Credential | None = None) -> Retrying:
    if credential is None:
        credential = Credential()
        credential.set("token")
    return Retrying(credential, cancel, cancel.clock, longest)


def test_a_server_that_is_away_is_asked_until_it_is_back() -> None:
    cancel = Cancel(Clock())
    action = Flaky(*[Unreachable("away")] * 30)
    assert call(retrying(cancel), action) == "done"
    assert action.calls == 31
    assert cancel.waits[:6] == [1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("error", [Refused("no"), Damaged("bad"), MissingChunks("other commit")])
def test_what_a_repetition_cannot_mend_is_told_at_once(error: HoldfastError) -> None:
    cancel = Cancel(Clock())
    action = Flaky(error)
    with pytest.raises(type(error)):
        call(retrying(cancel), action)
    assert action.calls == 1 and cancel.waits == []


@pytest.mark.parametrize("error", [NoSpace("full"), StoreFailed("broken")])
def test_an_unfit_store_is_asked_for_a_minute_and_no_longer(error: HoldfastError) -> None:
    cancel = Cancel(Clock())
    action = Flaky(*[error] * 1000)
    with pytest.raises(type(error)):
        call(retrying(cancel), action)
    assert 60 < cancel.clock.now <= 60 + 15


def test_an_expired_token_is_replaced_before_the_call_is_repeated() -> None:
    clock, credential = Clock(), Credential()
    credential.set("old")
    cancel = Cancel(clock)
    seen: list[str] = []

    def action() -> str:
        seen.append(credential.bearer())
        if seen[-1] == "old":
            threading.Timer(0.05, credential.set, ("new",)).start()
            raise NotAuthenticated("expired")
        return "done"

    assert call(retrying(cancel, credential), action) == "done"
    assert seen == ["old", "new"]


def test_a_cancel_ends_the_waiting_for_a_connection() -> None:
    credential, cancel = Credential(), JobCancel()
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(Cancelled):
        credential.wait_for_other(None, cancel)


def test_a_cancelled_job_begins_no_call() -> None:
    cancel = Cancel(Clock())
    cancel.set()
    action = Flaky()
    with pytest.raises(Cancelled):
        call(retrying(cancel), action)
    assert action.calls == 0


def test_a_person_who_waits_is_told_the_first_error() -> None:
    action = Flaky(Unreachable("away"))
    with pytest.raises(Unreachable):
        call(NoRepeat(), action)
    assert action.calls == 1


@given(st.integers(1, 40))
def test_waiting_times_stay_below_their_ceiling_and_begin_anew_after_a_reset(steps: int) -> None:
    backoff = Backoff(longest)
    times = [backoff.next() for _ in range(steps)]
    assert times == sorted(times) and max(times) <= 15 and times[0] == 1
    backoff.reset()
    assert backoff.next() == 1


def test_no_token_means_not_authenticated_without_asking_the_server() -> None:
    with pytest.raises(NotAuthenticated):
        Credential().bearer()


def test_every_code_belongs_to_one_class() -> None:
    classes = error_classes()
    assert len(classes) == len({cls.code for cls in classes.values()})

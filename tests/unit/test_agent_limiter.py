"""The rate limit: how long senders wait, and that changes act at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.transport.limiter import RateLimit
from holdfast_contract.errors import Cancelled


class WaitingClock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now


class WaitingCancel(JobCancel):
    """Waits by moving the clock."""

    def __init__(self, clock: WaitingClock) -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout_seconds: float) -> bool:
        self.clock.now += timeout_seconds
        return self.is_set()


@given(rate=st.integers(1 << 10, 1 << 30), sizes=st.lists(st.integers(1, 1 << 20), max_size=20))
def test_a_limited_sender_needs_the_time_that_the_rate_says(rate: int, sizes: list[int]) -> None:
    clock = WaitingClock()
    limit, cancel = RateLimit(clock, rate), WaitingCancel(clock)
    for size in sizes:
        limit.take(size, cancel)
    assert clock.now - 100.0 == pytest.approx(sum(sizes) / rate, rel=1e-6, abs=1e-6)


def test_without_a_limit_nobody_waits() -> None:
    clock = WaitingClock()
    RateLimit(clock).take(1 << 40, WaitingCancel(clock))
    assert clock.now == 100.0


def test_time_that_passed_without_sending_is_not_saved_up() -> None:
    clock = WaitingClock()
    limit, cancel = RateLimit(clock, 1000), WaitingCancel(clock)
    limit.take(1000, cancel)
    clock.now += 60
    before = clock.now
    limit.take(2000, cancel)
    assert clock.now - before == pytest.approx(2)


def test_a_lifted_limit_ends_the_waiting_of_later_slices() -> None:
    clock = WaitingClock()
    limit, cancel = RateLimit(clock, 10), WaitingCancel(clock)
    limit.take(100, cancel)
    limit.set(0)
    before = clock.now
    limit.take(1 << 30, cancel)
    assert clock.now == before


def test_a_cancelled_job_sends_nothing_more() -> None:
    clock = WaitingClock()
    limit, cancel = RateLimit(clock, 10), WaitingCancel(clock)
    cancel.set()
    with pytest.raises(Cancelled):
        limit.take(1, cancel)


@given(parts=st.lists(st.binary(max_size=5000), max_size=10), rate=st.integers(0, 200_000))
def test_slices_are_the_bytes_of_the_parts_in_order(parts: list[bytes], rate: int) -> None:
    clock = WaitingClock()
    limit = RateLimit(clock, rate)
    got = b"".join(bytes(piece) for piece in limit.slices(parts, WaitingCancel(clock)))
    assert got == b"".join(parts)


def test_a_slow_sender_sends_small_slices_so_that_a_cancel_acts_at_once() -> None:
    clock = WaitingClock()
    assert RateLimit(clock, 80_000).slice_bytes() <= 8_000
    assert RateLimit(clock, 1).slice_bytes() == 4096
    assert RateLimit(clock, 0).slice_bytes() == 1 << 20

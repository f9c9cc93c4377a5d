"""The allocator's thresholds: set where there are any, and no error where there are none."""

from __future__ import annotations

import subprocess
import sys
import weakref

from holdfast_agent.runtime.allocator import (
    BUFFER_BYTES_MIN,
    return_freed_buffers,
    return_unused,
)

CHURN = """
import sys
from holdfast_agent.runtime.allocator import return_freed_buffers
if sys.argv[1] == "fixed":
    assert return_freed_buffers()
# One large buffer is freed, as glibc learns from; then gaps come to be below a small one.
bytes(bytearray(24 << 20))
large = [bytearray(1 << 20) for _ in range(60)]
kept = [bytearray(b"x" * 2000)]
for buffer in large:
    buffer[:] = b"x" * len(buffer)
del buffer, large
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1])
"""


class Library:
    def __init__(self, answer: int) -> None:
        self.asked: list[tuple[int, int]] = []
        self._answer = answer

    def mallopt(self, option: int, value: int) -> int:
        self.asked.append((option, value))
        return self._answer


def test_both_thresholds_are_set() -> None:
    library = Library(1)
    assert return_freed_buffers(library)
    assert library.asked == [(-3, BUFFER_BYTES_MIN), (-1, BUFFER_BYTES_MIN)]


def test_a_refusal_is_told() -> None:
    assert not return_freed_buffers(Library(0))


def test_a_library_without_thresholds_is_no_error() -> None:
    assert not return_freed_buffers(object())


def resident_kib(how: str) -> int:
    command = [sys.executable, "-c", CHURN, how]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def test_freed_buffers_leave_the_process() -> None:
    assert resident_kib("fixed") + 8_000 < resident_kib("as it is")


class Trimmed:
    def __init__(self) -> None:
        self.kept: list[int] = []

    def malloc_trim(self, kept: int) -> int:
        self.kept.append(kept)
        return 1


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_only_a_cycle_holds_is_freed_before_memory_is_given_back() -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    del knot
    library = Trimmed()
    return_unused(library)
    assert gone() is None
    assert library.kept == [0]


def test_a_library_that_cannot_give_back_is_no_error() -> None:
    return_unused(object())

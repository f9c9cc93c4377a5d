"""The allocator's thresholds: set where there are any, and no error where there are none."""

from __future__ import annotations

import subprocess
import sys

from holdfast_agent.runtime.allocator import BUFFER_BYTES_MIN, return_freed_buffers

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

"""What the C library's allocator keeps: freed buffers go back to the kernel at once.

glibc learns from the first freed buffer of some MiB to cut later ones from its heap, where they
leave gaps that stay resident. With a fixed threshold the peak of a mixed backup of 300 MB fell from
144-166 MiB to 123-134 MiB, for the same CPU time.
"""

from __future__ import annotations

from typing import Final

BUFFER_BYTES_MIN: Final = 512 * 1024
"""From this size a buffer is a mapping of its own."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def return_freed_buffers(library: object | None = None) -> bool:
    """Fix the allocator's thresholds; return False where the C library has none to fix (musl).

    `library` stands for the process's own C library.
    """
    import ctypes  # with the first job: an agent that idles does without

    set_option = getattr(library or ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    options = (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    return all(set_option(option, BUFFER_BYTES_MIN) == 1 for option in options)

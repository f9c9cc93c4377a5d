"""How an operating system's error becomes one of the product's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast_contract.errors import HoldfastError, NoSpace, StoreFailed

_FULL = (errno.ENOSPC, errno.EDQUOT)


def store_error(exc: OSError, doing: str, name: str) -> HoldfastError:
    """Return the error for `exc` while `doing` (a verb) something to the object `name`."""
    reason = exc.strerror or str(exc)
    if exc.errno in _FULL:
        return NoSpace(
            f"the store is full: cannot {doing} {name}",
            hint="free room in the store, or make its file system larger",
            object=name,
        )
    return StoreFailed(
        f"the store cannot {doing} {name}: {reason}",
        hint="look at the disk below the store, and at the kernel's log",
        object=name,
    )


@contextmanager
def translated(doing: str, name: str) -> Iterator[None]:
    """Raise what `store_error` makes of an OSError inside the block."""
    try:
        yield
    except OSError as exc:
        raise store_error(exc, doing, name) from exc

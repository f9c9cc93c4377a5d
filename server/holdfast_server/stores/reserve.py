"""The reserve: room that ordinary uploads may not take, so that commits and deletes still work."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from holdfast_contract.errors import NoSpace
from holdfast_contract.limits import MIB
from holdfast_server.stores.filesystem import FreeSpace
from holdfast_server.stores.port import Space

RESERVE_BYTES_MIN = 16 * MIB
RESERVE_BYTES_MAX = 1024 * MIB


def reserve_bytes(total_bytes: int) -> int:
    """Return 2 % of the file system, at least 16 MiB, at most 1 GiB; 0 where it does not tell."""
    if total_bytes == 0:
        return 0
    return min(max(total_bytes // 50, RESERVE_BYTES_MIN), RESERVE_BYTES_MAX)


class Reserve:
    """Admits objects by what they may grow to, so that many at once cannot outgrow the room.

    Bytes of admitted objects that are written already count twice until they are released: that
    refuses a little early, never too late.
    """

    def __init__(self, free: Callable[[], FreeSpace]) -> None:
        self._free = free
        self._lock = Lock()
        self._admitted_bytes = 0

    def admit(self, size_bytes: int, *, may_use_reserve: bool) -> None:
        """Count `size_bytes` as about to be written, until `release`.

        Raises:
            NoSpace: the rest would be less than the reserve.
        """
        with self._lock:
            room = self._free()
            rest = room.available_bytes - self._admitted_bytes - size_bytes
            reserve = reserve_bytes(room.total_bytes)
            if room.total_bytes and not may_use_reserve and rest < reserve:
                raise NoSpace(
                    f"the store is full: {room.available_bytes} bytes are free, "
                    f"{reserve} are kept in reserve",
                    hint="free room in the store, or make its file system larger",
                    free_bytes=room.available_bytes,
                    reserve_bytes=reserve,
                )
            self._admitted_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Take back what `admit` counted: the object is stored or dropped."""
        with self._lock:
            self._admitted_bytes -= size_bytes
            assert self._admitted_bytes >= 0

    def space(self) -> Space:
        """Return the room as it is now."""
        room = self._free()
        return Space(room.total_bytes, room.available_bytes, reserve_bytes(room.total_bytes))

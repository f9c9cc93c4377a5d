"""The port of every store: create-only objects, read by range.

Rules (docs/protocol.md): `put` never overwrites; an object is there completely or not at all;
when `put` or `commit` has returned, the object survives a crash of the machine; `list` is a hint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from holdfast_contract.ids import ObjectName


@dataclass(frozen=True)
class Space:
    """Room of a store, in bytes; all zero where the store cannot tell."""

    total_bytes: int
    free_bytes: int
    """What may still be written, the reserve included."""
    reserve_bytes: int
    """Kept for what must always work: refs, manifests, journal, catalog."""


class Incoming(Protocol):
    """One object while its bytes arrive; leaving the block without `commit` drops them."""

    @property
    def name(self) -> ObjectName:
        """The name that the object will have."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises:
            TooLarge: more than `bytes_max` of `begin`.
            NoSpace, StoreFailed: the bytes are gone; begin anew.
        """

    def commit(self) -> None:
        """Make the object durable under its name.

        Raises:
            Conflict: an object of that name exists; it is unchanged.
            NoSpace, StoreFailed: the bytes are gone; nothing stands under the name.
        """

    def abort(self) -> None:
        """Drop the bytes; does nothing after `commit` or a failure."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Store(Protocol):
    """A place for objects. Every method raises InvalidInput for what is no object name."""

    def put(
        self,
        name: ObjectName,
        data: bytes | bytearray | memoryview,
        *,
        may_use_reserve: bool = False,
    ) -> None:
        """Store `data` under `name`, durable on return.

        Raises:
            Conflict: an object of that name exists; it is unchanged.
            NoSpace: full, or into the reserve without `may_use_reserve`.
            StoreFailed: nothing stands under the name.
        """

    def begin(self, name: ObjectName, *, bytes_max: int, may_use_reserve: bool = False) -> Incoming:
        """Begin an object of at most `bytes_max` bytes; nothing is seen of it before its commit.

        Raises:
            NoSpace: `bytes_max` more would go into the reserve.
            StoreFailed: the store refuses to work.
        """

    def get(self, name: ObjectName, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on; without `length`, all to the end.

        Raises:
            NotFound: no such object.
            Damaged: the object ends before the range does, or is no plain file.
            StoreFailed: it could not be read now.
        """

    def get_into(self, name: ObjectName, offset: int, rooms: Sequence[memoryview]) -> None:
        """Fill `rooms`, one after the other, with what stands in the object from `offset` on.

        Raises:
            As `get`; what stands in the rooms then is nothing.
        """

    def size(self, name: ObjectName) -> int:
        """Return the object's length in bytes.

        Raises:
            NotFound: no such object.
            Damaged: it is no plain file.
        """

    def settle(self, name: ObjectName) -> None:
        """Make sure that an object found under `name` survives a crash of the machine.

        Its `put` may have been cut off between the name and the end of the write order.

        Raises:
            NotFound: no such object.
            StoreFailed: it is not known to be durable.
        """

    def delete(self, name: ObjectName) -> None:
        """Delete the object; absent is fine. Durable on return."""

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """Yield the names below the folder `prefix`, sorted in each folder.

        A hint: objects that come or go meanwhile may be in it or not.
        """

    def space(self) -> Space:
        """Return how much room there is; also tells whether the store answers at all.

        Raises:
            StoreFailed: it does not.
        """

    def close(self) -> None:
        """Let go of the store; no other method may be called afterwards."""

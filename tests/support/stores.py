"""A store in memory: the same rules as the real one, no disk, and a crash on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from types import TracebackType
from typing import Self

from holdfast_contract.errors import Conflict, Damaged, InvalidInput, NoSpace, NotFound, TooLarge
from holdfast_contract.errors import StoreFailed as Failed
from holdfast_contract.ids import ObjectName
from holdfast_server.stores.names import check_object_name, check_prefix
from holdfast_server.stores.port import Space
from holdfast_server.stores.reserve import reserve_bytes


class MemoryStore:
    """Objects in a dictionary. `objects` may be read and spoiled by a test.

    What has been committed survives `crash`; what is still coming in does not, and its Incoming
    fails from then on. `before` is called with (verb, name) ahead of every effect and may raise.
    """

    def __init__(self, *, capacity: int = 1 << 40) -> None:
        self.objects: dict[ObjectName, bytes] = {}
        self.capacity = capacity
        self.before: Callable[[str, str], None] = lambda verb, name: None
        self.generation = 0
        self.admitted = 0
        self._lock = Lock()

    def crash(self) -> None:
        """Forget everything that was not durable."""
        self.generation += 1
        self.admitted = 0
        self.before = lambda verb, name: None

    def put(
        self,
        name: ObjectName,
        data: bytes | bytearray | memoryview,
        *,
        may_use_reserve: bool = False,
    ) -> None:
        with self.begin(
            name, bytes_max=memoryview(data).nbytes, may_use_reserve=may_use_reserve
        ) as incoming:
            incoming.write(data)
            incoming.commit()

    def begin(
        self, name: ObjectName, *, bytes_max: int, may_use_reserve: bool = False
    ) -> MemoryIncoming:
        check_object_name(name)
        self.before("begin", name)
        with self._lock:
            room = self.space()
            rest = room.free_bytes - self.admitted - bytes_max
            if rest < (0 if may_use_reserve else room.reserve_bytes):
                raise NoSpace("the store is full", object=name)
            self.admitted += bytes_max
        return MemoryIncoming(self, name, bytes_max)

    def get(self, name: ObjectName, offset: int = 0, length: int | None = None) -> bytes:
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput("not a range", object=name)
        self.before("get", name)
        content = self._content(name)
        end = len(content) if length is None else offset + length
        if max(offset, end) > len(content):
            raise Damaged(f"object {name} is damaged: too short", object=name)
        return content[offset:end]

    def get_into(self, name: ObjectName, offset: int, rooms: Sequence[memoryview]) -> None:
        data = memoryview(self.get(name, offset, sum(map(len, rooms))))
        for room in rooms:
            room[:], data = data[: len(room)], data[len(room) :]

    def size(self, name: ObjectName) -> int:
        self.before("size", name)
        return len(self._content(name))

    def settle(self, name: ObjectName) -> None:
        self.before("settle", name)
        self._content(name)

    def delete(self, name: ObjectName) -> None:
        check_object_name(name)
        self.before("delete", name)
        self.objects.pop(name, None)

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        folder = "".join(part + "/" for part in check_prefix(prefix))
        self.before("list", prefix)
        yield from sorted(name for name in self.objects if name.startswith(folder))

    def space(self) -> Space:
        used = sum(map(len, self.objects.values()))
        free = max(self.capacity - used, 0)
        return Space(self.capacity, free, reserve_bytes(self.capacity))

    def close(self) -> None:
        self.crash()

    def _content(self, name: ObjectName) -> bytes:
        try:
            return self.objects[check_object_name(name)]
        except KeyError:
            raise NotFound(f"no such object: {name}", object=name) from None

    def finish(self, name: ObjectName, content: bytes) -> None:
        with self._lock:
            if name in self.objects:
                raise Conflict(f"the object exists: {name}", object=name)
            self.objects[name] = content


class MemoryIncoming:
    """One object while its bytes arrive."""

    def __init__(self, store: MemoryStore, name: ObjectName, bytes_max: int) -> None:
        self._store = store
        self._name = name
        self._bytes_max = bytes_max
        self._content = bytearray()
        self._generation = store.generation
        self._is_over = False

    @property
    def name(self) -> ObjectName:
        return self._name

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._require_open()
        if len(self._content) + memoryview(data).nbytes > self._bytes_max:
            self.abort()
            raise TooLarge(f"more than the announced {self._bytes_max} bytes", object=self._name)
        try:
            self._store.before("write", self._name)
        except BaseException:
            self.abort()
            raise
        self._content += memoryview(data).cast("B")

    def commit(self) -> None:
        self._require_open()
        try:
            self._store.before("commit", self._name)
            self._store.finish(self._name, bytes(self._content))
        finally:
            self.abort()

    def abort(self) -> None:
        if not self._is_over and self._generation == self._store.generation:
            self._store.admitted -= self._bytes_max
        self._is_over = True

    def _require_open(self) -> None:
        if self._is_over or self._generation != self._store.generation:
            raise Failed(f"the upload is over: {self._name}", object=self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

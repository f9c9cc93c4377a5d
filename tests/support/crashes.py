"""Stops a repository at any one of its steps: every store call and transaction, before or after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from holdfast_contract.ids import ObjectName
from holdfast_server.catalog.connection import Catalog
from holdfast_server.stores.port import Incoming, Space, Store
from tests.support.filesystem import Crash

T = TypeVar("T")


class Steps:
    """Counts steps, and stops the machine at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.taken: list[str] = []
        self.is_down = False

    def around(self, name: str, call: Callable[[], T]) -> T:
        """Do `call` with a step before it and one after it: there its answer is lost."""
        self._step(f"before {name}")
        result = call()
        self._step(f"after {name}")
        return result

    def _step(self, name: str) -> None:
        if self.is_down:
            raise Crash(name)
        self.taken.append(name)
        if self.stop_at is not None and len(self.taken) == self.stop_at:
            self.is_down = True
            raise Crash(name)


class SteppingStore:
    """A store whose every call is a step."""

    def __init__(self, inner: Store, steps: Steps) -> None:
        self.inner = inner
        self.steps = steps

    def put(self, name: ObjectName, data: Any, *, may_use_reserve: bool = False) -> None:
        self.steps.around(
            f"put {_folder(name)}",
            lambda: self.inner.put(name, data, may_use_reserve=may_use_reserve),
        )

    def begin(self, name: ObjectName, *, bytes_max: int, may_use_reserve: bool = False) -> Incoming:
        begun = self.steps.around(
            f"begin {_folder(name)}",
            lambda: self.inner.begin(name, bytes_max=bytes_max, may_use_reserve=may_use_reserve),
        )
        return SteppingIncoming(begun, self.steps)

    def get(self, name: ObjectName, offset: int = 0, length: int | None = None) -> bytes:
        return self.steps.around(
            f"get {_folder(name)}", lambda: self.inner.get(name, offset, length)
        )

    def get_into(self, name: ObjectName, offset: int, rooms: Sequence[memoryview]) -> None:
        self.steps.around(f"get {_folder(name)}", lambda: self.inner.get_into(name, offset, rooms))

    def size(self, name: ObjectName) -> int:
        return self.inner.size(name)

    def settle(self, name: ObjectName) -> None:
        self.steps.around(f"settle {_folder(name)}", lambda: self.inner.settle(name))

    def delete(self, name: ObjectName) -> None:
        self.steps.around(f"delete {_folder(name)}", lambda: self.inner.delete(name))

    def list(self, prefix: str = "") -> Any:
        return self.inner.list(prefix)

    def space(self) -> Space:
        return self.inner.space()

    def close(self) -> None:
        self.inner.close()


class SteppingIncoming:
    """An object whose commit is a step."""

    def __init__(self, inner: Incoming, steps: Steps) -> None:
        self.inner = inner
        self.steps = steps

    @property
    def name(self) -> ObjectName:
        return self.inner.name

    def write(self, data: Any) -> None:
        self.inner.write(data)

    def commit(self) -> None:
        self.steps.around(f"commit {_folder(self.name)}", self.inner.commit)

    def abort(self) -> None:
        if not self.steps.is_down:
            self.inner.abort()

    def __enter__(self) -> SteppingIncoming:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


def _folder(name: str) -> str:
    return name.partition("/")[0]


def step_transactions(catalog: Catalog, steps: Steps) -> None:
    """Let every transaction that writes be a step."""
    write = catalog.write

    def stepping(work: Callable[[Any], T]) -> T:
        return steps.around(f"write {work.__qualname__.split('.')[0]}", lambda: write(work))

    catalog.write = stepping  # type: ignore[method-assign]

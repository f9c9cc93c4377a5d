"""One object of a local store while its bytes arrive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from holdfast_contract.errors import StoreFailed, TooLarge
from holdfast_contract.ids import ObjectName
from holdfast_contract.logs import get_logger
from holdfast_server.stores.failures import translated
from holdfast_server.stores.filesystem import FileSystem

_log = get_logger(__name__)


class Temporary:
    """A file that no object name leads to yet. Raises OSError."""

    def __init__(self, disk: FileSystem, folder: int, name: str, descriptor: int) -> None:
        self._disk = disk
        self._folder = folder
        self._descriptor: int | None = descriptor
        self.name = name

    @property
    def is_open(self) -> bool:
        """Whether bytes can still be appended."""
        return self._descriptor is not None

    def append(self, view: memoryview) -> None:
        """Write all of `view`, in as many calls as the kernel wants."""
        assert self._descriptor is not None
        while view:
            taken = self._disk.write(self._descriptor, view)
            if taken <= 0:
                raise OSError("the write took no bytes")
            view = view[taken:]

    def seal(self) -> int:
        """Make the bytes durable and close the file; return how many the disk says it has.

        Synced once only: after an fsync that failed, a second one would succeed and mean nothing.
        """
        assert self._descriptor is not None
        descriptor, self._descriptor = self._descriptor, None
        try:
            self._disk.sync(descriptor)
            return self._disk.status(descriptor).size
        finally:
            self._disk.close(descriptor)

    def remove(self) -> None:
        """Close the file where it is open, and take its name away."""
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            if descriptor is not None:
                self._disk.close(descriptor)
        self._disk.unlink(self.name, self._folder)


class LocalIncoming:
    """An object in a temporary file, until `commit` gives it its name."""

    def __init__(
        self,
        name: ObjectName,
        bytes_max: int,
        temporary: Temporary,
        *,
        publish: Callable[[str, ObjectName], None],
        release: Callable[[int], None],
    ) -> None:
        self._name = name
        self._bytes_max = bytes_max
        self._written = 0
        self._temporary = temporary
        self._publish = publish
        self._release = release
        self._is_over = False

    @property
    def name(self) -> ObjectName:
        """The name that the object will have."""
        return self._name

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; see `Incoming.write`."""
        self._require_open()
        view = memoryview(data).cast("B")
        try:
            if self._written + len(view) > self._bytes_max:
                raise TooLarge(
                    f"more than the announced {self._bytes_max} bytes: {self._name}",
                    object=self._name,
                )
            with translated("write", self._name):
                self._temporary.append(view)
            self._written += len(view)
        except BaseException:
            self.abort()
            raise

    def commit(self) -> None:
        """Make the object durable under its name; see `Incoming.commit`."""
        self._require_open()
        try:
            with translated("sync", self._name):
                kept = self._temporary.seal()
            if kept != self._written:
                raise StoreFailed(
                    f"the store kept {kept} of {self._written} bytes of {self._name}",
                    object=self._name,
                )
            self._publish(self._temporary.name, self._name)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the temporary file; an object that was committed has its own name by now."""
        if self._is_over:
            return
        self._is_over = True
        self._release(self._bytes_max)
        try:
            self._temporary.remove()
        except OSError as exc:  # the next start removes it
            _log.warning("a temporary file stays", object=self._name, error=exc)

    def _require_open(self) -> None:
        if self._is_over:
            raise StoreFailed(f"the upload is over: {self._name}", object=self._name)

    def __enter__(self) -> Self:
        """Begin a block at whose end the bytes are dropped, unless committed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what was not committed."""
        self.abort()

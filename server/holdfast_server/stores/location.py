"""Store URLs: which kind of store, and where."""

from __future__ import annotations

from pathlib import PurePosixPath

from holdfast_contract.errors import UsageError
from holdfast_server.stores.filesystem import FileSystem
from holdfast_server.stores.local import LocalStore
from holdfast_server.stores.port import Store


def check_store_url(url: str) -> str:
    """Return the absolute path that `file:/path` (or `file:///path`) names, taken literally.

    Raises:
        UsageError: another scheme, or a path that is not absolute.
    """
    scheme, colon, path = url.partition(":")
    if not colon or "/" in scheme:
        raise UsageError("the store is no URL", hint="a directory is written file:/path")
    if scheme != "file":
        raise UsageError(
            f"stores of the kind {scheme[:20]!r} are not supported yet",
            hint="a directory is written file:/path",
        )
    if path.startswith("//"):
        path = path[2:]
    if not path.startswith("/") or "\0" in path:
        raise UsageError(
            f"not an absolute path: {path[:120]!r}", hint="a directory is written file:/path"
        )
    return str(PurePosixPath("/", path.lstrip("/")))


def open_store(url: str, filesystem: FileSystem | None = None) -> Store:
    """Open the store at `url`: locked, cleaned up and probed; see `LocalStore.open`.

    Raises:
        UsageError: the URL, or the directory above it.
        Conflict: another process has it open.
        StoreFailed: the file system below cannot keep what the store promises.
    """
    return LocalStore.open(check_store_url(url), filesystem)

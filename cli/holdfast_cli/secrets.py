"""Files that hold secrets: new, mode 0600, whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from holdfast_contract.errors import Conflict, UsageError


class SecretFile:
    """A file made before the secret exists, and removed again when the block fails.

    `path` None: nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        self._is_written = False
        self._is_kept = False

    def __enter__(self) -> SecretFile:
        """Make the empty file.

        Raises:
            Conflict: it exists.
            UsageError: it cannot be made.
        """
        if self._path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                self._fd = os.open(self._path, flags, 0o600)
            except FileExistsError as exc:
                raise Conflict(f"{self._path} exists already", hint="name another file") from exc
            except OSError as exc:
                raise UsageError(f"cannot write {self._path}: {exc.strerror}") from exc
        return self

    def write(self, text: str) -> None:
        """Write the secret, durably.

        Raises:
            UsageError: it could not be written.
        """
        if self._path is None:
            return
        try:
            with os.fdopen(self._fd, "w", closefd=False) as file:
                file.write(text)
            os.fsync(self._fd)
        except OSError as exc:
            raise UsageError(f"cannot write {self._path}: {exc.strerror}") from exc
        self._is_written = True

    def keep(self) -> None:
        """Keep what was written even if the block fails."""
        self._is_kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; remove a file that nothing was written to, or whose secret came to nothing."""
        if self._path is None:
            return
        os.close(self._fd)
        if not self._is_written or (error is not None and not self._is_kept):
            self._path.unlink(missing_ok=True)

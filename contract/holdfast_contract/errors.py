"""Every error that crosses a boundary: stable code, retry class, exit code, HTTP status.

Third-party errors stop at the adapter that called the library and become one of these.
One unreadable file is a finding in a job's report, not an error of this kind.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Retry(Enum):
    """Whether doing the same again can help."""

    NEVER = "never"
    LATER = "later"
    """The condition may pass by itself: wait (with jitter) and repeat the same call."""
    RECONNECT = "reconnect"
    """Prove the identity again, then repeat the same call."""


class HoldfastError(Exception):
    """Root of all errors of the product.

    `message` is one line without secrets, keys or file contents; `hint` is one line that says
    what the reader can do; `details` are typed fields for programs (JSON values only).
    """

    code: ClassVar[str] = "internal"
    retry: ClassVar[Retry] = Retry.NEVER
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details


class InternalError(HoldfastError):
    """Something that should not happen did; the log has more."""


class UsageError(HoldfastError):
    """The command or request was put wrongly."""

    code, exit_code, http_status = "usage", 2, 400


class InvalidInput(HoldfastError):
    """Bytes or values that do not follow the protocol or format."""

    code, exit_code, http_status = "invalid", 2, 400


class UnsupportedVersion(HoldfastError):
    """A version, suite or type that this program does not know."""

    code, exit_code, http_status = "unsupported-version", 1, 400


class TooLarge(HoldfastError):
    """A limit of `limits` is exceeded."""

    code, exit_code, http_status = "too-large", 2, 413


class TooMany(HoldfastError):
    """Too many requests, sessions or connections of one party at once."""

    code, retry, exit_code, http_status = "too-many", Retry.LATER, 1, 429


class NotFound(HoldfastError):
    """No such client, snapshot, job, object or path (or none that the caller may know of)."""

    code, exit_code, http_status = "not-found", 10, 404


class Ambiguous(HoldfastError):
    """A reference that fits more than one thing; `details["candidates"]` names them."""

    code, exit_code, http_status = "ambiguous", 10, 404


class Conflict(HoldfastError):
    """Directory in use, name taken, output file exists, a newer state stands."""

    code, exit_code, http_status = "conflict", 11, 409


class Fenced(HoldfastError):
    """A newer connection with the same identity has taken over."""

    code, exit_code, http_status = "fenced", 11, 409


class NotAuthenticated(HoldfastError):
    """No token, a wrong or expired one, or a certificate that is not trusted."""

    code, retry, exit_code, http_status = "not-authenticated", Retry.RECONNECT, 12, 401


class Refused(HoldfastError):
    """The caller is known, and may not do this."""

    code, exit_code, http_status = "refused", 12, 403


class OutsideRoots(Refused):
    """A path outside what the pod's own configuration allows."""

    code = "outside-roots"


class WrongKey(Refused):
    """The key at hand is not the domain's."""

    code = "wrong-key"


class NotAtHand(Refused):
    """Neither a key file nor a connected agent that may show this."""

    code = "not-at-hand"


class Damaged(HoldfastError):
    """Stored bytes are not what was stored; `details["object"]` names the object."""

    code, exit_code, http_status = "damaged", 13, 500


class HistoryRegressed(HoldfastError):
    """The server shows an older history than the agent remembers."""

    code, exit_code, http_status = "history-regressed", 13, 409


class NoSpace(HoldfastError):
    """The store, a state directory or a restore target is full."""

    code, retry, exit_code, http_status = "no-space", Retry.LATER, 14, 507


class Unreachable(HoldfastError):
    """The other side does not answer, or not now."""

    code, retry, exit_code, http_status = "unreachable", Retry.LATER, 1, 503


class Cancelled(HoldfastError):
    """Somebody asked for the end of it."""

    code, exit_code, http_status = "cancelled", 130, 409


class NothingRead(HoldfastError):
    """Not one of the paths of a backup could be read."""

    code, exit_code, http_status = "nothing-read", 1, 422


class MissingChunks(HoldfastError):
    """A commit references chunks that are not live; given up after the allowed rounds."""

    code, retry, exit_code, http_status = "missing-chunks", Retry.LATER, 1, 409


class Stalled(HoldfastError):
    """A job without progress for too long."""

    code, exit_code, http_status = "stalled", 1, 504


class StoreFailed(HoldfastError):
    """The store or the catalog refuses to work (input/output error, lying file system)."""

    code, retry, exit_code, http_status = "store-failed", Retry.LATER, 1, 503


def _tree(cls: type[HoldfastError]) -> list[type[HoldfastError]]:
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in _tree(sub))]


def error_classes() -> dict[str, type[HoldfastError]]:
    """Return every error class by its code; the root counts as `internal`'s class."""
    # Reversed: a class that shares its parent's code does not stand for it.
    classes = reversed(_tree(HoldfastError))
    found = {cls.code: cls for cls in classes if cls is not HoldfastError}
    assert found["internal"] is InternalError
    return found


def error_from(
    code: str, message: str, *, hint: str = "", details: dict[str, object] | None = None
) -> HoldfastError:
    """Return the error that `code` names; an unknown code (a newer peer's) is an InternalError."""
    cls = error_classes().get(code, InternalError)
    rest = {k: v for k, v in (details or {}).items() if k not in ("message", "hint", "self")}
    return cls(message, hint=hint, **rest)

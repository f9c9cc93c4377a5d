"""How a job ended: what goes to the server, and into the journal until the server keeps it."""

from __future__ import annotations

import msgspec

from holdfast_contract.errors import HoldfastError, InvalidInput
from holdfast_contract.protocol.control import Counts, Failure, Finished, JobState
from holdfast_contract.protocol.http import JobResult


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one job: the message that tells it, and the names that are relayed before it.

    `result` is relayed from the server's memory and never stored there; here it is kept in the
    pod's own state directory until the server has seen the end.
    """

    finished: Finished
    result: JobResult

    def encode(self) -> bytes:
        """Return the journal's form."""
        return msgspec.msgpack.encode(self)


def decode_outcome(data: bytes) -> Outcome:
    """Return what `encode` made.

    Raises:
        InvalidInput: it is something else.
    """
    try:
        return msgspec.msgpack.decode(data, type=Outcome)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInput("journal: the outcome is not understood") from exc


def failed(job: str, error: HoldfastError, counts: Counts | None = None) -> Outcome:
    """Return the outcome of a job that `error` ended."""
    cancelled = error.code == "cancelled"
    failure = Failure(
        code=error.code, message=error.message, hint=error.hint, details=_plain(error.details)
    )
    return Outcome(
        finished=Finished(
            job=job,
            state=JobState.CANCELLED if cancelled else JobState.FAILED,
            counts=counts or Counts(),
            error=failure,
        ),
        result=JobResult(),
    )


def _plain(details: dict[str, object]) -> dict[str, object]:
    kept = (str, int, float, bool, type(None))
    return {name: value for name, value in details.items() if isinstance(value, kept)}

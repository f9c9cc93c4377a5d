"""Jobs that are not over: what a restarted agent needs to go on, or to tell the end again.

One file a job, replaced as a whole at each step:

    begun      the order, as the server sent it
    signed     beside it the manifest (and, in a file of its own, the refs object): the commit may
               have happened, whether its answer came or not
    ended      beside it the outcome, until the server says that it is durable there
"""

from __future__ import annotations

from typing import BinaryIO, Final

import msgspec

from holdfast_agent.state.directory import StateDirectory
from holdfast_contract.errors import InvalidInput

_JOB: Final = ".job"
_REFS: Final = ".refs"


class SignedCommit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A commit that may have happened: sent again after a restart, it has the same answer."""

    seq: int
    manifest: bytes
    outcome: bytes
    """What the job has come to if the commit stands, encoded by the use case."""


class JournalledJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job as the journal knows it."""

    job: str
    order: bytes
    """The message that ordered it (control channel frame)."""
    signed: SignedCommit | None = None
    ended: bytes | None = None
    """The outcome, encoded by the use case."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(JournalledJob)


class JobJournal:
    """The journal of a state directory. Calls for different jobs may come from several threads."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def begin(self, job: str, order: bytes) -> JournalledJob:
        """Note a job before its first step; a job that is known stays as it was noted.

        Raises:
            NoSpace, Refused, InternalError: it could not be noted.
        """
        known = self.get(job)
        if known is None:
            known = JournalledJob(job, order)
            self._write(known)
        return known

    def get(self, job: str) -> JournalledJob | None:
        """Return what is known of a job; None when unknown, or its file is not understood."""
        data = self._state.read(job + _JOB)
        try:
            return None if data is None else _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def all(self) -> list[JournalledJob]:
        """Return every job that is not forgotten, by id."""
        names = (name.removesuffix(_JOB) for name in self._state.names(_JOB))
        return [found for name in names if (found := self.get(name)) is not None]

    def sign(self, job: str, signed: SignedCommit, refs: BinaryIO) -> None:
        """Note a commit before it is asked for; `refs` is the refs object, read from its start.

        Raises:
            NoSpace, Refused, InternalError: it could not be noted.
        """
        # The refs go first: a note of a commit without them would be of no use.
        refs.seek(0)
        import shutil  # an idle agent does without, as in `spool`

        self._state.replace(job + _REFS, lambda file: shutil.copyfileobj(refs, file))
        self._write(msgspec.structs.replace(self._known(job), signed=signed))

    def refs(self, job: str) -> BinaryIO | None:
        """Return the refs object of a signed commit, open for reading; None when it is gone."""
        return self._state.open(job + _REFS)

    def end(self, job: str, outcome: bytes) -> None:
        """Note how a job ended; what its commit needed is forgotten.

        Raises:
            NoSpace, Refused, InternalError: it could not be noted.
        """
        self._write(JournalledJob(job, self._known(job).order, ended=outcome))
        self._state.remove(job + _REFS)

    def forget(self, job: str) -> None:
        """Forget a job whose end the server keeps."""
        self._state.remove(job + _JOB)
        self._state.remove(job + _REFS)

    def _known(self, job: str) -> JournalledJob:
        known = self.get(job)
        if known is None:
            raise InvalidInput(f"job {job} is not in the journal")
        return known

    def _write(self, entry: JournalledJob) -> None:
        self._state.write(entry.job + _JOB, _ENCODER.encode(entry))

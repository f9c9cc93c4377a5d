"""One job in its thread: from an order to an outcome that the journal holds."""

from __future__ import annotations

import threading
from collections.abc import Callable

from holdfast_agent.jobs.outcome import Outcome, decode_outcome, failed
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.state.journal import JobJournal
from holdfast_contract.errors import HoldfastError, InternalError
from holdfast_contract.logs import bind, get_logger
from holdfast_contract.protocol import control

_log = get_logger(__name__)
_CURRENT_BYTES_MAX = 4096
"""Of the path in a progress message: it is for people, and a path may be longer than a message."""

Order = control.Backup | control.Restore | control.Verify
Work = Callable[["JobRun"], Outcome]
Told = Callable[["JobRun"], None]


class JobRun:
    """A job that runs, or has ended and waits until the server has seen its end."""

    def __init__(self, order: Order, *, journal: JobJournal, work: Work, told: Told) -> None:
        self.order = order
        self.cancel = JobCancel()
        self.progress = JobProgress()
        self.sent: Callable[[], int] = int
        """Bytes sent so far; set by the work."""
        self.outcome: Outcome | None = None
        self._journal = journal
        self._work = work
        self._told = told
        self._interrupted = False
        self._thread = threading.Thread(target=self._run, name=f"job-{order.job}")

    @property
    def job(self) -> str:
        """The job's id."""
        return self.order.job

    def start(self) -> None:
        """Begin in a thread of its own."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_seconds)

    def interrupt(self) -> None:
        """End the thread without an outcome: the job stays in the journal as it is."""
        self._interrupted = True
        self.cancel.set()

    def message(self) -> control.Progress:
        """Return the progress of the moment."""
        return control.Progress(
            job=self.job,
            phase=self.progress.phase_name,
            counts=self.progress.counts(self.sent()),
            current=self.progress.path[:_CURRENT_BYTES_MAX],
            moved=self.progress.moved + self.sent(),
        )

    def _run(self) -> None:
        with bind(job=self.job):
            outcome = self._ended_before() or self._worked()
            if self._interrupted:
                return
            self._keep(outcome)
        self.outcome = outcome
        self._told(self)

    def _ended_before(self) -> Outcome | None:
        try:
            known = self._journal.get(self.job)
            return decode_outcome(known.ended) if known and known.ended else None
        except HoldfastError:
            return None

    def _worked(self) -> Outcome:
        try:
            _log.info("job begins", kind=type(self.order).__name__.lower())
            outcome = self._work(self)
            _log.info("job ends", state=outcome.finished.state.value)
            return outcome
        except HoldfastError as error:
            _log.warning("job fails", code=error.code, reason=error.message)
            return failed(self.job, error, self.progress.counts(self.sent()))
        except Exception:
            _log.exception("job fails by a defect")
            defect = InternalError("a defect of the agent", hint="its log says more")
            return failed(self.job, defect, self.progress.counts(self.sent()))

    def _keep(self, outcome: Outcome) -> None:
        try:
            self._journal.end(self.job, outcome.encode())
        except HoldfastError as error:
            # Without a journal the end is still told while this process lives.
            _log.warning("the journal cannot keep the job's end", reason=error.message)

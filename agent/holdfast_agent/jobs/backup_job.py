"""What one backup job knows from its beginning on, and how its end is put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.engine.source import Row
from holdfast_agent.engine.tally import Tally
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.ports import Cancel, ChunkSource, Progress
from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.roots import OwnFiles, Roots
from holdfast_agent.sources.watches import Watches
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.journal import JobJournal
from holdfast_agent.state.memory import Memory, Remembered
from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.domain import DomainBody
from holdfast_contract.format.identity import IdentityBody
from holdfast_contract.ids import ZERO_HASH
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol import control
from holdfast_contract.protocol.control import Counts, Finished, JobState
from holdfast_contract.protocol.http import JobResult, path_fields

_log = get_logger(__name__)


class Hinted(NamedTuple):
    """What change hints did in a backup."""

    unread: int
    """Directories whose names were not read."""
    missed: int
    """Entries about which they would have been wrong: found by an audit, and right here."""


@dataclass(frozen=True, kw_only=True)
class BackupTools:
    """What a backup needs of its agent; the same for every job."""

    keys: DomainKeys
    domain: DomainBody
    """The domain's record, opened with `keys`: a wrong key has been found out before."""
    identity: IdentityKey
    identity_record: bytes
    roots: Roots
    own: OwnFiles
    state: StateDirectory
    clock: FileClock
    workers: int
    memory_max: int
    """Bytes of resident size that the process may reach."""
    watches: Watches | None = None
    """Change hints; None: every backup reads everything."""


@dataclass(frozen=True, kw_only=True)
class BackupJob:
    """One order and everything that stays the same while it is carried out."""

    order: control.Backup
    tools: BackupTools
    record: IdentityBody
    """The identity record, verified."""
    paths: tuple[bytes, ...]
    """In their normal form, inside the roots, as the manifest will name them."""
    chunks: ChunkSource
    cancel: Cancel
    progress: Progress
    known_head: Remembered
    """What was remembered when the job began."""
    started_ns: int
    started: float
    """Monotonic seconds."""

    @property
    def parent(self) -> bytes:
        """Id of the snapshot whose tree may be reused; zero bytes for none."""
        return self.order.parent.snapshot if self.order.parent is not None else ZERO_HASH

    @property
    def journal(self) -> JobJournal:
        """The journal of the state directory."""
        return JobJournal(self.tools.state)

    def remember(self, head: Remembered) -> None:
        """Remember the newest snapshot; without a place to do so, go on."""
        try:
            Memory(self.tools.state).keep(head)
        except HoldfastError as exc:
            # The prev links lead from the older memory to the same head the next time.
            _log.warning("the state directory cannot remember the head", reason=exc.message)

    def outcome(
        self,
        tally: Tally,
        *,
        snapshot: bytes | None,
        bytes_new: int,
        bytes_sent: int,
        hinted: Hinted,
    ) -> Outcome:
        """Return the end of a job that did what it could."""
        rows = sorted(set(tally.rows))
        skipped = len(rows) + tally.more_rows
        parent = self.order.parent.snapshot.hex() if self.order.parent is not None else None
        summary: dict[str, int | float | str | None] = {
            "snapshot": None if snapshot is None else snapshot.hex(),
            "parent": parent,
            "files": tally.files,
            "dirs": tally.dirs,
            "bytes": tally.bytes_logical,
            "files_new": tally.files_new,
            "files_changed": tally.files_changed,
            "files_unmodified": tally.files_unmodified,
            "bytes_new": bytes_new,
            "bytes_sent": bytes_sent,
            "dirs_unread": hinted.unread,
            "seconds": round(self.tools.clock.monotonic() - self.started, 3),
        }
        if hinted.missed:
            summary["hints_missed"] = hinted.missed
        finished = Finished(
            job=self.order.job,
            state=JobState.COMPLETED_WITH_SKIPS if skipped else JobState.COMPLETED,
            snapshot=snapshot,
            counts=Counts(
                files=tally.files,
                bytes=tally.bytes_logical,
                bytes_sent=bytes_sent,
                files_total=tally.files,
                bytes_total=tally.bytes_logical,
            ),
            summary=summary,
            skipped_count=skipped,
        )
        return Outcome(finished=finished, result=JobResult(skipped=[_shown(row) for row in rows]))


UNHINTED: Final = Hinted(0, 0)


def _shown(row: Row) -> dict[str, str]:
    return {**path_fields(row.path), "reason": row.reason, "message": row.message}

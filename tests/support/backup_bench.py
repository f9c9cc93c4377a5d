"""One client with its volume, its state and a repository in memory: runs backups in the test."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_agent.crypto.records import seal_identity
from holdfast_agent.jobs.backup import run_backup
from holdfast_agent.jobs.backup_job import BackupTools
from holdfast_agent.jobs.backup_source import VolumePlace, VolumeReader
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.roots import OwnFiles, Roots
from holdfast_agent.sources.watches import Watches
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.journal import JobJournal
from holdfast_agent.tree.entry import HOLE_CHUNK, EntryType, Stat
from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import MIB
from holdfast_contract.protocol import control
from tests.support.memory_repository import MemoryChunks, MemoryRepository, MemoryUploads
from tests.support.samples import (
    DOMAIN,
    IDENTITY,
    IDENTITY_RECORD,
    KEYS,
    domain_body,
    identity_body,
)

if TYPE_CHECKING:
    import pytest  # one test measures the memory of a process with this module

CLIENT = "shop/db-0"


class DayClock(SystemFileClock):
    """The machine's clock, days ahead when a test says so; its file stamps stay true."""

    def __init__(self) -> None:
        self.ahead_ns = 0
        self.stamps_ahead_ns = 0

    def stamp_ns(self) -> int:
        return super().stamp_ns() + self.stamps_ahead_ns

    def let_files_seem_old(self) -> None:
        """Have files of this moment look settled and old, as nearly all files of a volume are."""
        self.stamps_ahead_ns = 10_000_000_000

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns

    def pass_days(self, days: int) -> None:
        self.ahead_ns += days * 86_400_000_000_000


@dataclass
class BackupBench:
    """Backs up `volume`; restarts are new objects on the same directories."""

    top: Path
    repository: MemoryRepository = field(default_factory=lambda: MemoryRepository(DOMAIN))
    memory_max: int = 160 * MIB
    small_file_bytes_max: int = 512 * 1024
    workers: int = 2
    client: str = CLIENT
    share_references: bool = True
    watches: Watches | None = None
    """Change hints, kept from one backup to the next as by a running agent."""

    def __post_init__(self) -> None:
        self.volume = self.top / "volume"
        self.volume.mkdir(exist_ok=True)
        self.state_path = self.top / "state"
        self.clock = DayClock()
        self.cancel = JobCancel()
        self.progress = JobProgress()
        self.repository.add_identity(self.identity_record)
        self.uploads: MemoryUploads | None = None
        self.prepare: Callable[[MemoryUploads], None] = lambda uploads: None
        self.chunks: Callable[[], MemoryChunks] | None = None
        """Gives each job its source of stored chunks, where it is not just the repository's."""

    @property
    def identity_record(self) -> bytes:
        """The client's identity record; all clients here have one key."""
        if self.client == CLIENT:
            return IDENTITY_RECORD
        return seal_identity(identity_body(client=self.client), KEYS)

    def order(self, **changes: object) -> control.Backup:
        """Return the order that the server would send now."""
        seq, head = self.repository.head(self.client)
        parent = None
        if seq:
            refs = self.repository.snapshots[head].refs_object
            parent = control.Reference(head, self.client, refs)
        fields: dict[str, object] = {
            "job": new_ulid(),
            "paths": [os.fsencode(self.volume)],
            "excludes": [],
            "tags": [],
            "head_seq": seq,
            "head": head,
            "parent": parent,
            "references": [],
            "damaged": len(self.repository.damaged),
            "epoch_min": 1,
            "limit_upload": 0,
        }
        return control.Backup(**{**fields, **changes})  # type: ignore[arg-type]

    def tools(self, state: StateDirectory) -> BackupTools:
        """Return what the agent's shell would hand over."""
        return BackupTools(
            keys=KEYS,
            domain=domain_body(
                small_file_bytes_max=self.small_file_bytes_max,
                share_references=self.share_references,
            ),
            identity=IDENTITY,
            identity_record=self.identity_record,
            roots=Roots.configured([os.fsencode(self.top)]),
            own=OwnFiles([os.fsencode(self.state_path)]),
            state=state,
            clock=self.clock,
            workers=self.workers,
            memory_max=self.memory_max,
            watches=self.watches,
        )

    def run(self, order: control.Backup | None = None, **changes: object) -> Outcome:
        """Back up as the shell does: journal, work, journal; raises what the work raises."""
        order = order or self.order(**changes)
        state = StateDirectory(self.state_path)
        try:
            journal = JobJournal(state)
            with contextlib.suppress(HoldfastError):
                journal.begin(order.job, control.encode(order))

            def open_uploads() -> MemoryUploads:
                self.uploads = self.repository.uploads(order.job)
                self.prepare(self.uploads)
                return self.uploads

            return run_backup(
                order,
                self.tools(state),
                uploads=open_uploads,
                chunks=(self.chunks or self.repository.chunks)(),
                cancel=self.cancel,
                progress=self.progress,
            )
        finally:
            state.close()

    @property
    def session(self) -> MemoryUploads:
        """The upload session of the last job that opened one."""
        assert self.uploads is not None
        return self.uploads

    def snapshot(self, outcome: Outcome | None = None) -> Snapshot:
        """Return the snapshot of an outcome (default: the head), open for reading."""
        found = outcome.finished.snapshot if outcome else self.repository.head(self.client)[1]
        assert found is not None
        chunks = self.repository.chunks()
        reader = ChunkReader(KEYS, chunks)
        reader.close()
        return Snapshot(found, keys=KEYS, source=chunks, chunks=reader)

    def restored(self, outcome: Outcome | None = None) -> dict[bytes, bytes]:
        """Return the content of every regular file, by its path below the volume."""
        snapshot = self.snapshot(outcome)
        prefix = os.fsencode(self.volume) + b"/"
        contents: dict[bytes, bytes] = {}
        cached: dict[bytes, bytes] = {}
        for found in snapshot.walk():
            if found.entry.stat.type != EntryType.FILE:
                continue
            data = b""
            for extent in snapshot.extents(found.entry):
                if extent.chunk == HOLE_CHUNK:
                    data += bytes(extent.length)
                    continue
                if extent.chunk not in cached:
                    cached[extent.chunk] = snapshot.chunks.read_one(ChunkType.CONTENT, extent.chunk)
                data += cached[extent.chunk][extent.offset : extent.offset + extent.length]
            contents[found.path.removeprefix(prefix)] = data
        return contents

    def check_refs(self, outcome: Outcome | None = None) -> None:
        """Assert that the refs are exactly what the manifest reaches."""
        snapshot = self.snapshot(outcome)
        reached = set(snapshot.reached()) - {HOLE_CHUNK}
        for found in snapshot.walk():
            if found.entry.stat.type == EntryType.FILE:
                reached |= {extent.chunk for extent in snapshot.extents(found.entry)}
        reached.discard(HOLE_CHUNK)
        assert sorted(reached) == self.repository.refs(snapshot.id)


def count(outcome: Outcome, name: str) -> int:
    """Return a number of the summary."""
    found = outcome.finished.summary[name]
    assert isinstance(found, int)
    return found


def id_of(outcome: Outcome) -> bytes:
    """Return the id of the snapshot that an outcome names."""
    assert outcome.finished.snapshot is not None
    return outcome.finished.snapshot


def on_disk(volume: Path) -> dict[bytes, bytes]:
    """Return the content of every regular file below `volume`, by its path."""
    found = {}
    top = os.fsencode(volume)
    for above, _, names in os.walk(top):
        for name in names:
            path = os.path.join(above, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = file.read()
    return found


def opened_names(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that will hold the name of each file that is opened the long way."""
    opened: list[bytes] = []
    plain = VolumePlace.open

    def note(place: VolumePlace, stat: Stat) -> VolumeReader:
        opened.append(stat.name)
        return plain(place, stat)

    monkeypatch.setattr(VolumePlace, "open", note)
    return opened


def interrupting(cancel: JobCancel, step: str, at: int = 1) -> Callable[[str], None]:
    """Return a fault that cancels the job at the `at`-th occurrence of `step`."""
    lock = threading.Lock()
    seen = 0

    def fault(name: str) -> None:
        nonlocal seen
        with lock:
            seen += name == step
            if name == step and seen == at:
                cancel.set()

    return fault

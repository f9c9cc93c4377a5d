"""Backups of one volume and restores of them, with a source that counts and damages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.queries import answer_query
from holdfast_agent.jobs.restore import run_restore
from holdfast_agent.jobs.verify import run_verify
from holdfast_agent.ports import FetchedChunk
from holdfast_agent.restore.destination import RestoreScope, local_scope
from holdfast_agent.sources.roots import OwnFiles, Roots
from holdfast_contract.format.layout import Room
from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import MIB
from holdfast_contract.protocol import control
from holdfast_contract.protocol.control import Browse, JobState, Mode, Overwrite
from tests.support.backup_bench import CLIENT, BackupBench
from tests.support.memory_repository import MemoryChunks
from tests.support.samples import KEYS


class Source(MemoryChunks):
    """Calls `before` with the number of chunks fetched so far; some never come out whole."""

    def __init__(self, bench: RestoreBench) -> None:
        super().__init__(bench.repository)
        self.bad: set[bytes] = bench.bad
        self.before = bench.before_fetch

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        for chunk in ids:
            self.before(len(self.fetched))
            self.broken |= self.bad & {chunk}
            yield from super().fetch([chunk])

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        self._repository.reports.append((chunk, object, offset, reason))


class RestoreBench(BackupBench):
    """A backup bench that also restores; `out` is where to, in the agent's restore roots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.out = self.top / "out"
        self.bad: set[bytes] = set()
        self.before_fetch: Callable[[int], None] = lambda count: None
        self.make_source: type[Source] = Source
        self.source: Source | None = None

    def scope(self, mode: Mode = Mode.IN_PLACE) -> RestoreScope:
        """Return what the agent allows: the volume and `out`."""
        roots = Roots.configured([os.fsencode(self.volume), os.fsencode(self.out)])
        return RestoreScope(mode=mode, roots=roots, own=OwnFiles([os.fsencode(self.state_path)]))

    def backed_up(self) -> bytes:
        """Back up and return the snapshot."""
        outcome = self.run()
        assert outcome.finished.state is JobState.COMPLETED, outcome.result.skipped
        assert outcome.finished.snapshot is not None
        return outcome.finished.snapshot

    def restore_order(
        self, paths: Sequence[bytes | Path] = (b"/",), target: Path | None = None, **changes: object
    ) -> control.Restore:
        """Return an order for paths of the head, or of `snapshot`."""
        snapshot = changes.pop("snapshot", None) or self.repository.head(CLIENT)[1]
        assert isinstance(snapshot, bytes)
        items = [control.RestoreItem(snapshot, CLIENT, os.fsencode(path)) for path in paths]
        fields: dict[str, object] = {
            "job": new_ulid(),
            "items": items,
            "target": b"" if target is None else os.fsencode(target),
            "include": [],
            "exclude": [],
            "strip": False,
            "overwrite": Overwrite.IF_CHANGED,
            "delete": False,
            "special": False,
            "dry_run": False,
            "verify": False,
            "limit_download": 0,
        }
        return control.Restore(**{**fields, **changes})  # type: ignore[arg-type]

    def restore(
        self,
        paths: Sequence[bytes | Path] = (b"/",),
        target: Path | None = None,
        *,
        scope: RestoreScope | None = None,
        own_client: str = CLIENT,
        **changes: object,
    ) -> Outcome:
        """Restore; without a scope as the agent would."""
        self.source = self.make_source(self)
        return run_restore(
            self.restore_order(paths, target, **changes),
            keys=KEYS,
            source=self.source,
            own_client=own_client,
            scope=scope or self.scope(),
            cancel=self.cancel,
            progress=self.progress,
            clock=self.clock,
            memory_max=160 * MIB,
        )

    def restore_here(self, target: Path, **changes: object) -> Outcome:
        """Restore the head like `--local`."""
        return self.restore(target=target, scope=local_scope(), own_client="", **changes)  # type: ignore[arg-type]

    def verify(self, path: bytes = b"/") -> Outcome:
        """Verify the head."""
        self.source = self.make_source(self)
        item = control.RestoreItem(self.repository.head(CLIENT)[1], CLIENT, path)
        return run_verify(
            control.Verify(job=new_ulid(), item=item),
            keys=KEYS,
            source=self.source,
            cancel=self.cancel,
            progress=self.progress,
            clock=self.clock,
        )

    def ask(
        self, kind: str, *paths: bytes | Path, browse: Browse = Browse.CONTENT, **changes: object
    ) -> list[dict[str, object]]:
        """Return the rows of an answer about the head (or `snapshots`), without its end."""
        lines = [
            msgspec.json.decode(line)
            for line in b"".join(self.answer(kind, *paths, browse=browse, **changes)).splitlines()
        ]
        assert lines.pop() == {"type": "end"}
        return lines

    def answer(
        self, kind: str, *paths: bytes | Path, browse: Browse = Browse.CONTENT, **changes: object
    ) -> Iterator[bytes]:
        """Return the pieces of an answer."""
        snapshots = changes.pop("snapshots", None) or [self.repository.head(CLIENT)[1]] * len(paths)
        items = [
            control.RestoreItem(snapshot, CLIENT, os.fsencode(path))
            for snapshot, path in zip(snapshots, paths, strict=True)  # type: ignore[call-overload]
        ]
        return answer_query(
            control.Query(query=new_ulid(), kind=kind, items=items, **changes),  # type: ignore[arg-type]
            keys=KEYS,
            source=self.make_source(self),
            roots=Roots.configured([os.fsencode(self.volume)]),
            browse=browse,
            cancel=self.cancel,
        )


def under(target: Path, path: Path) -> Path:
    """Return where `path` lies below a target."""
    return target / str(path).lstrip("/")

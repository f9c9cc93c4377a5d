"""What stays the same for all of one backup, and is needed nearly everywhere in it."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.engine.cutting import Cutter
from holdfast_agent.engine.memory import MemoryPlan
from holdfast_agent.engine.relatives import Relatives
from holdfast_agent.ports import Cancel, Progress
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.sorting import OpenSpool


@dataclass(frozen=True, slots=True)
class BackupContext:
    """Keys, settings of the domain, and who may end the job or watch it."""

    keys: DomainKeys
    small_file_bytes_max: int
    cutter: Cutter
    plan: MemoryPlan
    epoch_min: int
    workers: int
    open_spool: OpenSpool
    cancel: Cancel
    progress: Progress
    trees: ChunkReader | None = None
    """Reads tree chunks of the parent and of references; None: there are none to read."""
    relatives: Relatives | None = None
    """Where small files are looked for that this client has not stored yet."""

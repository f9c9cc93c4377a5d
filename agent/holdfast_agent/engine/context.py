"""What stays the same for all of one backup, and is needed nearly everywhere in it."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.engine.cutting import Cutter
from holdfast_agent.engine.memory import MemoryPlan
from holdfast_agent.ports import Cancel, Progress
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

"""--verify: reading what was restored once more, and comparing it with the snapshot."""

from __future__ import annotations

from holdfast_agent.ports import Cancel, Progress
from holdfast_agent.restore.comparison import ContentCheck
from holdfast_agent.restore.destination import Destination
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.steps import Portion
from holdfast_agent.restore.tally import Tally
from holdfast_agent.snapshots.snapshot import Found
from holdfast_agent.tree.entry import EntryFlag, EntryType
from holdfast_contract.errors import Damaged

REASON = "verify"


class ReadBack:
    """Compares the content of every regular file of a portion with its ids."""

    def __init__(
        self,
        destination: Destination,
        check: ContentCheck,
        tally: Tally,
        cancel: Cancel,
        progress: Progress,
    ) -> None:
        self._destination = destination
        self._check = check
        self._tally = tally
        self._cancel = cancel
        self._progress = progress
        self._broken = {row.path for row in tally.damaged}

    def compare(self, portion: Portion) -> None:
        """List every file whose content is not the snapshot's."""
        walk = portion.snapshot.walk(
            portion.found,
            lambda path, damage: None,
            enters=lambda found: not portion.selection.excludes(found.path, is_directory=True),
        )
        for found in walk:
            self._cancel.check()
            stat = found.entry.stat
            if stat.type != EntryType.FILE or stat.flags & EntryFlag.SKIPPED:
                continue
            if found.path in self._broken:
                continue
            if portion.selection.is_hidden(found.path, is_directory=False):
                continue
            self._progress.current(found.path)
            self._compare(portion, found)
            self._progress.add(moved=1 + stat.size)

    def _compare(self, portion: Portion, found: Found) -> None:
        parent, _, name = found.path.rpartition(b"/")
        spot = self._destination.spot(parent or b"/", portion.dropped)
        if spot is None or spot.target is None:
            return
        try:
            existing = spot.target.directory(spot.place).open_existing(name)
            if existing is None:
                self._tally.differs(found.path, REASON, "it cannot be read back")
                return
            with existing:
                right = self._check.is_right(existing, portion.snapshot, found.entry, fetches=True)
        except EntryFailed as failure:
            self._tally.differs(found.path, REASON, failure.message)
            return
        except Damaged as damage:
            self._tally.broke(found.path, damage)
            return
        if not right:
            self._tally.differs(found.path, REASON, "its content is not the snapshot's")

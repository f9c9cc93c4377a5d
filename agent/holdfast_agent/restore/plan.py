"""Walking what is to be restored: directories against what stands in the target, in tree order.

The decisions of a dry run and of a restore are the same code; only what is done with the steps
differs. Symlinks come last in each directory, and after them the directory's own metadata.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Callable
from typing import Final

from holdfast_agent.ports import Cancel, Progress
from holdfast_agent.restore.comparison import metadata_differs
from holdfast_agent.restore.decide import Decider, leaves_alone, whole_content
from holdfast_agent.restore.destination import Destination, Spot
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.plain import bundles_in
from holdfast_agent.restore.selection import Selection
from holdfast_agent.restore.steps import Bundle, Enter, Leave, Level, Portion, Step
from holdfast_agent.restore.tally import Action, Tally
from holdfast_agent.snapshots.snapshot import Found, Run, joined
from holdfast_agent.sources.findings import Reason
from holdfast_agent.tree.entry import Content, Entry, EntryFlag, EntryType, Stat
from holdfast_contract.errors import Damaged
from holdfast_contract.protocol.control import Overwrite

# Plain integers: of every entry, and looking up a member of an enum costs as much as comparing.
_DIRECTORY: Final = int(EntryType.DIRECTORY)
_SYMLINK: Final = int(EntryType.SYMLINK)
_SKIPPED: Final = int(EntryFlag.SKIPPED)


class Planner:
    """Turns one portion after the other into steps, handed to `emit` in the order to be done."""

    def __init__(
        self,
        destination: Destination,
        decider: Decider,
        *,
        overwrite: Overwrite,
        tally: Tally,
        emit: Callable[[Step], None],
        cancel: Cancel,
        progress: Progress,
    ) -> None:
        self._destination = destination
        self._decider = decider
        self._overwrite = overwrite
        self._tally = tally
        self._emit = emit
        self._cancel = cancel
        self._progress = progress
        self._levels: list[Level] = []
        self._descends = False
        """Whether the walk goes into the directory it has just given."""

    def plan(self, portion: Portion) -> None:
        """Emit the steps of one portion.

        Raises:
            Damaged: the snapshot's tree is not what its manifest says.
            NoSpace, Refused, Cancelled: as the emitted steps, or the looks at the target, raise.
        """
        self._levels = [self._outer(portion)]
        walk = portion.snapshot.walk_in_runs(
            portion.found, self._damage, enters=lambda found: self._descends
        )
        for step in walk:
            self._cancel.check()
            if not isinstance(step, Found):
                self._run(portion, step)
                continue
            self._leave_down_to(portion, _parent(step.path))
            if step.entry.stat.type == _DIRECTORY:
                self._descends = self._directory(portion, step)
            else:
                self._other(portion, step)
        self._leave_down_to(portion, None)

    def _outer(self, portion: Portion) -> Level:
        """Return the level above the portion: nothing of it is restored."""
        path = _parent(portion.found.path)
        spot = self._destination.spot(path, portion.dropped)
        stat = Stat(path, EntryType.DIRECTORY, 0o755, 0, 0, 0, 0, EntryFlag.IMPLIED)
        level = Level(
            Found(path, Entry(stat, Content())),
            None,
            spot,
            exists=False,
            is_included=portion.selection.takes_all,
            is_own=False,
            content=Content(),
        )
        level.exists = spot is not None and self._decider.stands(spot)
        return level

    def _damage(self, path: bytes, damage: Damaged) -> None:
        """A part of a directory cannot be read: the rest is restored, nothing deleted there."""
        self._tally.broke(path, damage)
        for level in self._levels:
            if level.path == path:
                level.is_whole = False

    # --- directories
    def _directory(self, portion: Portion, found: Found) -> bool:
        parent = self._levels[-1]
        self._note(parent, found)
        if self._is_skipped(portion, found):
            return False
        if portion.selection.excludes(found.path, is_directory=True) or parent.is_lost:
            return False
        level = self._level(portion, parent, found)
        if level is None:
            return False
        self._levels.append(level)
        if level.is_included and not found.is_implied and not level.entered:
            self._enter(level)
        return not level.is_lost

    def _level(self, portion: Portion, parent: Level, found: Found) -> Level | None:
        try:
            content = whole_content(portion.snapshot, found.entry)
        except Damaged as damage:
            self._tally.broke(found.path, damage)
            content = found.entry.content
        included = parent.is_included or portion.selection.includes(found.path, is_directory=True)
        spot = self._destination.spot(found.path, portion.dropped)
        is_stand_in = found.path == portion.dropped
        level = Level(
            found,
            parent,
            spot,
            exists=False,
            is_included=included,
            is_own=spot is not None and not found.is_implied and not is_stand_in,
            content=content,
        )
        if portion.hidden is not None and included and not found.is_implied:
            level.seen = set()
        if spot is None:
            return level
        try:
            return self._compared(portion, parent, level, spot)
        except EntryFailed as failure:
            self._tally.failed(found.path, failure)
            return None

    def _compared(self, portion: Portion, parent: Level, level: Level, spot: Spot) -> Level | None:
        """Fill in what stands there; None when the directory cannot be restored."""
        stat = level.found.entry.stat
        level.action = Action.CREATE
        if not spot.place:
            level.exists = spot.target is not None
            if spot.target is not None and spot.target.directories_made and level.is_own:
                # The root itself was absent, and has just been made for this.
                level.touches = True
                return level
        elif parent.exists:
            info = self._decider.status(parent, spot.place[-1])
            level.exists = info is not None and modes.S_ISDIR(info.st_mode)
            if info is not None and not level.exists:
                if not level.is_own or leaves_alone(self._overwrite, info, stat):
                    self._tally.differs(
                        level.path, Reason.REPLACED, "something else than a directory is in the way"
                    )
                    return None
                level.clears, level.action = True, Action.OVERWRITE
        if level.exists:
            self._compare(portion, level)
        return level

    def _compare(self, portion: Portion, level: Level) -> None:
        level.action = Action.UNCHANGED
        if not level.counts:
            return
        descriptor = level.target.directory(level.place).descriptor
        stat = level.found.entry.stat
        level.touches = self._decider.touches_directory(descriptor, stat)
        if level.touches and metadata_differs(descriptor, stat, level.content, portion.policy):
            level.action = Action.METADATA

    def _enter(self, level: Level) -> None:
        """Have the directory and those above it made, those that was not asked for yet."""
        chain = []
        above: Level | None = level
        while above is not None and not above.entered:
            chain.append(above)
            above = above.parent
        for one in reversed(chain):
            one.entered = True
            if one.spot is not None:
                self._emit(Enter(one))

    def _leave_down_to(self, portion: Portion, path: bytes | None) -> None:
        """Leave the directories that the walk is done with; None: all."""
        while self._levels and (path is None or self._levels[-1].path != path):
            if path is not None and len(self._levels) == 1:
                return
            self._leave(portion, self._levels[-1])
            self._levels.pop()

    def _leave(self, portion: Portion, level: Level) -> None:
        if level.has_symlinks and not level.is_lost:
            children = portion.snapshot.children(level.found.entry, level.path, self._damage)
            for entry in children:
                if entry.stat.type == EntryType.SYMLINK:
                    self._entry(portion, Found(joined(level.path, entry.stat.name), entry))
        if level.entered and level.spot is not None:
            self._emit(Leave(portion, level))

    # --- everything else
    def _run(self, portion: Portion, run: Run) -> None:
        """Plan neighbours that are no directories: ordinary files of a new directory together."""
        prefix, stats, contents = run
        self._leave_down_to(portion, prefix[:-1] or b"/")
        level = self._levels[-1]
        done = 0
        if self._is_new(portion, level):
            for first, end, chunk, used in bundles_in(stats, contents):
                self._others(portion, run, done, first)
                done = end
                self._bundle(
                    Bundle(portion, level, stats[first:end], contents[first:end], chunk, used)
                )
        self._others(portion, run, done, len(stats))

    def _is_new(self, portion: Portion, level: Level) -> bool:
        """Tell whether the directory is not there, and all of it is restored."""
        is_taken = level.spot is not None and portion.selection.is_everything
        return is_taken and not level.exists and not level.is_lost

    def _bundle(self, bundle: Bundle) -> None:
        level, stats = bundle.level, bundle.stats
        if level.seen is not None:
            level.seen.update([stat.name for stat in stats])
        self._progress.current(joined(level.path, stats[0].name))
        if not level.entered:
            self._enter(level)
        self._emit(bundle)

    def _others(self, portion: Portion, run: Run, first: int, end: int) -> None:
        prefix, stats, contents = run
        for at in range(first, end):
            self._cancel.check()
            stat = stats[at]
            self._other(portion, Found(prefix + stat.name, Entry(stat, contents[at])))

    def _other(self, portion: Portion, found: Found) -> None:
        level, stat = self._levels[-1], found.entry.stat
        if level.seen is not None:
            level.seen.add(stat.name)
        if stat.flags & _SKIPPED and self._is_skipped(portion, found):
            return
        if stat.type == _SYMLINK and found.path != portion.found.path:
            level.has_symlinks = True
        else:
            self._entry(portion, found)

    def _entry(self, portion: Portion, found: Found) -> None:
        level = self._levels[-1]
        if level.spot is None or found.entry.stat.flags & _SKIPPED or level.is_lost:
            return
        selection = portion.selection
        if not (selection.is_everything or self._takes(selection, level, found)):
            return
        self._progress.current(found.path)
        if not level.entered:
            self._enter(level)
        try:
            self._decider.decide(portion, level, found)
        except EntryFailed as failure:
            self._tally.failed(found.path, failure)
        except Damaged as damage:
            self._tally.broke(found.path, damage)

    def _takes(self, selection: Selection, level: Level, found: Found) -> bool:
        if selection.excludes(found.path, is_directory=False):
            return False
        return level.is_included or selection.includes(found.path, is_directory=False)

    def _is_skipped(self, portion: Portion, found: Found) -> bool:
        if not found.entry.stat.flags & EntryFlag.SKIPPED:
            return False
        if found.path == portion.found.path:
            self._tally.differs(found.path, "skipped", "the backup could not read it")
        return True

    def _note(self, level: Level, found: Found) -> None:
        if level.seen is not None:
            level.seen.add(found.entry.stat.name)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"

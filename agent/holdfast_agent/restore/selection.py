"""Which entries a restore takes, and which names of the target --delete must never touch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sources.roots import is_within
from holdfast_agent.sources.rules import Rules
from holdfast_contract.errors import Refused


def relative_to(path: bytes, base: bytes) -> bytes:
    """Return `path` below `base` without a leading slash; empty for `base` itself."""
    return path[len(base) :].lstrip(b"/")


class Selection:
    """Include and exclude patterns for what lies at and below one path of a snapshot.

    Patterns are relative to that path where it is a directory, otherwise to its parent.
    """

    def __init__(
        self, found: Found, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        """Translate the patterns.

        Raises:
            InvalidInput: one of them is no gitignore pattern.
        """
        parent = found.path.rpartition(b"/")[0] or b"/"
        self._base = found.path if found.is_directory else parent
        self._include = Rules(include, self._base)
        self._exclude = Rules(exclude, self._base)
        self.takes_all = not self._include
        self.is_everything = self.takes_all and not self._exclude
        """Whether nothing is left out."""

    def excludes(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether an entry is left out; its parents have been asked before."""
        relative = relative_to(path, self._base)
        return bool(relative) and self._exclude.match(relative, is_directory)

    def includes(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether an entry is named by the includes; what is below it then is as well."""
        relative = relative_to(path, self._base)
        return self.takes_all or (bool(relative) and self._include.match(relative, is_directory))

    def is_hidden(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether the patterns keep this restore from saying anything of `path`."""
        relative = relative_to(path, self._base)
        return self._exclude.match_within(relative, is_directory) or not (
            self.takes_all or self._include.match_within(relative, is_directory)
        )


@dataclass
class Hidden:
    """What a snapshot does not say although it may be there: never to be deleted."""

    selection: Selection
    backup_rules: list[tuple[bytes, Rules]] = field(default_factory=list)
    """(path that was backed up, the backup's own excludes below it)."""
    reported: frozenset[bytes] = frozenset()
    """Paths that the backup skipped."""
    above_reported: frozenset[bytes] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is hidden: whole trees may be removed without looking at every name."""
        return self.selection.is_everything and not self.backup_rules and not self.reported

    def holds(self, path: bytes, *, is_directory: bool) -> bool:
        """Tell whether `path` (absolute, as in the snapshot) must stay."""
        if path in self.reported or path in self.above_reported:
            return True
        if self.selection.is_hidden(path, is_directory=is_directory):
            return True
        return any(
            rules.match_within(relative_to(path, base), is_directory)
            for base, rules in self.backup_rules
            if is_within(path, base) and path != base
        )


def hidden_by(snapshot: Snapshot, selection: Selection) -> Hidden:
    """Return what --delete must leave alone: the patterns', the backup's excludes, its skips.

    Raises:
        Refused: the backup skipped more than its report has room for, so nobody knows what.
        Damaged: the report cannot be read.
    """
    body = snapshot.body
    rules = [(path, Rules(body.excludes, path)) for path in body.paths] if body.excludes else []
    reported: set[bytes] = set()
    for report in snapshot.reports():
        if report.more:
            raise Refused(
                "--delete is refused: the backup skipped more files than its report names",
                hint="Restore without --delete.",
            )
        reported.update(row.path for row in report.rows)
    above = frozenset(parent for path in reported for parent in _parents(path))
    return Hidden(selection, rules, frozenset(reported), above)


def _parents(path: bytes) -> Iterable[bytes]:
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path

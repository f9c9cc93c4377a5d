"""Change hints in a backup: the entries of a quiet directory as the parent has them, unread.

A hint is trusted for little: that no name of one directory came or went, and that what it cannot be
wrong about stayed as it was. Everything else is looked at by its name as ever: each directory (and
entered, and judged for itself), and each file of which a change might not have been told - large
ones and those that changed less than a day before the parent was made (written through a mapping or
by asynchronous writes, which tell nothing until they end), those with other names, through which
they are written elsewhere, and what the parent itself does not believe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from holdfast_agent.engine.source import AtRest, Listing, Row
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.findings import Finding
from holdfast_agent.sources.scan import stats_of
from holdfast_agent.sources.watches import Watching
from holdfast_agent.tree.entry import EntryType, Stat
from holdfast_agent.tree.known import KnownPage, KnownTreeLost
from holdfast_agent.tree.page import page_stats
from holdfast_contract.errors import HoldfastError
from holdfast_contract.limits import KIB

TRUSTED_BYTES_MAX: Final = 512 * KIB
"""Larger files are looked at always: databases write them through mappings."""
YOUNG_NS: Final = 86_400_000_000_000
"""What changed less than this before it was read may be at work, and is looked at always."""
_FILE: Final = int(EntryType.FILE)
_DIRECTORY: Final = int(EntryType.DIRECTORY)


@dataclass(frozen=True, slots=True)
class Hints:
    """What a source needs to leave directories unread."""

    watching: Watching
    young_from_ns: int
    """Time of change from which on a file of the parent is not trusted to be at rest."""


class QuietListing:
    """The entries of a quiet directory; fits engine.source.Listing."""

    def __init__(
        self,
        directory: Directory,
        here: bytes,
        pages: Iterator[KnownPage],
        hints: Hints,
        watch: int,
    ) -> None:
        """Take the parent's pages of `directory`, which are read one after the other."""
        self._directory = directory
        self._here = here
        self._pages = pages
        self._hints = hints
        self._watch = watch
        self._findings: list[Finding] = []
        self._ahead: list[Stat] = []
        self._at = 0
        self.looked_at: set[bytes] = set()
        """Names that were not trusted; whoever wants to know empties it."""
        self._files = self._bytes = 0
        self._is_at_rest = True
        rest = hints.watching.take_rest(watch)
        self.at_rest = None if rest is None else AtRest(*rest)
        """What was counted for an earlier snapshot, when nothing needed to be looked at."""

    def has(self, last: bytes | None = None) -> bool:
        """Tell whether an entry up to and including `last` (None: any) is left."""
        while self._at == len(self._ahead):
            page = next(self._pages, None)
            if page is None:
                return False
            self._ahead, self._at = self._looked_at(page), 0
        return last is None or self._ahead[self._at].name <= last

    def take(self, last: bytes | None, entries_max: int) -> list[Stat]:
        """Return the next entries up to and including `last` (None: all)."""
        taken: list[Stat] = []
        while len(taken) < entries_max and self.has(last):
            ahead, start = self._ahead, self._at
            end = len(ahead) if last is None else bisect_right(ahead, last, start, key=_name)
            self._at = min(end, start + entries_max - len(taken))
            taken += ahead[start : self._at]
        return taken

    def rows(self) -> list[Row]:
        """Return, once each, what could not be looked at so far."""
        found, self._findings = self._findings, []
        within = [finding.within(self._here) for finding in found]
        return [Row(finding.path, finding.reason.value, finding.message) for finding in within]

    def note_kept(self) -> None:
        """Have it at rest for the next backup, where nothing needed to be looked at.

        Not where a page came out anew: a file that had its turn may have other names by now.
        """
        if self.at_rest is not None:
            self._hints.watching.note_rest(self._watch, *self.at_rest)
        elif self._is_at_rest:
            self._hints.watching.note_rest(self._watch, self._files, self._bytes)

    def close(self) -> None:
        """Forget the pages."""
        self._ahead, self._pages, self._at = [], iter(()), 0

    def _looked_at(self, page: KnownPage) -> list[Stat]:
        """Return the entries of a page: as they are now where they are not trusted."""
        try:
            stats = page_stats(page.data)
        except HoldfastError as exc:
            raise KnownTreeLost("a cached page cannot be decoded") from exc
        if page.has_links:
            doubted = [stat.name for stat in stats]
        else:
            young = self._hints.young_from_ns
            doubted = [
                stat.name
                for stat in stats
                if (stat.size and (stat.size > TRUSTED_BYTES_MAX or stat.ctime_ns >= young))
                or stat.type == _DIRECTORY
                or stat.flags
            ]
        if not doubted:
            self._files += len(stats)
            self._bytes += sum(stat.size for stat in stats)
            return list(stats)
        self._is_at_rest = False
        self.looked_at.update(doubted)
        looked = stats_of(self._directory, doubted)
        self._findings += looked.findings
        now = {stat.name: stat for stat in looked.entries}
        gone = set(doubted) - now.keys()
        return [now.get(stat.name, stat) for stat in stats if stat.name not in gone]


class AuditedListing:
    """A directory that is read although it is quiet; fits engine.source.Listing."""

    def __init__(self, read: Listing, quiet: QuietListing, suspect: Callable[[int], None]) -> None:
        self._read = read
        self._quiet = quiet
        self._suspect = suspect
        """Told how many entries are not as the hints would have had them."""
        self.at_rest: AtRest | None = None
        self.has = read.has
        self.rows = read.rows

    def take(self, last: bytes | None, entries_max: int) -> list[Stat]:
        """Return the next entries as they are now."""
        # The quiet ones first: what changes in between has told so when the job ends.
        expected = self._quiet.take(last, entries_max)
        found = self._read.take(last, entries_max)
        # What was not trusted may change without a word between these two looks.
        looked_at, self._quiet.looked_at = self._quiet.looked_at, set()
        differing = _differing(expected, found) - looked_at
        if differing:
            self._suspect(len(differing))
        return found

    def note_kept(self) -> None:
        """Do nothing: the next backup counts what has come out of this one."""

    def close(self) -> None:
        """Forget the names and the pages."""
        self._read.close()
        self._quiet.close()


def _name(stat: Stat) -> bytes:
    return stat.name


def _differing(expected: list[Stat], found: list[Stat]) -> set[bytes]:
    """Return the names whose entries differ.

    Not by the time of change alone: `chattr`, or a further name elsewhere, tells nothing to the
    directory and changes nothing that is backed up.
    """
    if expected == found:
        return set()
    unlike = {_without_ctime(stat) for stat in expected} ^ {_without_ctime(stat) for stat in found}
    return {stat.name for stat in unlike}


def _without_ctime(stat: Stat) -> Stat:
    return msgspec.structs.replace(stat, ctime_ns=0, flags=0)

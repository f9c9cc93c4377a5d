"""The rules of protocol.md as switches, and how much of the world one search looks at.

A rule that is off is a planted mistake. What is bounded here is the size of the world, never what
may happen within it: every step may come before or after every other one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Every rule that keeps data safe; all on is what the product is to do."""

    have_is_live_only: bool = True
    """R1: `have` says yes for live chunks only."""
    commit_checks: bool = True
    """R2: commit looks at every reference, whatever `have` said."""
    commit_reads_leave_log: bool = True
    """R2: its transaction looks again at what stopped being live since the check outside."""
    parent_in_transaction: bool = True
    """What is shared with the parent counts as there only if it stands in the transaction."""
    commit_knows_damage: bool = True
    """Shared references are checked against damaged chunks all the same."""
    mark_is_one_moment: bool = True
    """R3: the mark's commit number is taken before the snapshots are listed, not after."""
    steps_read_commit_log: bool = True
    """R3: condemn and sweep leave out what was committed since the mark."""
    trash_is_root: bool = True
    """Trashed snapshots are marked like standing ones."""
    names_are_unique: bool = True
    """R4: the name of a deleted pack is never used again."""
    names_come_first: bool = True
    """R7: a name is in the catalog before bytes lie under it; unknown objects are not touched."""
    orphans_are_fenced: bool = True
    """R7: who deletes an orphan fences its name first, in a transaction; age proves nothing."""
    index_needs_the_name: bool = True
    """R7: the transaction that makes a pack count demands its name, unfenced."""
    packs_are_wholly_dead: bool = True
    """A pack goes when one transaction finds no live, condemned, damaged or spare row in it."""
    compaction_compares: bool = True
    """Compaction moves a row only where pack and state are still what it copied."""
    first_copy_wins: bool = True
    """A later copy of a chunk that has a live one is kept as a spare."""
    intent_comes_first: bool = True
    """Bytes go only after the journal durably says that they will."""
    journal_before_acknowledgement: bool = True
    """An agent hears of its snapshot only when the journal holds it."""
    start_follows_journal: bool = True
    """A catalog that is older than the store takes its journal over, or refuses."""
    refusal_stops_answers: bool = True
    """While it refuses, it answers no `have` and commits nothing: it calls live what is gone."""
    replay_keeps_snapshots_whole: bool = True
    """A deletion is not taken over while the older catalog knows of no other copy that a snapshot
    needs: the one that made the deletion right lies in a pack that this catalog never indexed."""


@dataclass(frozen=True)
class Scene:
    """What happens in one search, and how often."""

    plans: tuple[tuple[int, ...], ...] = ((0, 1), (0,))
    """The chunks that each client's backups need."""
    packs: int = 3
    snapshots: int = 2
    collections: int = 0
    harms: int = 0
    """How often a copy turns out to be damaged."""
    liars: tuple[int, ...] = ()
    """Clients whose packs hold other bytes than they say; no server can tell."""
    rollbacks: int = 0
    has_trash: bool = False
    has_parents: bool = False
    """Agents start from their own newest snapshot and do not ask for what it has."""
    has_compaction: bool = False
    has_orphan_sweep: bool = False
    has_restarts: bool = False
    has_incomplete: bool = False
    """Agents sign what cannot heal as `incomplete`."""
    loses_answers: bool = False
    """A deletion that was done may come again, from who never heard of it."""
    splits_put: bool = False
    """Name, bytes and index of a pack are three steps."""
    splits_commit: bool = False
    """The check outside and the transaction of a commit are two steps."""
    splits_journal: bool = False
    """Records wait in the outbox, and a step of its own brings them to the store."""
    one_pack_a_put: bool = False
    """An agent sends all that it lacks in one pack; otherwise any part of it."""

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return max(map(max, self.plans)) + 1

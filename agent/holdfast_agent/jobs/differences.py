"""What differs between two parts of snapshots, as a stream; equal subtrees are never read."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from holdfast_agent.ports import Cancel
from holdfast_agent.snapshots.snapshot import Found, Snapshot, joined
from holdfast_agent.tree.entry import Entry, EntryType
from holdfast_contract.errors import Damaged
from holdfast_contract.limits import DEPTH_MAX


class Change(StrEnum):
    """How an entry differs."""

    ADDED = "added"
    REMOVED = "removed"
    MODIFIED = "modified"
    METADATA = "metadata"
    TYPE = "type"


class Difference(NamedTuple):
    """One entry that differs; `found` is as in the second part, removed ones as in the first."""

    change: Change
    found: Found


class Side(NamedTuple):
    """A part of a snapshot."""

    snapshot: Snapshot
    found: Found


def differences(one: Side, two: Side, cancel: Cancel) -> Iterator[Difference]:
    """Yield what differs, parents first.

    A directory's own time does not count: it follows from what happens in it.

    Raises:
        Damaged: a part of a tree cannot be read.
    """
    stack: list[Iterator[tuple[Found | None, Found | None]]] = [iter([(one.found, two.found)])]
    while stack:
        cancel.check()
        pair = next(stack[-1], None)
        if pair is None:
            stack.pop()
            continue
        left, right = pair
        if left is None or right is None or _kinds_differ(left, right):
            yield from _alone(one, two, left, right)
            continue
        if not left.is_directory:
            yield from _changed(one, two, left, right)
            continue
        if _metadata_of(one.snapshot, left) != _metadata_of(two.snapshot, right):
            yield Difference(Change.METADATA, right)
        if not _is_same_list(left.entry, right.entry):
            if len(stack) > DEPTH_MAX:
                raise Damaged("a tree is deeper than the format allows", reason="depth")
            stack.append(_paired(one, two, left, right))


def _kinds_differ(left: Found, right: Found) -> bool:
    return left.entry.stat.type != right.entry.stat.type


def _alone(one: Side, two: Side, left: Found | None, right: Found | None) -> Iterator[Difference]:
    """Yield what only one side has, with all below it."""
    if left is not None and right is not None:
        yield Difference(Change.TYPE, right)
    if left is not None:
        below = iter(one.snapshot.walk(left))
        if right is not None:
            next(below)
        yield from (Difference(Change.REMOVED, found) for found in below)
    if right is not None:
        below = iter(two.snapshot.walk(right))
        if left is not None:
            next(below)
        yield from (Difference(Change.ADDED, found) for found in below)


def _paired(
    one: Side, two: Side, left: Found, right: Found
) -> Iterator[tuple[Found | None, Found | None]]:
    """Yield the entries of two directories side by side, sorted by name."""
    lefts = one.snapshot.children(left.entry, left.path)
    rights = two.snapshot.children(right.entry, right.path)
    first, second = next(lefts, None), next(rights, None)
    while first is not None or second is not None:
        name = min(entry.stat.name for entry in (first, second) if entry is not None)
        here = there = None
        if first is not None and first.stat.name == name:
            here, first = Found(joined(left.path, name), first), next(lefts, None)
        if second is not None and second.stat.name == name:
            there, second = Found(joined(right.path, name), second), next(rights, None)
        yield here, there


def _changed(one: Side, two: Side, left: Found, right: Found) -> Iterator[Difference]:
    if not _has_same_content(one.snapshot, two.snapshot, left.entry, right.entry):
        yield Difference(Change.MODIFIED, right)
    elif left.entry.stat.mtime_ns != right.entry.stat.mtime_ns or _metadata_of(
        one.snapshot, left
    ) != _metadata_of(two.snapshot, right):
        yield Difference(Change.METADATA, right)


def _has_same_content(one: Snapshot, two: Snapshot, left: Entry, right: Entry) -> bool:
    if left.stat.size != right.stat.size:
        return False
    if left.stat.type != EntryType.FILE:
        mine, others = left.content, right.content
        return (mine.target, mine.device) == (others.target, others.device)
    if left.content.content_id and right.content.content_id:
        return left.content.content_id == right.content.content_id
    if _is_same_list(left, right):
        return True
    if not left.content.spill and not right.content.spill:
        return False
    return list(one.extents(left)) == list(two.extents(right))


def _is_same_list(left: Entry, right: Entry) -> bool:
    mine, others = left.content, right.content
    return (mine.spill, mine.extents) == (others.spill, others.extents)


def _metadata_of(snapshot: Snapshot, found: Found) -> tuple[object, ...]:
    stat, content = found.entry.stat, found.entry.content
    return stat.mode, content.uid, content.gid, snapshot.attributes(found.entry), stat.flags & 6

"""A tree in outline: where pages lie and what contents they have, without names and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.tree.entry import Entry, Extent
from holdfast_agent.tree.page import Outline, outline_page
from holdfast_contract.errors import Damaged, InvalidInput, UnsupportedVersion
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import DEPTH_MAX

OnDamage = Callable[[Exception], None]
"""Called for a part that cannot be read."""


def outlines(snapshot: Snapshot, on_damage: OnDamage) -> Iterator[tuple[Extent, Outline]]:
    """Yield the outline of every page and where it lies, each before those below it.

    Cost: half a microsecond an entry, a sixth of a walk.

    Raises:
        Damaged: the tree has more entries than the manifest counts, or is too deep.
    """
    body = snapshot.body
    left = body.files + body.dirs + 1 + sum(path.count(b"/") for path in body.paths)
    stack = [_steps(snapshot, snapshot.root, on_damage)]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, Entry):
            if len(stack) > DEPTH_MAX:
                raise _broken(snapshot, "is deeper than the format allows")
            stack.append(_steps(snapshot, step, on_damage))
        else:
            # A forged tree could name one child twice at every level.
            left -= step[1].entries
            if left < 0:
                raise _broken(snapshot, "has more entries than its manifest counts")
            yield step


def _steps(
    snapshot: Snapshot, directory: Entry, on_damage: OnDamage
) -> Iterator[tuple[Extent, Outline] | Entry]:
    """Yield the outlines of a directory's pages, each followed by the directories in it."""
    extents = snapshot.extents(directory)
    while True:
        try:
            extent = next(extents, None)
            if extent is None:
                return
            own = ChunkId(extent.chunk)
            outline = outline_page(snapshot.part(extent), own, extent.offset)
        except (Damaged, InvalidInput, UnsupportedVersion) as damage:
            on_damage(damage)
            continue
        yield extent, outline
        for stat, content in outline.directories:
            yield Entry(stat, content)


def _broken(snapshot: Snapshot, what: str) -> Damaged:
    name = snapshot.id.hex()
    return Damaged(f"snapshot {name[:16]} {what}", object=f"manifest {name}", reason="count")

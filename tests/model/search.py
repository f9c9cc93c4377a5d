"""Looks at every state within a scene's bounds, nearest first, or walks through them by seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from random import Random
from typing import Final, NamedTuple

from tests.model import collection, misfortune, uploads
from tests.model.rules import Rules, Scene
from tests.model.state import Kept, Reached, Record, Row, Snapshot, State, Step
from tests.model.world import begin, is_readable, is_true, served

RIGHT: Final = Rules()
CHANCES: Final = {
    **dict.fromkeys(("crash", "restart", "gc.mark", "gc.crash", "purge", "orphans.fence"), 1),
    **dict.fromkeys(("bytes", "index", "check", "write", "check-incomplete"), 12),
}
"""Chances of verbs in a walk; 4: all others."""


class Found(NamedTuple):
    """What a search found: the shortest way to something wrong, if there is one."""

    states: int
    wrong: str
    trace: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.wrong or 'holds'} ({self.states} states): {' '.join(map(str, self.trace))}"


def steps(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """Yield everything that may happen next, and where it leads."""
    return chain(
        uploads.steps(state, scene, rules),
        misfortune.steps(state, scene, rules),
        collection.steps(state, scene, rules),
    )


def explore(scene: Scene, rules: Rules = RIGHT, *, states_max: int = 10_000_000) -> Found:
    """Return the shortest trace that breaks an invariant, or how many states hold all of them.

    Cost: about 30,000 states a second; 1 KB a state.
    """
    first = begin(scene)
    came_from: dict[State, Reached | None] = {first: None}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        for step, following in steps(state, scene, rules):
            if following in came_from:
                continue
            came_from[following] = (step, state)
            wrong = wrong_after(state, step, following, scene)
            if wrong:
                return Found(len(came_from), wrong, _trace(following, came_from))
            waiting.append(following)
        assert len(came_from) <= states_max, f"more than {states_max} states"
    return Found(len(came_from), "", ())


def _trace(state: State, came_from: dict[State, Reached | None]) -> tuple[Step, ...]:
    taken: list[Step] = []
    while (arrival := came_from[state]) is not None:
        step, state = arrival
        taken.append(step)
    return tuple(reversed(taken))


def walk(scene: Scene, seed: int, length: int, rules: Rules = RIGHT) -> Iterator[Reached]:
    """Yield at most `length` steps of one way through a scene; the same seed goes the same way.

    Every verb that is possible has its chance, however many ways there are to do it: what ends
    something begun a large one, what interrupts a small one.
    """
    random, state = Random(seed), begin(scene)
    for _ in range(length):
        by_verb: dict[str, list[Reached]] = {}
        for step, following in steps(state, scene, rules):
            by_verb.setdefault(step.verb, []).append((step, following))
        if not by_verb:
            return
        verbs = sorted(by_verb)
        weights = [CHANCES.get(verb, 4) for verb in verbs]
        (verb,) = random.choices(verbs, weights)
        step, state = random.choice(by_verb[verb])
        yield step, state


# --- what always holds


def wrong_after(before: State, step: Step, state: State, scene: Scene) -> str:
    """Return what is wrong with a state that a step has led to; empty: nothing."""
    if state.broken:
        return state.broken
    if state.refusal:
        return _wrong_in_store(state)
    displaced = _displaced(before, step, state) if scene.liars else ""
    return displaced or _wrong_in_catalog(state) or _lost(state)


def _wrong_in_catalog(state: State) -> str:
    """Every standing snapshot restores, and what does not is known to be damaged."""
    for number, snapshot in enumerate(state.catalog.snapshots):
        if snapshot.kept is not Kept.STANDING:
            continue
        for chunk in snapshot.refs:
            copies = state.catalog.copies[chunk]
            if any(copy.row is Row.DAMAGED for copy in copies):
                continue
            if not is_readable(state, copies):
                return f"snapshot {number} stands without chunk {chunk}"
    for chunk, copies in enumerate(state.catalog.copies):
        if [copy.row for copy in copies].count(Row.LIVE) > 1:
            return f"chunk {chunk} has two live copies"
    return ""


def _displaced(before: State, step: Step, after: State) -> str:
    """A forged copy takes the place of a good one only where the good one is damaged."""
    if step.verb == "damage":
        return ""
    for chunk, copies in enumerate(before.catalog.copies):
        now = after.catalog.copies[chunk]
        if is_true(before, copies) and served(now) is not None and not is_true(after, now):
            return f"a forged copy of chunk {chunk} has displaced a good one"
    return ""


def _lost(state: State) -> str:
    gone = [number for number in state.acknowledged if number >= len(state.catalog.snapshots)]
    return f"acknowledged snapshots {gone} are gone" if gone else ""


def _wrong_in_store(state: State) -> str:
    """While the catalog is refused, the store alone must hold what was acknowledged."""
    told = _snapshots_of(state.journal)
    missing = state.acknowledged - told.keys()
    if missing:
        return f"acknowledged snapshots {sorted(missing)} are in no journal"
    there = {chunk for packed in state.store if packed is not None for chunk in packed.chunks}
    for number, snapshot in told.items():
        if snapshot.kept is Kept.STANDING and not there.issuperset(snapshot.refs):
            return f"the store lacks chunks of snapshot {number}"
    return ""


def _snapshots_of(journal: tuple[Record, ...]) -> dict[int, Snapshot]:
    return {record.what[0]: record.snapshot for record in journal if record.snapshot is not None}

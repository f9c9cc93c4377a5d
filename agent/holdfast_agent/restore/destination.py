"""Where entries go: below one target, or back to where they were."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from holdfast_agent.restore.target import Place, Target
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sources.descent import components
from holdfast_agent.sources.roots import OwnFiles, Root, Roots, is_within, normal_path
from holdfast_contract.errors import InvalidInput, NotFound, OutsideRoots, Refused
from holdfast_contract.protocol.control import Mode


@dataclass(frozen=True, kw_only=True)
class RestoreScope:
    """What a pod's own configuration lets a restore do."""

    mode: Mode
    roots: Roots | None
    """All that may ever be written; None: anything (a command line's own restore)."""
    own: OwnFiles = field(default_factory=lambda: OwnFiles(()))

    @property
    def is_local(self) -> bool:
        """Whether the person at this machine asks, not a server."""
        return self.roots is None


def local_scope() -> RestoreScope:
    """Return the scope of `holdfast restore --local`: whatever the caller may write."""
    return RestoreScope(mode=Mode.ALTERNATE, roots=None)


@dataclass(frozen=True, slots=True)
class Spot:
    """One directory of a target."""

    target: Target | None
    """None: the target itself does not exist (only in a dry run)."""
    place: Place

    def below(self, name: bytes) -> Spot:
        """Return the spot of the directory `name` in this one."""
        return Spot(self.target, (*self.place, name))


class Destination(Protocol):
    """Says where a directory of a snapshot goes."""

    def spot(self, path: bytes, dropped: bytes) -> Spot | None:
        """Return the place of the directory `path` without its prefix `dropped`; None: nowhere."""

    def targets(self) -> list[Target]:
        """Return all that may have been written to."""

    def close(self) -> None:
        """Give every descriptor back."""


class Below:
    """Everything under one directory."""

    def __init__(self, target: Target | None) -> None:
        self._target = target

    def spot(self, path: bytes, dropped: bytes) -> Spot | None:
        """Return the place of the directory `path`; None for what is above `dropped`."""
        if not is_within(path, dropped or b"/"):
            return None
        return Spot(self._target, tuple(components(path[len(dropped) :])))

    def targets(self) -> list[Target]:
        """Return the target."""
        return [self._target] if self._target else []

    def close(self) -> None:
        """Give every descriptor back."""
        if self._target:
            self._target.close()


class InPlace:
    """Where everything was, within the restore roots."""

    def __init__(self, roots: Roots, *, run: str, own: OwnFiles, create: bool) -> None:
        self._roots = roots
        self._run = run
        self._own = own
        self._create = create
        self._open: dict[Root, Target | None] = {}

    def spot(self, path: bytes, dropped: bytes) -> Spot | None:
        """Return the place of the directory `path`; None for what is above all roots."""
        for root in self._roots.roots:
            for top in (root.shown, root.real):
                if is_within(path, top):
                    place = tuple(components(path[len(top) :]))
                    return Spot(self._target(root), place)
        return None

    def _target(self, root: Root) -> Target | None:
        if root not in self._open:
            self._open[root] = open_target(
                root.shown, self._roots, run=self._run, own=self._own, create=self._create
            )
        return self._open[root]

    def targets(self) -> list[Target]:
        """Return the roots that were opened."""
        return [target for target in self._open.values() if target]

    def close(self) -> None:
        """Give every descriptor back."""
        with ExitStack() as stack:
            for target in self.targets():
                stack.callback(target.close)


def open_target(
    path: bytes, roots: Roots | None, *, run: str, own: OwnFiles, create: bool
) -> Target | None:
    """Return the target at `path`; None where it is absent and may not be made (a dry run)."""
    try:
        return Target.open(path, run=run, create=create, limits=roots, own=own)
    except NotFound:
        if create:
            raise
        return None


def check_scope(scope: RestoreScope, target: bytes, *, strip: bool) -> None:
    """Refuse what the pod does not allow, before anything is looked at.

    Raises:
        Refused: no restores here, or none to the original paths.
        OutsideRoots: the target is outside the restore roots.
        InvalidInput: the target is no absolute path, or --strip without one.
    """
    if scope.mode is Mode.NEVER:
        raise Refused("this pod allows no restore", hint="HOLDFAST_RESTORE is set in the pod.")
    if target:
        wanted = normal_path(target)
        if scope.roots is not None:
            scope.roots.check(wanted)
        return
    if scope.mode is not Mode.IN_PLACE or scope.roots is None:
        raise Refused(
            "this pod allows no restore to the original paths",
            hint="Give a --target, or set HOLDFAST_RESTORE=in-place in the pod.",
        )
    if strip:
        raise InvalidInput("--strip needs a --target")


def check_in_place(roots: Roots, snapshot: Snapshot, found: Found) -> None:
    """Refuse what would go outside the restore roots.

    Raises:
        OutsideRoots: a path is outside.
    """
    if not found.is_implied:
        roots.check(found.path)
        return
    paths = [path for path in snapshot.body.paths if is_within(path, found.path)]
    if not paths:
        raise OutsideRoots("the path is outside the restore roots")
    for path in paths:
        roots.check(path)


def dropped_prefix(snapshot: Snapshot, found: Found) -> tuple[Found, bytes]:
    """Return what --strip begins with, and the prefix that it drops.

    A directory gives its contents, anything else itself. Of directories above the backed-up paths,
    of which nothing is known, those that hold one entry only are dropped as well.
    """
    while found.is_implied:
        below = list(snapshot.children(found.entry, found.path))
        if len(below) != 1 or not Found(found.path, below[0]).is_directory:
            break
        found = snapshot.find(found.path.rstrip(b"/") + b"/" + below[0].stat.name)
    if found.is_directory:
        return found, found.path.rstrip(b"/")
    return found, found.path.rpartition(b"/")[0]

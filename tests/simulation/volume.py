"""A pod's volume in memory: an application changes it while the agent reads it.

Timestamps have the grain of a kernel's tick, so a file can change twice within one and look the
same. Every content that a file ever had is remembered with its time: what a snapshot may hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Final

from tests.simulation.hints import SimQueue

TICK_NS: Final = 10_000_000
TOP: Final = b"/data"
SECRET: Final = b"private-"
"""Every name in a volume begins so: it must never be found where it has no business."""


@dataclass
class SimFile:
    """A file or a directory."""

    inode: int
    mtime_ns: int
    ctime_ns: int
    content: bytes | None
    """None: a directory."""


@dataclass
class Volume:
    """The tree below /data."""

    rng: Random
    clock: VolumeClock
    nodes: dict[bytes, SimFile] = field(default_factory=dict)
    history: dict[bytes, list[tuple[float, bytes | None]]] = field(default_factory=dict)
    """Path -> (virtual time, content from then on); None: it is gone."""
    inodes: int = 10
    locked: set[bytes] = field(default_factory=set)
    """Files that cannot be read now."""
    races: float = 0.0
    """Chance that the application writes just before a file is read, and once more just after."""
    queues: list[SimQueue] = field(default_factory=list)
    """Told what happens in directories."""

    def __post_init__(self) -> None:
        self._make(TOP, None)

    def _make(self, path: bytes, content: bytes | None) -> None:
        self.inodes += 1
        stamp = self.clock.stamp_ns()
        self.nodes[path] = SimFile(self.inodes, stamp, stamp, content)
        if content is not None:
            self._note(path, content)

    def _note(self, path: bytes, content: bytes | None) -> None:
        self.history.setdefault(path, []).append((self.clock.monotonic(), content))

    def _touch_above(self, path: bytes) -> None:
        above = self.nodes[path.rpartition(b"/")[0]]
        above.mtime_ns = above.ctime_ns = self.clock.stamp_ns()
        self._tell_above(path)

    def _tell_above(self, path: bytes) -> None:
        if path != TOP:
            self._tell(self.nodes[path.rpartition(b"/")[0]])

    def _tell(self, directory: SimFile, *, is_gone: bool = False) -> None:
        for queue in self.queues:
            queue.tell(directory.inode, is_gone=is_gone)

    def files(self) -> list[bytes]:
        """Return the paths of all files."""
        return sorted(path for path, node in self.nodes.items() if node.content is not None)

    def directories(self) -> list[bytes]:
        """Return the paths of all directories."""
        return sorted(path for path, node in self.nodes.items() if node.content is None)

    # --- what the application does
    def write(self, path: bytes, content: bytes) -> None:
        """Write a file in place, or make it."""
        node = self.nodes.get(path)
        if node is None:
            self._make(path, content)
            self._touch_above(path)
            return
        assert node.content is not None
        node.content = content
        node.mtime_ns = node.ctime_ns = self.clock.stamp_ns()
        self._note(path, content)
        self._tell_above(path)

    def make_directory(self, path: bytes) -> None:
        """Make a directory."""
        if path not in self.nodes:
            self._make(path, None)
            self._touch_above(path)

    def remove(self, path: bytes) -> None:
        """Remove an entry with all below it."""
        for below in [p for p in self.nodes if p == path or p.startswith(path + b"/")]:
            node = self.nodes.pop(below)
            if node.content is not None:
                self._note(below, None)
            else:
                self._tell(node, is_gone=True)
        self._touch_above(path)

    def rename(self, path: bytes, new: bytes) -> None:
        """Move a file; its times but the ctime stay."""
        node = self.nodes.pop(path)
        assert node.content is not None
        node.ctime_ns = self.clock.stamp_ns()
        if new in self.nodes:
            self._note(new, None)
        self.nodes[new] = node
        self._note(path, None)
        self._note(new, node.content)
        self._touch_above(path)
        self._touch_above(new)

    def move_directory(self, path: bytes, new: bytes) -> None:
        """Move a directory: it is told so, and the two above it, but nothing that lies in it."""
        self._touch_above(path)
        self._tell(self.nodes[path])
        for below in [p for p in self.nodes if p == path or p.startswith(path + b"/")]:
            node = self.nodes.pop(below)
            moved = self.nodes[new + below[len(path) :]] = node
            if moved.content is not None:
                self._note(below, None)
                self._note(new + below[len(path) :], moved.content)
        self.nodes[new].ctime_ns = self.clock.stamp_ns()
        self._touch_above(new)

    def exchange_directories(self) -> None:
        """Give two directories that lie beside each other each other's names."""
        pairs = [
            (one, two)
            for one, two in combinations(self.directories(), 2)
            if one.rpartition(b"/")[0] == two.rpartition(b"/")[0]
        ]
        if pairs:
            one, two = self.rng.choice(pairs)
            self.move_directory(one, one + b"-aside")
            self.move_directory(two, one)
            self.move_directory(one + b"-aside", two)

    def lock(self, paths: set[bytes]) -> None:
        """Have these files, and no others, refuse to be read: as by chmod, which their ctime shows.

        One that nobody touched would not be read at all.
        """
        for path in sorted(paths ^ self.locked):
            if path in self.nodes:
                self.nodes[path].ctime_ns = self.clock.stamp_ns()
                self._tell_above(path)
        self.locked = paths

    def act(self) -> str:
        """Do something at random; return what."""
        rng, files = self.rng, self.files()
        kind = rng.choice(["write", "write", "new", "new", "copy", "remove", "rename", "same size"])
        if kind == "new" or not files:
            self.write(self.new_path(), self.new_content())
        elif kind == "write":
            self.write(rng.choice(files), self.new_content())
        elif kind == "same size":
            path = rng.choice(files)
            old = self.nodes[path].content or b"x"
            self.write(path, rng.randbytes(len(old)))
        elif kind == "copy":
            self.write(self.new_path(), self.nodes[rng.choice(files)].content or b"")
        elif kind == "remove" and len(files) > 2:
            self.remove(rng.choice(files))
        elif kind == "rename":
            self.rename(rng.choice(files), self.new_path())
        return kind

    def race(self, path: bytes) -> Callable[[], None]:
        """Write to a file that is about to be read, now and then; return what follows it."""
        if self.rng.random() >= self.races:
            return lambda: None

        def write() -> None:
            node = self.nodes.get(path)
            if node is not None and node.content:
                self.write(path, self.rng.randbytes(len(node.content)))

        write()
        return write

    def new_path(self) -> bytes:
        """Return a path that nothing has; now and then in a directory of its own."""
        folder = self.rng.choice(self.directories())
        if self.rng.random() < 0.3 and folder.count(b"/") < 4:
            folder += b"/" + SECRET + b"d%06x" % self.rng.getrandbits(24)
            self.make_directory(folder)
        return folder + b"/" + SECRET + b"%08x" % self.rng.getrandbits(32)

    def new_content(self) -> bytes:
        """Return the content of a file: few bytes mostly, now and then a larger one."""
        size = self.rng.choice([0, 1, 40, 200, 200, 900, 900, 3000, 9000])
        return self.rng.randbytes(size)

    # --- what the oracle asks
    def contents_between(self, path: bytes, begin: float, end: float) -> list[bytes | None]:
        """Return everything that a path has held in that time; None: nothing."""
        states: list[tuple[float, bytes | None]] = [
            (float("-inf"), None),
            *self.history.get(path, []),
        ]
        found = []
        for (since, content), following in zip(states, [*states[1:], None], strict=True):
            until = float("inf") if following is None else following[0]
            if since <= end and until >= begin:
                found.append(content)
        return found


class VolumeClock:
    """The clock of a pod; `ahead_ns` is what it was set wrong by."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.ahead_ns = 0
        self.volume: Volume | None = None

    def monotonic(self) -> float:
        return self._now()

    def now_ns(self) -> int:
        return 1_800_000_000_000_000_000 + round(self._now() * 1e9) + self.ahead_ns

    def stamp_ns(self) -> int:
        now = self.now_ns()
        return now - now % TICK_NS

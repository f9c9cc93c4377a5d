"""Seeded random trees as data: every kind of entry and attribute that a backup must bring back.

`plan_tree(seed)` is pure: the same seed gives the same plan. `tests.support.materialise` writes a
plan to disk, `tests.support.mutate` does a day's edits on what is there.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

KIB = 1024
MIB = 1024 * KIB
PRIVILEGED = os.geteuid() == 0

Xattrs = dict[str, bytes]


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHAR_DEVICE = "char device"
    BLOCK_DEVICE = "block device"


class Flavour(StrEnum):
    """What bytes a piece of a file holds."""

    RANDOM = "random"
    TEXT = "text"
    ZEROS = "zeros"
    """Written, hence allocated: not a hole."""


@dataclass(frozen=True)
class Piece:
    """Bytes at `offset`; equal flavour, seed and length are equal bytes in any file."""

    offset: int
    length: int
    flavour: Flavour
    seed: int

    def content(self) -> bytes:
        """Return the piece's bytes."""
        if self.flavour is Flavour.ZEROS:
            return bytes(self.length)
        rng = random.Random(self.seed)
        if self.flavour is Flavour.RANDOM:
            return rng.randbytes(self.length)
        words = [rng.randbytes(rng.randrange(2, 9)).hex().encode() for _ in range(64)]
        line = b" ".join(rng.choices(words, k=200)) + b"\n"
        lines = [b"%d " % number + line for number in range(self.length // len(line) + 1)]
        return b"".join(lines)[: self.length]


@dataclass
class Node:
    """One entry to be made; what does not fit its kind is left at its default."""

    kind: Kind
    mode: int = 0o644
    owner: tuple[int, int] | None = None
    """None: whoever runs the tests."""
    mtime_ns: int = 1_700_000_000_000_000_000
    xattrs: Xattrs = field(default_factory=dict)
    size: int = 0
    """Of a file; what no piece covers is a hole."""
    pieces: tuple[Piece, ...] = ()
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    link_group: str = ""
    """Entries of one group are names of one inode; the first met says what it is."""
    children: dict[bytes, Node] = field(default_factory=dict)

    def walk(self, path: tuple[bytes, ...] = ()) -> Iterator[tuple[tuple[bytes, ...], Node]]:
        """Yield this entry and all below it with their names below the top, parents first."""
        yield path, self
        for name, child in self.children.items():
            yield from child.walk((*path, name))


def plan_tree(
    seed: int,
    *,
    entries: int = 40,
    complete: bool = False,
    privileged: bool = PRIVILEGED,
) -> Node:
    """Return the top directory of a random tree.

    Shape:  about `entries` ordinary entries and half of the special cases; all of them when
            `complete`. The logical size may pass 4 GiB, what is allocated stays below 16 MiB.
    Bounds: `entries` >= 1. Without `privileged`: no owners, devices or file capabilities.
    """
    rng = random.Random(seed)
    top = Node(Kind.DIRECTORY, mode=0o755, mtime_ns=_time(rng))
    folders = [top]
    for _ in range(entries):
        parent = rng.choice(folders)
        node = _ordinary(rng)
        if node.kind is Kind.DIRECTORY:
            folders.append(node)
        parent.children[_free_name(rng, parent)] = node
    for special in SPECIALS + (PRIVILEGED_SPECIALS if privileged else ()):
        if complete or rng.random() < 0.5:
            special(rng, rng.choice(folders))
    _adorn(rng, top, privileged=privileged)
    return top


# --- ordinary entries -----------------------------------------------------------------------------

ODD_NAMES = (
    b"not-utf8-\xff\xfe.bin",
    "e\u0301 decomposed".encode(),
    "\u00e9 composed".encode(),
    "snow \u2603 \U0001f4be".encode(),
    b" leading and trailing ",
    b"new\nline\ttab",
    b"\x01\x1b[31mcontrol\x7f",
    b"quote'\"`$\\backslash",
    b"*?[glob]{a,b}",
    b"#comment",
    b"!negated",
    b"-rf",
    b"...",
    b"Case",
    b"case",
    b"colon:path",
    b"~home",
    b"%2e%2e%2f",
    b"\xc0\xaf",
)
MODES = (0o644, 0o600, 0o640, 0o664, 0o755, 0o700, 0o444, 0o400, 0o4755, 0o2755, 0o6711, 0o1644)
DIRECTORY_MODES = (0o755, 0o700, 0o750, 0o2775, 0o1777, 0o3775, 0o555)
SIZES = (0, 1, 511, 4095, 4096, 4097, 65_536, 262_144, 512 * KIB, 512 * KIB + 1, MIB, MIB + 1)
TIMES = (
    0,
    -1,
    -86_400_000_000_001,
    1,
    999_999_999,
    2_147_483_648_000_000_001,
    4_102_444_800 * 10**9,
)


def _ordinary(rng: random.Random) -> Node:
    draw = rng.random()
    if draw < 0.22:
        return Node(Kind.DIRECTORY, mode=rng.choice(DIRECTORY_MODES))
    if draw < 0.30:
        return Node(Kind.SYMLINK, target=rng.choice([b"..", b"/does/not/exist", b"a/b", b"\xff"]))
    return _file(rng, _size(rng))


def _size(rng: random.Random) -> int:
    if rng.random() < 0.25:
        return rng.choice(SIZES)
    return min(int(rng.lognormvariate(8, 1.8)), 2 * MIB)


def _file(rng: random.Random, size: int) -> Node:
    flavour = rng.choices(list(Flavour), weights=[4, 5, 1])[0]
    # Few seeds: the same content appears under several names and is stored once.
    piece = Piece(0, size, flavour, rng.choice([7, rng.randrange(2**32)]))
    return Node(Kind.FILE, mode=rng.choice(MODES), size=size, pieces=(piece,) if size else ())


def _free_name(rng: random.Random, parent: Node) -> bytes:
    while True:
        name = rng.choice(ODD_NAMES) if rng.random() < 0.2 else _plain_name(rng)
        if name not in parent.children:
            return name


def _plain_name(rng: random.Random) -> bytes:
    if rng.random() < 0.03:
        return b"n" * 250 + b"%05d" % rng.randrange(100_000)
    return b"%s %d%s" % (
        rng.choice([b"file", b"data", b"log", b"x"]),
        rng.randrange(10_000),
        rng.choice([b"", b".txt", b".bin", b".tar.gz"]),
    )


def _time(rng: random.Random) -> int:
    if rng.random() < 0.2:
        return rng.choice(TIMES)
    return rng.randrange(10**9, 1_735_000_000) * 10**9 + rng.randrange(10**9)


def _adorn(rng: random.Random, top: Node, *, privileged: bool) -> None:
    """Give every entry a time, and some of them extended attributes, ACLs and owners."""
    for _, node in top.walk():
        node.mtime_ns = _time(rng)
        plain = node.kind in (Kind.FILE, Kind.DIRECTORY)
        if plain and rng.random() < 0.1:
            node.xattrs["user.comment"] = rng.randbytes(rng.choice([0, 1, 60, 900]))
        if plain and rng.random() < 0.06:
            node.xattrs[ACL_ACCESS] = acl(rng)
        if node.kind is Kind.DIRECTORY and rng.random() < 0.06:
            node.xattrs[ACL_DEFAULT] = acl(rng)
        if privileged and rng.random() < 0.15:
            node.owner = (rng.choice([0, 1, 1000, 12_345, 2**31]), rng.choice([0, 5, 54_321]))


# --- POSIX ACLs, as the kernel takes them ---------------------------------------------------------

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
_NOBODY = 0xFFFFFFFF


def acl(rng: random.Random) -> bytes:
    """Return an ACL with a named user and a named group; the owner keeps read and search."""
    user, group = sorted(rng.sample(range(1000, 60_000), 2))
    lines = [
        (0x01, 5 | rng.randrange(8), _NOBODY),
        (0x02, rng.randrange(8), user),
        (0x04, rng.randrange(8), _NOBODY),
        (0x08, rng.randrange(8), group),
        (0x10, rng.randrange(8), _NOBODY),
        (0x20, rng.randrange(8), _NOBODY),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *line) for line in lines)


# --- special cases --------------------------------------------------------------------------------


def _sparse(rng: random.Random, parent: Node) -> None:
    middle = Piece(3 * MIB, 5000, Flavour.TEXT, rng.randrange(99))
    head = Piece(0, 70_000, Flavour.RANDOM, rng.randrange(99))
    tail = Piece(6 * MIB - 4096, 4096, Flavour.RANDOM, 1)
    for name, size, pieces in (
        (b"sparse: nothing but a hole", 5 * MIB, ()),
        (b"sparse: hole at both ends", 8 * MIB + 1, (middle,)),
        (b"sparse: hole at the end", 4 * MIB, (head,)),
        (b"sparse: hole at the start", 6 * MIB, (tail,)),
        (b"sparse: small", 40_000, (Piece(20_480, 100, Flavour.TEXT, 3),)),
        (b"sparse: allocated zeros", MIB, (Piece(0, MIB, Flavour.ZEROS, 0),)),
    ):
        parent.children[name] = Node(Kind.FILE, size=size, pieces=pieces)


def _over_4_gib(rng: random.Random, parent: Node) -> None:
    border = Piece(2**32 - 5000, 10_000, Flavour.RANDOM, rng.randrange(99))
    last = Piece(2**32 + 40 * MIB, 17, Flavour.TEXT, 5)
    parent.children[b"over 4 GiB"] = Node(
        Kind.FILE, size=last.offset + last.length, pieces=(border, last)
    )


def _hard_links(rng: random.Random, parent: Node) -> None:
    group = f"{rng.randrange(2**32)}"
    far = Node(Kind.DIRECTORY, mode=0o755)
    parent.children[b"linked from"] = far
    for index, folder in enumerate((parent, far, far)):
        node = _file(random.Random(group), 9000)
        node.link_group = group
        folder.children[b"hard link %d" % index] = node
    for name in (b"empty link a", b"empty link b"):
        parent.children[name] = Node(Kind.FILE, link_group=group + " empty")
    for name in (b"linked symlink a", b"linked symlink b"):
        parent.children[name] = Node(Kind.SYMLINK, target=b"x", link_group=group + " symlink")


def _fifo_and_socket(rng: random.Random, parent: Node) -> None:
    parent.children[b"fifo"] = Node(Kind.FIFO, mode=rng.choice((0o640, 0o666)))
    parent.children[b"socket"] = Node(Kind.SOCKET, mode=rng.choice((0o755, 0o600)))


def _long_path(rng: random.Random, parent: Node) -> None:
    for level in range(17):
        child = Node(Kind.DIRECTORY, mode=0o755)
        parent.children[b"%02d-" % level + b"d" * 252] = child
        parent = child
    parent.children[b"beyond 4096 bytes"] = _file(rng, 3000)
    parent.children[b"symlink"] = Node(Kind.SYMLINK, target=b"t" * 4000)


def _many_levels(rng: random.Random, parent: Node) -> None:
    for _ in range(60):
        child = Node(Kind.DIRECTORY, mode=0o755)
        parent.children[b"d"] = child
        parent = child
    parent.children[b"bottom"] = _file(rng, 10)


def _crowded(rng: random.Random, parent: Node) -> None:
    folder = Node(Kind.DIRECTORY, mode=0o755)
    parent.children[b"crowded"] = folder
    for number in range(rng.choice((300, 700))):
        folder.children[b"entry %05d" % number] = _file(rng, number % 97)


def _odd_names(rng: random.Random, parent: Node) -> None:
    folder = Node(Kind.DIRECTORY, mode=0o755)
    parent.children[b"\xff odd names"] = folder
    for name in (*ODD_NAMES, b"\xe2" * 255, b"a" * 255, "\u00fc".encode() * 127):
        folder.children[name] = _file(rng, rng.randrange(50))


def _xattrs(rng: random.Random, parent: Node) -> None:
    node = _file(rng, 200)
    node.xattrs = {f"user.{index}": rng.randbytes(index * 40) for index in range(8)}
    node.xattrs |= {"user.\u00fc": b"\0binary\xff", "user." + "n" * 200: b""}
    parent.children[b"many xattrs"] = node
    parent.children[b"acl file"] = Node(Kind.FILE, xattrs={ACL_ACCESS: acl(rng)})
    both = {ACL_ACCESS: acl(rng), ACL_DEFAULT: acl(rng), "user.dir": b"on a directory"}
    folder = Node(Kind.DIRECTORY, mode=0o755, xattrs=both)
    folder.children[b"below a default acl"] = _file(rng, 20)
    parent.children[b"acl directory"] = folder


def _empty(rng: random.Random, parent: Node) -> None:
    parent.children[b"empty directory"] = Node(Kind.DIRECTORY, mode=rng.choice(DIRECTORY_MODES))
    parent.children[b"empty file"] = Node(Kind.FILE, mode=rng.choice(MODES))


def _big(rng: random.Random, parent: Node) -> None:
    """A file of several chunks, and one that shares its second half with it."""
    one = Piece(0, 2 * MIB, Flavour.RANDOM, rng.randrange(2**32))
    two = Piece(2 * MIB, 2 * MIB, Flavour.RANDOM, rng.randrange(2**32))
    other = Piece(0, 3000, Flavour.TEXT, 1)
    shifted = Piece(3000, two.length, two.flavour, two.seed)
    parent.children[b"big"] = Node(Kind.FILE, size=4 * MIB, pieces=(one, two))
    parent.children[b"big, shared"] = Node(
        Kind.FILE, size=3000 + two.length, pieces=(other, shifted)
    )


def _owned(rng: random.Random, parent: Node) -> None:
    for kind in (Kind.FILE, Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET):
        node = Node(kind, mode=0o4755 if kind is Kind.FILE else 0o750, owner=(12_345, 54_321))
        parent.children[b"owned %s" % kind.encode()] = node
    link = Node(Kind.SYMLINK, target=b"owned file", owner=(rng.randrange(1, 2**31), 4242))
    parent.children[b"owned symlink"] = link
    parent.children[b"secret"] = Node(Kind.FILE, mode=0, owner=(12_345, 54_321))


def _devices(rng: random.Random, parent: Node) -> None:
    parent.children[b"null"] = Node(Kind.CHAR_DEVICE, mode=0o666, device=(1, 3))
    parent.children[b"odd device"] = Node(
        Kind.CHAR_DEVICE, mode=0o600, device=(rng.randrange(1, 4096), rng.randrange(1 << 20))
    )
    parent.children[b"block"] = Node(Kind.BLOCK_DEVICE, mode=0o660, device=(7, 300))


def _capability(rng: random.Random, parent: Node) -> None:
    # VFS_CAP_REVISION_2, effective: cap_net_raw permitted.
    value = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    node = _file(rng, 64)
    node.mode, node.xattrs = 0o755, {"security.capability": value}
    parent.children[b"file capability"] = node


Special = Callable[[random.Random, Node], None]
SPECIALS: tuple[Special, ...] = (
    _sparse,
    _over_4_gib,
    _hard_links,
    _fifo_and_socket,
    _long_path,
    _many_levels,
    _crowded,
    _odd_names,
    _xattrs,
    _empty,
    _big,
)
PRIVILEGED_SPECIALS: tuple[Special, ...] = (_owned, _devices, _capability)

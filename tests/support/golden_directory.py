"""The golden data directory: unpacked, and what it must show and restore."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import msgspec

from tests.support.trees import Facts, Tree

ARCHIVE = Path(__file__).parents[1] / "golden" / "directory-0001.tar.xz"
CLIENTS = ("shop/web-0", "shop/web-1")


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was shown and backed up on the day when it was written."""

    source: str
    """The directory that every snapshot is of."""
    snapshots: list[dict[str, Any]]
    clients: list[dict[str, str]]
    jobs: list[dict[str, str]]
    trees: dict[str, list[tuple[bytes, Facts]]]
    """By snapshot id: facts by path below `source`."""

    def tree(self, snapshot: str) -> Tree:
        """Return what a snapshot restores to."""
        return dict(self.trees[snapshot])


def unpack(folder: Path) -> Golden:
    """Unpack server, state and keys into `folder`, which is there, and return what they hold."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="fully_trusted")
    return msgspec.json.decode((folder / "golden.json").read_bytes(), type=Golden)

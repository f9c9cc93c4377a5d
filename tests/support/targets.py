"""Files written below a target."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast_agent.restore.directory import TargetDirectory
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.tree.entry import Content, EntryType, Stat

POLICY = Policy(special=True)


def mine() -> Content:
    """Return the content part of a file that belongs to whoever runs this."""
    return Content(uid=os.geteuid(), gid=os.getegid())


def entry(name: bytes, size: int = 0) -> Stat:
    """Return a file's stat part."""
    return Stat(name, EntryType.FILE, 0o640, size, 1_000_000_007, 0, 1, 0)


def write(directory: TargetDirectory, name: bytes, data: bytes) -> None:
    """Write a file as a restore does."""
    with directory.create_file(name) as writer:
        writer.write(data, 0)
        assert writer.finish(len(data), entry(name, len(data)), mine(), POLICY) == []
        writer.commit()


def temporaries(folder: Path) -> list[str]:
    """Return the names of files that are not complete."""
    return [name for name in os.listdir(folder) if name.startswith(".holdfast-")]

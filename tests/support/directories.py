"""A directory as the walk has it."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.filesystems import Filesystems


def opened(path: Path) -> Directory:
    """Return the open directory `path`, to be closed by the caller."""
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        found = Directory.open(
            parent, os.fsencode(path.name), clock=SystemFileClock(), filesystems=Filesystems()
        )
    finally:
        os.close(parent)
    assert isinstance(found, Directory), found
    return found

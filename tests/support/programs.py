"""The product's programs with one thing about them changed, for a World to run.

world.bin = programs(folder, unfit_seconds=2.0, with_faults=True)
world.start_server()
with failing(world.server.popen.pid, folder, "posix/io/sync/fsync"): ...
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.world import BIN

_NAMES = ("holdfast", "holdfast-server", "holdfast-agent")
_PYTHON = BIN / "python"
_EIO = 5


def programs(folder: Path, *, unfit_seconds: float = 0, faulty: str = "") -> Path:
    """Return `folder` with the three programs in it.

    `unfit_seconds`: how long the agent asks a server again that has no room or does not work, in
    place of a minute. `faulty`: the program that `failing` can reach.
    """
    folder.mkdir()
    for name in _NAMES:
        (folder / name).symlink_to(BIN / name)
    if unfit_seconds:
        _replace(
            folder / "holdfast-agent",
            f"#!{_PYTHON}\n"
            "import sys\n"
            "from holdfast_agent.transport import retry\n"
            f"retry.UNFIT_SECONDS = {unfit_seconds}\n"
            "from holdfast_agent.main import main\n"
            "sys.exit(main())\n",
        )
    if faulty:
        inner = folder / f".{faulty}"
        (folder / faulty).rename(inner)
        _replace(
            folder / faulty,
            f'#!/bin/sh\nexec fiu-run -x -f {folder / "control"} {inner} "$@"\n',
        )
    return folder


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _control(folder: Path, pid: int, command: str) -> None:
    subprocess.run(["fiu-ctrl", "-f", folder / "control", "-c", command, str(pid)], check=True)


def fail_once(folder: Path, pid: int, point: str) -> None:
    """Make the next call at a point of libfiu (`posix/io/sync/fsync`) fail with EIO."""
    _control(folder, pid, f"enable name={point},failinfo={_EIO},onetime")


@contextmanager
def failing(folder: Path, pid: int, point: str) -> Iterator[None]:
    """Make every call at a point of libfiu fail with EIO."""
    _control(folder, pid, f"enable name={point},failinfo={_EIO}")
    try:
        yield
    finally:
        _control(folder, pid, f"disable name={point}")

"""What a neighbour can put into a volume to stop or fill the agent: mounts, depth, size."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent.jobs.runner import JobRun
from holdfast_agent.sources import attributes
from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import WALK_PATH_BYTES_MAX
from holdfast_contract.protocol.control import (
    JobState,
    Overwrite,
    Progress,
    RestoreItem,
    Verify,
    decode_to_server,
    encode,
)
from tests.support.backup_bench import BackupBench
from tests.support.restore_bench import RestoreBench

ROOT = os.geteuid() == 0
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 0x4000, 0x40000, 2

pytestmark = pytest.mark.timeout(120)


def mount(source: bytes, target: Path, kind: bytes | None, flags: int = 0) -> None:
    if _LIBC.mount(source, os.fsencode(target), kind, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")


def unmount(target: Path) -> None:
    if _LIBC.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), f"umount {target}")


def with_own_mounts(work: Callable[[], Any]) -> None:
    """Run `work` in a thread with a mount namespace of its own; nothing to show without root."""
    if not ROOT:
        return
    failures: list[BaseException] = []

    def run() -> None:
        try:
            if _LIBC.unshare(_CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            mount(b"none", Path("/"), None, _MS_REC | _MS_PRIVATE)
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    (bench.volume / "kept").mkdir()
    (bench.volume / "kept" / "file").write_bytes(b"file")
    bench.backed_up()
    return bench


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
@pytest.mark.parametrize("where", ["extra", "extra/below/it", "kept/extra", "file-in-the-way"])
def test_delete_removes_nothing_of_what_is_mounted_in_the_target(
    bench: RestoreBench, kind: str, where: str
) -> None:
    """A bind mount within one file system has its st_dev: only the mount itself tells."""
    outside = bench.top / "outside"
    (outside / "d").mkdir(parents=True)
    (outside / "d" / "precious").write_bytes(b"precious")
    place = bench.volume / where
    if where == "file-in-the-way":
        # In the snapshot a file; now a directory with something mounted on it.
        place.write_bytes(b"was a file")
        bench.backed_up()
        place.unlink()
    place.mkdir(parents=True)

    def work() -> None:
        if kind == "bind":
            mount(os.fsencode(outside), place, None, _MS_BIND)
        else:
            mount(b"none", place, b"tmpfs")
            shutil.copytree(outside / "d", place / "d")
        for overwrite in (Overwrite.IF_CHANGED, Overwrite.ALWAYS):
            done = bench.restore(delete=True, overwrite=overwrite)
            assert (place / "d" / "precious").read_bytes() == b"precious"
            assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
            reasons = [row["message"] for row in done.result.not_exact]
            assert any("mounted" in reason or "in the way" in reason for reason in reasons), reasons
        unmount(place)

    with_own_mounts(work)
    assert (outside / "d" / "precious").read_bytes() == b"precious"


def test_mounts_that_come_and_go_while_a_restore_deletes_lose_nothing(bench: RestoreBench) -> None:
    """Before every look at a name something is mounted there, or what was mounted goes."""
    outside = bench.top / "outside"
    (outside / "d").mkdir(parents=True)
    (outside / "d" / "precious").write_bytes(b"precious")
    attempts = 0

    def work() -> None:
        nonlocal attempts
        places = [bench.volume / f"extra{n}" for n in range(6)]
        real_open, turn = os.open, 0

        def opening(path: Any, flags: int, *args: Any, **options: Any) -> int:
            nonlocal attempts, turn
            name = path if isinstance(path, bytes) else b""
            if name.startswith(b"extra") and options.get("dir_fd") is not None:
                place, turn = bench.volume / os.fsdecode(name), turn + 1
                if os.path.ismount(place) or turn % 3 == 0:
                    _LIBC.umount2(os.fsencode(place), _MNT_DETACH)
                elif place.is_dir():
                    mount(os.fsencode(outside), place, None, _MS_BIND)
                    attempts += 1
            return real_open(path, flags, *args, **options)

        for _ in range(40):
            for place in places:
                place.mkdir(exist_ok=True)
                (place / "below").mkdir(exist_ok=True)
            os.open = opening
            try:
                bench.restore(delete=True, overwrite=Overwrite.ALWAYS)
            finally:
                os.open = real_open
            assert (outside / "d" / "precious").read_bytes() == b"precious"
            for place in places:
                while os.path.ismount(place):
                    unmount(place)

    with_own_mounts(work)
    assert attempts > 200 or not ROOT


def test_a_path_longer_than_a_message_is_listed_and_the_rest_is_backed_up(tmp_path: Path) -> None:
    bench = BackupBench(tmp_path)
    (bench.volume / "file").write_bytes(b"file")
    levels = deep(bench.volume, b"n" * 255, WALK_PATH_BYTES_MAX // 256 + 40)
    try:
        outcome = bench.run()
    finally:
        remove_deep(bench.volume, b"n" * 255, levels)
    assert outcome.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [row["reason"] for row in outcome.result.skipped] == ["too-deep"]
    assert bench.restored()[b"file"] == b"file"


def test_a_progress_message_fits_whatever_the_path() -> None:
    order = Verify(job=new_ulid(), item=RestoreItem(bytes(32), "c", b"/"))
    run = JobRun(order, journal=None, work=None, told=None)  # type: ignore[arg-type]
    run.progress.current(b"/long" * 100_000)
    assert isinstance(decode_to_server(encode(run.message())), Progress)


def test_attributes_without_end_are_listed_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFS gives one file 64 KiB of names with 64 KiB each."""
    names = [f"user.{number:04}" for number in range(5000)]
    asked = 0

    def value(place: Any, name: str) -> bytes:
        nonlocal asked
        asked += 1
        return bytes(1 << 16)

    monkeypatch.setattr(os, "listxattr", lambda place: names)
    monkeypatch.setattr(os, "getxattr", value)
    found, findings = attributes.read_xattrs("/nowhere")
    assert sum(len(data) for _, data in found) <= 4 << 20
    assert [finding.reason.value for finding in findings] == ["attributes"]
    assert asked < 100


def deep(top: Path, name: bytes, levels: int) -> int:
    """Make directories one in the other, deeper than any path."""
    where = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=where)
        below = os.open(name, os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = below
    os.close(where)
    return levels


def remove_deep(top: Path, name: bytes, levels: int) -> None:
    """Remove them, the upper ones first by moving what they hold to the top."""
    root = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.rename(name, b"one", src_dir_fd=root, dst_dir_fd=root)
        if os.listdir(os.path.join(os.fsencode(top), b"one")):
            inner = os.open(b"one", os.O_RDONLY, dir_fd=root)
            os.rename(name, name, src_dir_fd=inner, dst_dir_fd=root)
            os.close(inner)
        os.rmdir(b"one", dir_fd=root)
    os.close(root)

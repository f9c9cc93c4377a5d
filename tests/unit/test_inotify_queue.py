"""The kernel's own queue of changes: what is asked of it, what it tells, and when."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent.sources import filesystems, syscalls
from holdfast_agent.sources.inotify import Happened, InotifyQueue, NoWatch
from holdfast_agent.sources.mounts import mounts_below


@pytest.fixture
def queue() -> Iterator[InotifyQueue]:
    made = InotifyQueue()
    yield made
    made.close()


@pytest.fixture
def watched(queue: InotifyQueue, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = tmp_path / "watched"
    (folder / "below").mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield folder, queue.watch(descriptor)
    os.close(descriptor)


def told(queue: InotifyQueue) -> set[Happened]:
    return set(queue.happened())


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "file").write_bytes(b"other"),
    lambda folder: os.truncate(folder / "file", 1),
    lambda folder: os.chmod(folder / "file", 0o600),
    lambda folder: os.utime(folder / "file"),
    lambda folder: os.setxattr(folder / "file", "user.a", b""),
    lambda folder: (folder / "new").touch(),
    lambda folder: os.link(folder / "file", folder / "other"),
    lambda folder: os.unlink(folder / "file"),
    lambda folder: os.rename(folder / "file", folder.parent / "out"),
    lambda folder: os.rename(folder, folder.parent / "elsewhere"),
    lambda folder: os.chmod(folder, 0o700),
    lambda folder: os.rmdir(folder / "below"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_there_as_soon_as_its_call_returns(
    queue: InotifyQueue, watched: tuple[Path, int], change: Callable[[Path], object]
) -> None:
    folder, watch = watched
    change(folder)
    assert told(queue) == {Happened(watch, is_over=False)}
    assert told(queue) == set()


def test_reading_tells_nothing(queue: InotifyQueue, watched: tuple[Path, int]) -> None:
    folder, _ = watched
    (folder / "file").read_bytes()
    os.listdir(folder)
    os.stat(folder / "file")
    assert told(queue) == set()


def test_the_directory_itself_is_watched_whatever_its_path(
    queue: InotifyQueue, tmp_path: Path
) -> None:
    folder, decoy = tmp_path / "folder", tmp_path / "decoy"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    folder.rename(tmp_path / "moved")
    decoy.mkdir()
    folder.symlink_to(decoy)
    watch = queue.watch(descriptor)
    (decoy / "file").touch()
    assert told(queue) == set()
    (tmp_path / "moved" / "file").touch()
    assert told(queue) == {Happened(watch, is_over=False)}
    os.close(descriptor)


def test_one_directory_has_one_watch(queue: InotifyQueue, watched: tuple[Path, int]) -> None:
    folder, watch = watched
    again = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    assert queue.watch(again) == watch
    os.close(again)


def test_a_watch_that_was_given_back_has_another_number_the_next_time(
    queue: InotifyQueue, watched: tuple[Path, int]
) -> None:
    folder, watch = watched
    queue.unwatch(watch)
    queue.unwatch(watch)
    (folder / "file").touch()
    assert told(queue) == {Happened(watch, is_over=True)}
    again = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    assert queue.watch(again) != watch
    os.close(again)


def test_a_removed_directory_ends_its_watch(queue: InotifyQueue, tmp_path: Path) -> None:
    folder = tmp_path / "short-lived"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    watch = queue.watch(descriptor)
    os.close(descriptor)
    folder.rmdir()
    assert Happened(watch, is_over=True) in told(queue)


def test_more_changes_than_the_queue_holds_are_told_as_lost(
    queue: InotifyQueue, watched: tuple[Path, int]
) -> None:
    folder, watch = watched
    length = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [folder / "file", folder / "other"]
    for number in range(length // 2 + 1):
        # Two events each; equal ones in a row would be told once.
        os.rename(names[number % 2], names[1 - number % 2])
    found = told(queue)
    assert found == {Happened(watch, is_over=False), Happened(-1, is_over=False)}


def test_what_is_no_directory_is_not_watched(queue: InotifyQueue, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(NoWatch) as refused:
        queue.watch(descriptor)
    assert not refused.value.is_full
    os.close(descriptor)


def test_without_a_descriptor_there_is_no_queue() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, hard))
    filler = []
    try:
        while True:
            try:
                filler.append(os.dup(0))
            except OSError as exc:
                assert exc.errno == errno.EMFILE
                break
        with pytest.raises(NoWatch) as refused:
            InotifyQueue()
        assert refused.value.is_full
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in (*filler, held):
            os.close(descriptor)


def test_a_queue_is_not_inherited(queue: InotifyQueue) -> None:
    assert not os.get_inheritable(queue.descriptor)


# --- mounts ---------------------------------------------------------------------------------------

TABLE = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /data rw - tmpfs tmpfs rw
31 30 0:27 / /data/with\040space rw - tmpfs tmpfs rw
32 22 0:28 / /database rw - tmpfs tmpfs rw
"""


def digest(tmp_path: Path, table: bytes, *paths: bytes) -> bytes:
    place = tmp_path / "mountinfo"
    place.write_bytes(table)
    return mounts_below(paths, str(place))


@pytest.mark.parametrize(
    ("old", "new", "is_told"),
    [
        (b"31 30 0:27", b"31 30 0:29", True),
        (b"31 30 0:27", b"44 30 0:27", True),
        (b"/data/with\\040space", b"/data/with", True),
        (b"31 30 0:27 / ", b"31 30 0:27 /part ", True),
        (b"32 22 0:28", b"32 22 0:99", False),
        (b"tmpfs rw", b"tmpfs rw,size=1m", False),
    ],
)
def test_mounts_at_and_below_the_paths_are_told_by_what_they_are(
    tmp_path: Path, old: bytes, new: bytes, is_told: bool
) -> None:
    before = digest(tmp_path, TABLE, b"/data")
    assert (digest(tmp_path, TABLE.replace(old, new), b"/data") != before) is is_told


def test_a_path_with_a_space_is_the_mounts_own(tmp_path: Path) -> None:
    alone = digest(tmp_path, TABLE, b"/data/with space")
    assert alone != digest(tmp_path, TABLE, b"/data/with")
    assert alone == digest(
        tmp_path, TABLE.replace(b"30 22 0:26", b"30 22 0:77"), b"/data/with space"
    )


def test_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        mounts_below([b"/"], str(tmp_path / "absent"))


# --- file systems ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "is_told"),
    [
        (0xEF53, True),  # ext4
        (0x58465342, True),  # xfs
        (0x9123683E, True),  # btrfs
        (0x01021994, True),  # tmpfs
        (0x794C7630, True),  # overlayfs
        (0xF2F52010, True),  # f2fs
        (0x2FC12FC1, False),  # zfs: a rollback tells nothing
        (0x6969, False),  # nfs
        (0xFF534D42, False),  # cifs
        (0x65735546, False),  # FUSE
        (0x00C36400, False),  # ceph
        (0x01021997, False),  # 9p
        (0x6A656A63, False),  # virtiofs by way of FUSE, and whatever comes
    ],
)
def test_changes_are_told_where_only_this_kernel_makes_them(
    monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    monkeypatch.setattr(syscalls, "filesystem_type", lambda descriptor: number)
    found = filesystems.Filesystems()
    assert not found.tells_changes(7), "what was not asked for is not known"
    found.kind(0, 7)
    assert found.tells_changes(7) is is_told

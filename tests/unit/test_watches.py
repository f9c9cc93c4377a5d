"""Change hints: when a directory counts as quiet, and all that makes a backup read everything."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.filesystems import FilesystemKind
from holdfast_agent.sources.inotify import Happened, NoWatch
from holdfast_agent.sources.watches import AUDIT_SECONDS, View, Watches, Watching
from tests.support.handclock import HandClock
from tests.support.told import ToldQueue

VIEW = View((b"/v",), (b"/v",), (), frozenset(), b"mounts")
SNAPSHOTS = [bytes([number]) * 32 for number in range(9)]
NAMES = [b"a", b"b", b"c"]


class Scene:
    """Three directories, a queue that a test fills, and walks over them."""

    def __init__(self, top: Path, **options: object) -> None:
        self.clock = HandClock(10**18)
        self.queue = ToldQueue()
        self.options = options
        self.watches = Watches(self.clock, open_queue=lambda: self.queue, **options)  # type: ignore[arg-type]
        self.directories: dict[bytes, Directory] = {}
        for name in NAMES:
            (top / os.fsdecode(name)).mkdir()
            descriptor = os.open(top / os.fsdecode(name), os.O_RDONLY)
            info = os.fstat(descriptor)
            found = Directory(descriptor, (info.st_dev, info.st_ino), FilesystemKind.LOCAL, 0)
            self.directories[b"/v/" + name] = found
        self.number = 0

    def begin(
        self, *, view: View = VIEW, parent: int | None = None, known: bool = True
    ) -> Watching:
        number = self.number if parent is None else parent
        job = self.watches.begin(SNAPSHOTS[number], view, is_known=known)
        assert job is not None
        job.begin_round()
        return job

    def look(self, job: Watching, *paths: bytes) -> list[bytes]:
        """Look at directories; return the paths of those that are quiet."""
        chosen = paths or tuple(self.directories)
        quiet = [path for path in chosen if job.look(self.directories[path], path)[1]]
        job.unread += 0 if job.is_audit else len(quiet)
        return quiet

    def keep(self, job: Watching) -> None:
        self.number += 1
        job.missed()
        job.keep(SNAPSHOTS[self.number])
        job.close()

    def walk(self, **how: object) -> list[bytes]:
        """Do one whole job; return what was quiet in it."""
        job = self.begin(**how)  # type: ignore[arg-type]
        quiet = self.look(job)
        self.keep(job)
        return quiet

    def change(self, path: bytes) -> None:
        self.queue.change(self.directories[path].inode)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for directory in made.directories.values():
        directory.close()


ALL = [b"/v/a", b"/v/b", b"/v/c"]


def test_everything_is_read_at_first_and_nothing_that_is_quiet_afterwards(scene: Scene) -> None:
    assert scene.walk() == []
    assert scene.walk() == ALL
    assert scene.walk() == ALL


def test_a_change_between_two_backups_has_one_directory_read_once(scene: Scene) -> None:
    scene.walk()
    scene.change(b"/v/b")
    assert scene.walk() == [b"/v/a", b"/v/c"]
    assert scene.walk() == ALL


def test_a_change_just_before_the_look_is_seen(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    scene.look(job, b"/v/a")
    scene.change(b"/v/b")
    assert scene.look(job, b"/v/b", b"/v/c") == [b"/v/c"]
    scene.keep(job)
    assert scene.walk() == ALL


def test_a_change_after_the_look_counts_for_the_next_backup(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    assert scene.look(job) == ALL
    scene.change(b"/v/a")
    scene.keep(job)
    assert scene.walk() == [b"/v/b", b"/v/c"]


def test_a_change_while_it_is_read_counts_for_the_next_backup(scene: Scene) -> None:
    job = scene.begin()
    scene.look(job)
    scene.change(b"/v/a")
    scene.keep(job)
    assert scene.walk() == [b"/v/b", b"/v/c"]


def test_the_first_event_ends_the_watch_and_the_next_look_begins_another(scene: Scene) -> None:
    scene.walk()
    for _ in range(5):
        scene.change(b"/v/a")
        scene.watches.drain()
    assert scene.queue.given_back == [1]
    assert len(scene.watches) == 2
    scene.walk()
    assert len(scene.watches) == 3


def test_an_overflow_has_everything_read(scene: Scene) -> None:
    scene.walk()
    scene.change(b"/v/a")
    scene.queue.overflow()
    assert scene.walk() == []
    assert scene.walk() == ALL


def test_an_overflow_in_the_middle_of_a_walk_has_its_rest_read_and_all_of_the_next(
    scene: Scene,
) -> None:
    scene.walk()
    job = scene.begin()
    assert scene.look(job, b"/v/a") == [b"/v/a"]
    scene.queue.overflow()
    assert scene.look(job, b"/v/b", b"/v/c") == []
    scene.keep(job)
    assert scene.walk() == [b"/v/b", b"/v/c"]


def test_a_watch_that_the_kernel_ended_is_not_quiet(scene: Scene) -> None:
    scene.walk()
    inode = scene.directories[b"/v/c"].inode
    scene.queue.told.append(Happened(scene.queue.watched.pop(inode), is_over=True))
    assert scene.walk() == [b"/v/a", b"/v/b"]
    assert scene.queue.given_back == []


def test_a_job_without_a_snapshot_has_everything_read(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    scene.look(job, b"/v/a")
    job.close()
    assert scene.walk() == []
    assert scene.walk() == ALL


@pytest.mark.parametrize(
    "how",
    [
        {"parent": 8},
        {"known": False},
        {"view": VIEW._replace(paths=(b"/v", b"/w"))},
        {"view": VIEW._replace(real_paths=(b"/elsewhere",))},
        {"view": VIEW._replace(excludes=("*.tmp",))},
        {"view": VIEW._replace(own=frozenset({(1, 2)}))},
        {"view": VIEW._replace(mounts=b"others")},
    ],
)
def test_hints_are_true_for_one_snapshot_and_one_view_only(
    scene: Scene, how: dict[str, object]
) -> None:
    scene.walk()
    assert scene.walk(**how) == []


def test_a_directory_on_another_path_is_read(scene: Scene) -> None:
    scene.walk()
    a, b = scene.directories[b"/v/a"], scene.directories[b"/v/b"]
    scene.directories |= {b"/v/a": b, b"/v/b": a}
    assert scene.walk() == [b"/v/c"]
    assert scene.walk() == ALL


def test_a_directory_on_two_paths_at_once_is_always_read(scene: Scene) -> None:
    scene.directories[b"/v/again"] = scene.directories[b"/v/a"]
    for _ in range(4):
        assert not {b"/v/a", b"/v/again"} & set(scene.walk())


def test_what_is_distrusted_is_read_the_next_time(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    watch, is_quiet = job.look(scene.directories[b"/v/a"], b"/v/a")
    assert is_quiet
    job.distrust(watch)
    scene.look(job, b"/v/b", b"/v/c")
    scene.keep(job)
    assert scene.walk() == [b"/v/b", b"/v/c"]


def test_another_round_of_a_job_reads_everything(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    assert scene.look(job) == ALL
    job.begin_round()
    assert scene.look(job) == []
    assert job.unread == 0
    scene.keep(job)
    assert scene.walk() == ALL


def test_watches_of_directories_that_are_not_met_any_more_are_given_back(scene: Scene) -> None:
    scene.walk()
    gone = scene.directories.pop(b"/v/b")
    scene.walk()
    gone.close()
    assert scene.queue.given_back == [2]
    assert len(scene.watches) == 2
    assert scene.walk() == [b"/v/a", b"/v/c"]


def test_at_most_so_many_directories_are_watched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scene = Scene(tmp_path, watched_max=2)
    scene.walk()
    assert len(scene.queue.watched) == len(scene.watches) == 2
    assert scene.walk() == [b"/v/a", b"/v/b"]
    assert len(scene.queue.watched) == 2
    assert caplog.text.count("no more directories can be watched") == 2, "one line for each backup"


def test_where_the_kernel_gives_no_more_watches_the_rest_is_read(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job = scene.begin()
    scene.look(job, b"/v/a")
    scene.queue.refuses = errno.ENOSPC
    scene.look(job, b"/v/b", b"/v/c")
    scene.keep(job)
    assert scene.walk() == [b"/v/a"]
    assert caplog.text.count("no more directories can be watched") == 2, "one line for each backup"


def test_without_a_queue_there_are_no_hints_and_the_next_backup_asks_again(tmp_path: Path) -> None:
    queue, asked = ToldQueue(), []

    def open_queue() -> ToldQueue:
        asked.append(1)
        if len(asked) == 1:
            raise NoWatch(errno.EMFILE)
        return queue

    polled: list[int] = []
    watches = Watches(HandClock(10**18), open_queue=open_queue)
    watches.when_opened(polled.append)
    assert watches.begin(SNAPSHOTS[0], VIEW, is_known=True) is None
    assert polled == []
    assert watches.begin(SNAPSHOTS[0], VIEW, is_known=True) is not None
    assert polled == [queue.descriptor]


def test_of_two_jobs_at_once_only_one_has_hints(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    assert scene.watches.begin(SNAPSHOTS[scene.number], VIEW, is_known=True) is None
    assert scene.look(job) == ALL
    scene.keep(job)
    assert scene.walk() == ALL


def test_a_job_that_is_over_cannot_end_the_next_one(scene: Scene) -> None:
    scene.walk()
    first = scene.begin()
    scene.look(first)
    scene.keep(first)
    second = scene.begin()
    first.close()
    assert scene.look(second) == ALL
    scene.keep(second)
    assert scene.walk() == ALL


# --- audit ----------------------------------------------------------------------------------------


def days_pass(scene: Scene, days: float, *, wall: bool = True, monotonic: bool = True) -> None:
    scene.clock.stamp += int(days * 86_400 * 10**9) * wall
    scene.clock.seconds += days * 86_400 * monotonic


@pytest.mark.parametrize(("wall", "monotonic"), [(True, True), (True, False), (False, True)])
def test_after_seven_days_by_either_clock_everything_is_read(
    scene: Scene, wall: bool, monotonic: bool
) -> None:
    scene.walk()
    days_pass(scene, 6.9, wall=wall, monotonic=monotonic)
    assert not scene.begin().is_audit
    scene.watches._busy = None
    scene.walk()
    days_pass(scene, AUDIT_SECONDS / 86_400, wall=wall, monotonic=monotonic)
    job = scene.begin()
    assert job.is_audit
    assert scene.look(job) == ALL, "what would have been left unread"
    scene.keep(job)
    job = scene.begin()
    assert not job.is_audit
    assert scene.look(job) == ALL


def test_backups_by_hints_do_not_put_the_audit_off(scene: Scene) -> None:
    scene.walk()
    for _ in range(6):
        days_pass(scene, 1)
        assert scene.walk() == ALL
    days_pass(scene, 1)
    assert scene.begin().is_audit


def test_a_clock_that_was_set_back_does_not_put_the_audit_off(scene: Scene) -> None:
    scene.walk()
    scene.clock.stamp -= 10**17
    days_pass(scene, 7)
    assert scene.begin().is_audit


def audited(scene: Scene) -> Watching:
    scene.walk()
    days_pass(scene, 8)
    job = scene.begin()
    for path, directory in scene.directories.items():
        watch, is_quiet = job.look(directory, path)
        if is_quiet and path == b"/v/b":
            job.suspect(watch, 2)
            job.suspect(watch, 1)
    return job


def test_what_an_audit_finds_switches_hints_off(scene: Scene) -> None:
    job = audited(scene)
    assert job.missed() == 3
    scene.keep(job)
    assert scene.watches.begin(SNAPSHOTS[scene.number], VIEW, is_known=True) is None
    assert len(scene.watches) == 0
    assert scene.queue.watched == {}


def test_what_changed_during_the_audit_was_not_missed(scene: Scene) -> None:
    job = audited(scene)
    scene.change(b"/v/b")
    assert job.missed() == 0
    scene.keep(job)
    assert scene.walk() == [b"/v/a", b"/v/c"]


def test_what_was_counted_goes_with_its_watch(scene: Scene) -> None:
    scene.walk()
    job = scene.begin()
    for path, directory in scene.directories.items():
        watch, _ = job.look(directory, path)
        job.note_rest(watch, 3, 1 << 40)
    scene.keep(job)
    assert len(scene.watches._rests) == 3
    scene.change(b"/v/a")
    gone = scene.directories.pop(b"/v/b")
    job = scene.begin()
    watches = [job.look(found, path)[0] for path, found in scene.directories.items()]
    assert [job.take_rest(watch) for watch in watches] == [None, (3, 1 << 40)]
    assert [job.take_rest(watch) for watch in watches] == [None, None]
    job.note_rest(watches[1], 3, 1 << 40)
    scene.keep(job)
    gone.close()
    assert len(scene.watches._rests) == 1
    scene.queue.overflow()
    scene.watches.drain()
    assert scene.watches._rests == {}

"""A repository on disks that are really full: each step fails cleanly, and later succeeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast_contract.errors import HoldfastError, NoSpace
from holdfast_contract.limits import MIB
from holdfast_server.catalog.snapshots import Filter
from holdfast_server.repository.reading import FetchStatus
from holdfast_server.repository.sessions import Session
from holdfast_server.stores import LocalStore
from holdfast_server.stores.local import INCOMING
from holdfast_server.stores.reserve import RESERVE_BYTES_MIN
from tests.support.disks import fill, free_bytes, make_room, small_disk
from tests.support.fetching import fetched
from tests.support.samples import ids
from tests.support.uploads import Pod, Served, full_refs, sealed

WANTED = ids(40)
NO_FILTER = Filter()
STEPS = ["session", "pack", "refs", "manifest", "commit"]


class Upload:
    """One backup, step by step; every step may be repeated."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.session: Session | None = None
        self.manifest = pod.manifest(WANTED)
        self.refs = full_refs(pod.domain, WANTED)
        self.ulid = ""

    def step(self, name: str) -> None:
        pod = self.pod
        if name == "session":
            self.session = pod.open("the job")
            return
        assert self.session is not None
        match name:
            case "pack":
                self.ulid = pod.send(WANTED, self.session)
            case "refs":
                pod.put_refs(self.session, self.refs)
            case "manifest":
                pod.put_manifest(self.session, self.manifest)
            case "commit":
                pod.commit(self.session, 2)


def in_full(step: Callable[[], None]) -> str:
    """Return what became of a step: `done`, or the code of its error."""
    try:
        step()
    except HoldfastError as error:
        return error.code
    return "done"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mebibytes=RESERVE_BYTES_MIN // MIB + 8) as place:
        yield place


@pytest.fixture
def stored(tmp_path: Path, disk: Path) -> Iterator[Served]:
    """A repository whose store lies on the small disk; its catalog does not."""
    with ExitStack() as stack:
        store = LocalStore.open(str(disk / "store"))
        stack.callback(store.close)
        served = Served(tmp_path, store)
        stack.callback(served.stop)
        served.domain()
        yield served


@pytest.fixture
def catalogued(tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    """A repository whose catalog lies on a small disk; its store does not."""
    with small_disk(tmp_path / "small", mebibytes=4) as place:
        served = Served(place)
        try:
            served.domain()
            yield served, place
        finally:
            served.stop()


def standing(served: Served, snapshots: list[bytes]) -> None:
    """Check, before and after a restart, that exactly these snapshots stand, and are whole."""
    for _ in range(2):
        found = [row.id for row in served.repository.snapshots(NO_FILTER)]
        assert found == snapshots
        for snapshot in snapshots:
            answers = fetched(served.repository.open_grant("shop", [snapshot]), WANTED[:8])
            assert {answer.status for answer in answers} == {FetchStatus.HERE}
            assert [bytes(answer.data) for answer in answers] == [sealed(c) for c in WANTED[:8]]
        served.restart()


def use_up(pod: Pod) -> None:
    """Write what still fits into pages that the catalog's files have already."""
    for number in range(500):
        if in_full(lambda: void(pod.open(f"job {number}"))) == "no-space":  # noqa: B023 - called here
            return
    raise AssertionError("the catalog does not fill up")


def void(found: object) -> None:
    """Forget what was returned."""


def nothing_half(disk: Path) -> None:
    assert list((disk / "store" / INCOMING).iterdir()) == []


@pytest.mark.parametrize("leave", [0, 8192, RESERVE_BYTES_MIN // 2])
@pytest.mark.parametrize("full_at", STEPS)
def test_a_store_that_fills_at_any_step_loses_nothing_and_goes_on(
    stored: Served, disk: Path, full_at: str, leave: int
) -> None:
    pod = stored.pod()
    first = pod.backup(WANTED[:8])
    upload = Upload(pod)
    for name in STEPS[: STEPS.index(full_at)]:
        upload.step(name)
    fill(disk, leave=leave)
    came = in_full(lambda: upload.step(full_at))
    if full_at == "session":
        assert came == "done", "a session takes no room in the store"
    elif full_at == "pack" or not leave:
        assert came == "no-space"
    else:
        assert came == "done", "below the reserve a backup can still be brought to its end"
    nothing_half(disk)
    if leave > MIB and full_at != "pack":
        # A pack is what would eat the reserve: nothing else of this backup is refused.
        assert in_full(lambda: void(pod.send(WANTED[:1], pod.open()))) == "no-space"
    # What stands can be read, and the server can be started anew while the disk is full.
    standing_before = [first, *_new(stored, first)]
    standing(stored, standing_before)
    make_room(disk)
    for name in STEPS[STEPS.index(full_at) :]:
        upload.step(name)
    (second,) = _new(stored, first)
    standing(stored, [first, second])
    nothing_half(disk)


def _new(served: Served, first: bytes) -> list[bytes]:
    return [row.id for row in served.repository.snapshots(NO_FILTER) if row.id != first]


@pytest.mark.parametrize("full_at", STEPS)
def test_a_catalog_that_fills_at_any_step_loses_nothing_and_goes_on(
    catalogued: tuple[Served, Path], full_at: str
) -> None:
    served, place = catalogued
    pod = served.pod()
    first = pod.backup(WANTED[:8])
    upload = Upload(pod)
    for name in STEPS[: STEPS.index(full_at)]:
        upload.step(name)
    fill(place)
    use_up(pod)
    assert in_full(lambda: upload.step(full_at)) == "no-space"
    found = [row.id for row in served.repository.snapshots(NO_FILTER)]
    assert found == [first], "nothing half is shown, and what stands can be read"
    (answer,) = fetched(served.repository.open_grant("shop", [first]), WANTED[:1])
    assert bytes(answer.data) == sealed(WANTED[0])
    make_room(place)
    for name in STEPS[STEPS.index(full_at) :]:
        upload.step(name)
    (second,) = _new(served, first)
    standing(served, [first, second])


def test_damage_found_on_a_full_disk_is_told_to_the_reader_and_recorded_later(
    catalogued: tuple[Served, Path],
) -> None:
    served, place = catalogued
    pod = served.pod()
    first = pod.backup(WANTED[:8])
    served.memory.objects = {n: d for n, d in served.memory.objects.items() if "packs" not in n}
    fill(place)
    use_up(pod)
    answers = fetched(served.repository.open_grant("shop", [first]), WANTED[:8])
    assert {answer.status for answer in answers} == {FetchStatus.DAMAGED}
    assert served.repository.damaged_count([first]) == 0
    make_room(place)
    fetched(served.repository.open_grant("shop", [first]), WANTED[:1])
    assert served.repository.damaged_count([first]) == 8


def test_a_small_object_is_refused_only_when_there_is_no_room_for_it(
    stored: Served, disk: Path
) -> None:
    pod = stored.pod()
    session = pod.open()
    fill(disk, leave=RESERVE_BYTES_MIN + 64 * 1024)
    pod.send(WANTED[:1], session)
    with pytest.raises(NoSpace) as refused:
        for _ in range(64):
            pod.send(WANTED, session)
    assert refused.value.http_status == 507
    assert free_bytes(disk) >= RESERVE_BYTES_MIN - 64 * 1024

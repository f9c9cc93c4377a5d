"""The local store on a disk that fails, lies and loses power - at every single step."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random

import pytest

from holdfast_contract.errors import (
    Conflict,
    Damaged,
    HoldfastError,
    NoSpace,
    NotFound,
    StoreFailed,
)
from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import MIB
from holdfast_server.stores import LocalStore
from holdfast_server.stores.local import INCOMING
from tests.support.filesystem import (
    Crash,
    SimulatedDirectory,
    SimulatedFile,
    SimulatedFileSystem,
    SimulatedLink,
)

PACK = ObjectName("packs/00112233445566778899aabbccddeeff/01HZY3Q8V0000000000000000A")
OTHER = ObjectName("packs/00112233445566778899aabbccddeeff/01HZY3Q8V0000000000000000B")
JOURNAL = ObjectName("journal/0000000000000001")
CONTENT = bytes(range(256)) * 10
BEFORE, AFTER = "before", "after"


def opened(disk: SimulatedFileSystem) -> LocalStore:
    return LocalStore.open("/", disk)


def found(store: LocalStore, name: ObjectName) -> bytes | None:
    try:
        return store.get(name)
    except NotFound:
        return None


def at_step(number: int, error: BaseException) -> Callable[[str], None]:
    """Return a hook that raises `error` at the `number`-th step from now on."""
    left = iter(range(number, -1, -1))

    def hook(step: str) -> None:
        if next(left, -1) == 0:
            raise error

    return hook


def nothing(store: LocalStore) -> None:
    """Do nothing first."""


def steps_of(
    scenario: Callable[[LocalStore], None], first: Callable[[LocalStore], None] = nothing
) -> int:
    disk = SimulatedFileSystem()
    store = opened(disk)
    first(store)
    begun = len(disk.steps)
    scenario(store)
    return len(disk.steps) - begun


def put_pack(store: LocalStore) -> None:
    store.put(PACK, CONTENT)


def put_twice(store: LocalStore) -> None:
    store.put(OTHER, b"first")
    store.put(PACK, CONTENT)


def stops(scenario: Callable[[LocalStore], None]) -> Iterator[tuple[int, str]]:
    for number in range(steps_of(scenario)):
        yield number, BEFORE
        yield number, AFTER


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("scenario", [put_pack, put_twice])
def test_a_crash_at_any_step_of_put_leaves_all_or_nothing(
    scenario: Callable[[LocalStore], None], seed: int | None
) -> None:
    stopped = 0
    for number, side in stops(scenario):
        disk = SimulatedFileSystem()
        store = opened(disk)
        setattr(disk, side, at_step(number, Crash()))
        with pytest.raises(Crash):
            scenario(store)
        stopped += 1
        disk.crash(None if seed is None else Random(seed * 1000 + number))
        store = opened(disk)
        assert found(store, PACK) in (None, CONTENT), (number, side)
        incoming = disk.node(INCOMING)
        assert isinstance(incoming, SimulatedDirectory)
        assert incoming.entries == {}
        if found(store, PACK) is None:
            store.put(PACK, CONTENT)
        assert store.get(PACK) == CONTENT
    assert stopped > 20


@pytest.mark.parametrize("scenario", [put_pack, put_twice])
def test_what_put_has_returned_survives_every_crash(
    scenario: Callable[[LocalStore], None],
) -> None:
    disk = SimulatedFileSystem()
    scenario(opened(disk))
    disk.crash()
    assert found(opened(disk), PACK) == CONTENT


def test_a_folder_left_unsynced_by_a_dead_process_is_made_durable_before_it_counts() -> None:
    for number, side in stops(put_pack):
        disk = SimulatedFileSystem()
        store = opened(disk)
        setattr(disk, side, at_step(number, Crash()))
        with pytest.raises(Crash):
            put_pack(store)
        # kill -9: the kernel goes on and keeps what was not synced ...
        disk.is_down = False
        disk.before = disk.after = lambda step: None
        lock = disk.node(".lock")
        assert isinstance(lock, SimulatedFile)
        lock.locked_by = None
        store = opened(disk)
        store.put(OTHER, CONTENT)
        # ... and then the power goes.
        disk.crash()
        assert found(opened(disk), OTHER) == CONTENT, (number, side)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_at_any_step_of_put_leaves_nothing_or_is_harmless(number: int) -> None:
    failed = 0
    for step, side in stops(put_pack):
        disk = SimulatedFileSystem()
        store = opened(disk)
        descriptors, admitted = disk.open_descriptors, store.space().free_bytes
        setattr(disk, side, at_step(step, OSError(number, os.strerror(number))))
        error: HoldfastError | None = None
        try:
            put_pack(store)
        except HoldfastError as exc:
            error = exc
        name = disk.steps[-1]
        disk.before = disk.after = lambda step: None
        assert disk.open_descriptors == descriptors, (step, side, name)
        if error is None:
            assert store.get(PACK) == CONTENT
            continue
        failed += 1
        wanted = NoSpace if number in (errno.ENOSPC, errno.EDQUOT) else StoreFailed
        assert type(error) is wanted
        assert isinstance(error.__cause__, OSError)
        assert found(store, PACK) is None or side == AFTER
        store.put(OTHER, CONTENT)
        assert store.get(OTHER) == CONTENT
        assert store.space().free_bytes <= admitted
        disk.crash()
        assert found(opened(disk), OTHER) == CONTENT
    assert failed > 15


def test_a_failed_put_gives_its_room_back() -> None:
    disk = SimulatedFileSystem(capacity=20 * MIB)
    store = opened(disk)
    for _ in range(10):
        disk.before = at_step(2, OSError(errno.EIO, "bad"))
        with pytest.raises(StoreFailed):
            store.put(PACK, bytes(3 * MIB))
    disk.before = lambda step: None
    store.put(PACK, bytes(3 * MIB))


def failing(disk: SimulatedFileSystem, operation: str, number: int) -> None:
    left = iter(range(number, -1, -1))

    def hook(step: str) -> None:
        if step == operation and next(left, -1) == 0:
            raise OSError(errno.EIO, "Input/output error")

    disk.before = hook


def test_a_failed_sync_is_never_tried_again_and_the_object_is_gone() -> None:
    for number in (0, 1, 2, 3):
        disk = SimulatedFileSystem()
        store = opened(disk)
        failing(disk, "sync", number)
        begun = len(disk.steps)
        with pytest.raises(StoreFailed):
            put_pack(store)
        syncs = disk.steps[begun:].count("sync")
        assert syncs == number + 1
        assert found(store, PACK) is None
        disk.before = lambda step: None
        put_pack(store)
        disk.crash()
        assert found(opened(disk), PACK) == CONTENT


def test_an_object_costs_one_sync_of_the_file_and_one_of_its_folder() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    store.put(OTHER, b"makes the folders")
    begun = len(disk.steps)
    store.put(PACK, CONTENT)
    assert disk.steps[begun:].count("sync") == 2


def test_a_full_disk_is_no_space_and_leaves_nothing() -> None:
    disk = SimulatedFileSystem(capacity=1500, total=0)
    store = opened(disk)
    with pytest.raises(NoSpace):
        store.put(PACK, CONTENT)
    assert found(store, PACK) is None
    assert disk.used() == 0
    store.put(JOURNAL, b"x" * 1500)


def test_a_full_store_still_opens() -> None:
    disk = SimulatedFileSystem(capacity=20 * MIB)
    store = opened(disk)
    store.put(PACK, bytes(20_000), may_use_reserve=True)
    store.close()
    disk.capacity = disk.used()
    store = opened(disk)
    store.delete(PACK)
    assert store.space().free_bytes == 20_000
    incoming = disk.node(INCOMING)
    assert isinstance(incoming, SimulatedDirectory)
    assert incoming.entries == {}


def test_a_disk_that_keeps_fewer_bytes_is_noticed_before_the_name_exists() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    disk.lies.cuts_files_at = 2000
    with pytest.raises(StoreFailed, match="kept 2000 of 2560 bytes"):
        put_pack(store)
    assert found(store, PACK) is None


@pytest.mark.parametrize(
    ("lie", "value", "message"),
    [
        ("no_links", True, "it has no hard links"),
        ("link_overwrites", True, "it overwrites files that exist"),
        ("create_overwrites", True, "it overwrites files that exist"),
        ("cuts_files_at", 65_536, "it does not return what was written"),
        ("cannot_sync_directories", True, "cannot"),
        ("keeps_deleted_names", True, "a deleted name stays"),
    ],
)
def test_a_store_that_lies_is_refused(lie: str, value: object, message: str) -> None:
    disk = SimulatedFileSystem()
    setattr(disk.lies, lie, value)
    with pytest.raises(StoreFailed, match=message):
        opened(disk)
    assert disk.open_descriptors == 0


def test_the_probe_leaves_nothing() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    assert disk.used() == 0
    assert list(store.list()) == []


def test_a_store_is_opened_once_only() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    with pytest.raises(Conflict, match="in use by another server"):
        opened(disk)
    store.close()
    opened(disk).close()
    assert disk.open_descriptors == 0


def test_a_read_is_cut_into_as_many_calls_as_the_kernel_wants() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    put_pack(store)
    assert store.get(PACK, 3, 2500) == CONTENT[3:2503]
    failing(disk, "read_at", 1)
    with pytest.raises(StoreFailed) as caught:
        store.get(PACK)
    assert caught.value.details["object"] == PACK


def test_a_file_that_shrinks_while_read_is_damage() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    put_pack(store)
    file = disk.node(PACK)
    assert isinstance(file, SimulatedFile)

    def shrink(step: str) -> None:
        if step == "read_at":
            del file.data[1500:]

    disk.before = shrink
    with pytest.raises(Damaged, match="ends after 1500 bytes"):
        store.get(PACK)


def test_what_is_no_plain_file_is_damage_and_is_never_followed() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    put_pack(store)
    folder = disk.node(PACK.rpartition("/")[0])
    assert isinstance(folder, SimulatedDirectory)
    for node in (SimulatedLink(), SimulatedFile(is_plain=False)):
        folder.entries[OTHER.rpartition("/")[2]] = node
        with pytest.raises(Damaged) as caught:
            store.get(OTHER)
        assert caught.value.details["object"] == OTHER
        with suppress(Conflict):
            store.put(OTHER, b"x")
            raise AssertionError("overwritten")


@pytest.mark.parametrize("side", [BEFORE, AFTER])
def test_a_deletion_that_has_returned_survives_a_crash(side: str) -> None:
    for number in range(steps_of(lambda store: store.delete(PACK), first=put_pack)):
        disk = SimulatedFileSystem()
        store = opened(disk)
        put_pack(store)
        setattr(disk, side, at_step(number, OSError(errno.EIO, "bad")))
        with suppress(StoreFailed):
            store.delete(PACK)
        disk.before = disk.after = lambda step: None
        store.delete(PACK)
        disk.crash()
        assert found(opened(disk), PACK) is None


def test_the_store_s_own_files_are_never_listed() -> None:
    disk = SimulatedFileSystem()
    store = opened(disk)
    put_pack(store)
    with store.begin(OTHER, bytes_max=10) as incoming:
        incoming.write(b"x")
        assert list(store.list()) == [PACK]

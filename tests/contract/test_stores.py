"""One suite for every store: local on a disk, local on a simulated disk, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from holdfast_contract.errors import (
    Conflict,
    Damaged,
    InvalidInput,
    NoSpace,
    NotFound,
    StoreFailed,
    TooLarge,
)
from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import MIB
from holdfast_server.stores import LocalStore, Store
from holdfast_server.stores.filesystem import FreeSpace, LinuxFileSystem
from tests.support.filesystem import SimulatedFileSystem
from tests.support.stores import MemoryStore

PACK = ObjectName("packs/00112233445566778899aabbccddeeff/01HZY3Q8V0000000000000000A")
OTHER = ObjectName("packs/00112233445566778899aabbccddeeff/01HZY3Q8V0000000000000000B")
JOURNAL = ObjectName("journal/0000000000000001")
CONTENT = bytes(range(256)) * 20

MakeStore = Callable[[int], Store]


class SmallDisk(LinuxFileSystem):
    """The kernel's file system, said to have `capacity` bytes in all, less the store's files."""

    def __init__(self, top: Path, capacity: int) -> None:
        self.top = top
        self.capacity = capacity

    def free(self, directory: int) -> FreeSpace:
        used = sum(path.stat().st_size for path in self.top.rglob("*") if path.is_file())
        return FreeSpace(self.capacity, self.capacity - used)


@pytest.fixture(params=["local", "simulated", "memory"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    opened: list[Store] = []

    def make(capacity: int) -> Store:
        store: Store
        if request.param == "memory":
            store = MemoryStore(capacity=capacity)
        elif request.param == "simulated":
            store = LocalStore.open("/", SimulatedFileSystem(capacity=capacity))
        else:
            place = tmp_path / "store"
            store = LocalStore.open(str(place), SmallDisk(place, capacity))
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(1 << 40)


def test_what_was_put_is_what_is_got(store: Store) -> None:
    store.put(PACK, CONTENT)
    assert store.get(PACK) == CONTENT
    assert store.size(PACK) == len(CONTENT)


def test_ranges_are_exact(store: Store) -> None:
    store.put(PACK, CONTENT)
    for offset, length in [(0, 0), (0, 1), (17, 3000), (5119, 1), (5120, 0), (100, 5020)]:
        assert store.get(PACK, offset, length) == CONTENT[offset : offset + length]
    assert store.get(PACK, 5000) == CONTENT[5000:]


@pytest.mark.parametrize(("offset", "length"), [(0, 5121), (5120, 1), (6000, 0), (6000, None)])
def test_a_range_beyond_the_end_is_damage_that_names_the_object(
    store: Store, offset: int, length: int | None
) -> None:
    store.put(PACK, CONTENT)
    with pytest.raises(Damaged) as caught:
        store.get(PACK, offset, length)
    assert caught.value.details["object"] == PACK


def test_a_range_fills_memory_that_lies_apart(store: Store) -> None:
    store.put(PACK, CONTENT)
    lengths = [1, 0, 1500, 3, *[1] * 1100, 0, 700]
    rooms = [memoryview(bytearray(length)) for length in lengths]
    store.get_into(PACK, 17, rooms)
    assert [len(room) for room in rooms] == lengths
    assert b"".join(rooms) == CONTENT[17 : 17 + sum(lengths)]
    store.get_into(PACK, len(CONTENT), [])


@pytest.mark.parametrize(("offset", "length"), [(0, 5121), (5120, 1), (6000, 0)])
def test_memory_for_more_than_there_is_is_damage_that_names_the_object(
    store: Store, offset: int, length: int
) -> None:
    store.put(PACK, CONTENT)
    with pytest.raises(Damaged) as caught:
        store.get_into(PACK, offset, [memoryview(bytearray(length))])
    assert caught.value.details["object"] == PACK
    with pytest.raises(NotFound):
        store.get_into(OTHER, 0, [memoryview(bytearray(1))])
    with pytest.raises(InvalidInput):
        store.get_into(PACK, -1, [memoryview(bytearray(1))])


def test_a_negative_range_is_invalid(store: Store) -> None:
    store.put(PACK, CONTENT)
    for offset, length in [(-1, 1), (0, -1)]:
        with pytest.raises(InvalidInput):
            store.get(PACK, offset, length)


def test_an_absent_object_is_not_found_and_named(store: Store) -> None:
    store.put(PACK, CONTENT)
    below = ObjectName(f"{PACK}/below")
    folder = ObjectName("packs/00112233445566778899aabbccddeeff")
    for name in (OTHER, JOURNAL, below, folder):
        for call in (store.get, store.size):
            with pytest.raises(NotFound) as caught:
                call(name)
            assert caught.value.details["object"] == name


def test_an_object_of_the_same_name_is_never_overwritten(store: Store) -> None:
    store.put(PACK, CONTENT)
    for data in (CONTENT, b"other"):
        with pytest.raises(Conflict) as caught:
            store.put(PACK, data)
        assert caught.value.details["object"] == PACK
    assert store.get(PACK) == CONTENT


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put(PACK, b"")
    assert store.get(PACK) == b""
    assert list(store.list()) == [PACK]


def test_an_object_may_come_in_pieces_of_any_buffer(store: Store) -> None:
    with store.begin(PACK, bytes_max=len(CONTENT)) as incoming:
        assert incoming.name == PACK
        incoming.write(CONTENT[:1])
        incoming.write(bytearray(CONTENT[1:2000]))
        incoming.write(memoryview(CONTENT)[2000:])
        incoming.commit()
    assert store.get(PACK) == CONTENT


def test_an_object_may_be_shorter_than_announced(store: Store) -> None:
    with store.begin(PACK, bytes_max=MIB) as incoming:
        incoming.write(b"short")
        incoming.commit()
    assert store.get(PACK) == b"short"


def test_an_object_is_not_seen_before_its_commit(store: Store) -> None:
    with store.begin(PACK, bytes_max=10) as incoming:
        incoming.write(b"0123456789")
        assert list(store.list()) == []
        with pytest.raises(NotFound):
            store.get(PACK)
        incoming.commit()
    assert list(store.list()) == [PACK]


def test_what_was_not_committed_leaves_nothing(store: Store) -> None:
    with store.begin(PACK, bytes_max=10) as incoming:
        incoming.write(b"0123")
    with pytest.raises(NotFound):
        store.get(PACK)
    with pytest.raises(StoreFailed):
        incoming.commit()
    with pytest.raises(StoreFailed):
        incoming.write(b"4")
    store.put(PACK, b"again")
    assert store.get(PACK) == b"again"


def test_aborting_after_a_commit_changes_nothing(store: Store) -> None:
    incoming = store.begin(PACK, bytes_max=10)
    incoming.write(b"0123")
    incoming.commit()
    incoming.abort()
    assert store.get(PACK) == b"0123"


def test_more_than_announced_is_refused_and_dropped(store: Store) -> None:
    incoming = store.begin(PACK, bytes_max=4)
    incoming.write(b"0123")
    with pytest.raises(TooLarge):
        incoming.write(b"4")
    with pytest.raises(StoreFailed):
        incoming.commit()
    with pytest.raises(NotFound):
        store.get(PACK)


def test_of_two_at_once_one_wins_completely(store: Store) -> None:
    contents = [bytes([number]) * 3000 for number in range(4)]
    meet = Barrier(len(contents))

    def race(content: bytes) -> bool:
        with store.begin(PACK, bytes_max=len(content)) as incoming:
            incoming.write(content)
            meet.wait(30)
            try:
                incoming.commit()
            except Conflict:
                return False
            return True

    with ThreadPoolExecutor(len(contents)) as pool:
        won = list(pool.map(race, contents))
    assert won.count(True) == 1
    assert store.get(PACK) == contents[won.index(True)]


def test_deleting_is_idempotent(store: Store) -> None:
    store.put(PACK, CONTENT)
    for _ in range(2):
        store.delete(PACK)
        with pytest.raises(NotFound):
            store.size(PACK)
    store.delete(JOURNAL)
    assert list(store.list()) == []


def test_listing_gives_the_names_below_a_folder_sorted(store: Store) -> None:
    for name in (OTHER, PACK, JOURNAL, ObjectName("packs2/x"), ObjectName("a/b/c/d")):
        store.put(name, b"x")
    assert list(store.list()) == ["a/b/c/d", JOURNAL, PACK, OTHER, "packs2/x"]
    assert list(store.list("packs")) == [PACK, OTHER]
    assert list(store.list(PACK.rpartition("/")[0])) == [PACK, OTHER]
    assert list(store.list("absent")) == []
    assert list(store.list("journal/0000000000000001")) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/..",
        "a/./b",
        ".incoming/x",
        ".lock",
        "a/.b",
        "a\0b",
        "a b",
        "a\n",
        "ä",
        "a%2fb",
        "a\\b",
        "a/b/c/d/e",
        "a" * 129,
    ],
)
def test_what_is_no_object_name_is_refused_by_every_method(store: Store, name: str) -> None:
    bad = ObjectName(name)
    for call in (
        lambda: store.put(bad, b"x"),
        lambda: store.begin(bad, bytes_max=1),
        lambda: store.get(bad),
        lambda: store.size(bad),
        lambda: store.delete(bad),
        lambda: list(store.list(name or "..")),
    ):
        with pytest.raises(InvalidInput):
            call()


def test_ordinary_objects_stop_at_the_reserve_and_others_may_use_it(make_store: MakeStore) -> None:
    store = make_store(17 * MIB)
    assert (store.space().total_bytes, store.space().reserve_bytes) == (17 * MIB, 16 * MIB)
    store.put(PACK, bytes(MIB // 2))
    with pytest.raises(NoSpace):
        store.put(OTHER, bytes(MIB))
    store.put(JOURNAL, bytes(MIB), may_use_reserve=True)
    with pytest.raises(NotFound):
        store.size(OTHER)
    store.delete(JOURNAL)
    store.put(OTHER, bytes(MIB // 4))


def test_many_at_once_do_not_outgrow_the_room(make_store: MakeStore) -> None:
    store = make_store(18 * MIB)
    one = store.begin(PACK, bytes_max=MIB)
    with pytest.raises(NoSpace):
        store.begin(OTHER, bytes_max=MIB + 1)
    one.abort()
    store.begin(OTHER, bytes_max=MIB + 1).abort()

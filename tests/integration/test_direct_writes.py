"""Long objects go past the page cache, byte for byte, and anywhere else through it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import KIB, MIB
from holdfast_server.stores import LocalStore
from holdfast_server.stores.filesystem import BLOCK_BYTES, LinuxFileSystem, block_buffer
from tests.support.samples import noise

NAME = ObjectName("packs/00112233445566778899aabbccddeeff/01HZY3Q8V0000000000000000A")
_write = os.write


class Spy:
    """Notes of each `write` how long it was and whether it went past the page cache."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, bool]] = []
        self.before: Callable[[bool, memoryview], memoryview] = lambda direct, data: data
        patch.setattr(os, "write", self._noted)

    def _noted(self, descriptor: int, data: memoryview) -> int:
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        self.calls.append((len(data), is_direct))
        return _write(descriptor, self.before(is_direct, data))

    def refuse(self, number: int) -> None:
        """Have every direct write fail."""

        def before(is_direct: bool, data: memoryview) -> memoryview:
            if is_direct:
                raise OSError(number, os.strerror(number))
            return data

        self.before = before


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def is_direct_here(top: Path) -> bool:
    """Tell whether the tests' own file system can do it at all."""
    try:
        os.close(os.open(top / "try", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def blocks(content: bytes) -> memoryview:
    memory = block_buffer(len(content))
    memory[:] = content
    return memory


def stored(top: Path, spy: Spy, data: memoryview, more: bytes = b"") -> bytes:
    store = LocalStore.open(str(top / "store"))
    spy.calls.clear()
    try:
        with store.begin(NAME, bytes_max=len(data) + len(more)) as incoming:
            incoming.write(data)
            incoming.write(more)
            incoming.commit()
        return store.get(NAME)
    finally:
        store.close()


@pytest.mark.parametrize("length", [MIB, MIB + 1, MIB + BLOCK_BYTES, 3 * MIB - 1, 5 * MIB + 4095])
def test_a_long_object_goes_past_the_page_cache_up_to_its_last_block(
    tmp_path: Path, spy: Spy, length: int
) -> None:
    content = noise("long", length)
    assert stored(tmp_path, spy, blocks(content)) == content
    whole = length // BLOCK_BYTES * BLOCK_BYTES
    tail = [(length - whole, False)] if length > whole else []
    if is_direct_here(tmp_path):
        assert spy.calls == [(whole, True), *tail]


def test_what_comes_after_an_odd_number_of_bytes_goes_through_it(tmp_path: Path, spy: Spy) -> None:
    parts = noise("head", 100), noise("rest", 2 * MIB)
    assert stored(tmp_path, spy, blocks(parts[0]), bytes(blocks(parts[1]))) == b"".join(parts)
    assert all(not direct for _, direct in spy.calls)
    spy.calls.clear()
    first = LinuxFileSystem()
    descriptor = first.create("odd", folder := os.open(tmp_path, os.O_RDONLY))
    first.write(descriptor, memoryview(b"x"))
    first.write(descriptor, blocks(parts[1]))
    os.close(descriptor)
    os.close(folder)
    assert (tmp_path / "odd").read_bytes() == b"x" + parts[1]
    assert all(not direct for _, direct in spy.calls)


@pytest.mark.parametrize("kind", ["short", "read-only", "out of line"])
def test_what_is_short_or_lies_out_of_line_goes_through_it(
    tmp_path: Path, spy: Spy, kind: str
) -> None:
    content = noise(kind, 512 * KIB if kind == "short" else 2 * MIB)
    data = blocks(content)
    if kind == "read-only":
        data = data.toreadonly()
    elif kind == "out of line":
        data = blocks(b"x" + content)[1:]
    assert stored(tmp_path, spy, data) == content
    assert all(not direct for _, direct in spy.calls)


def test_a_direct_write_that_takes_a_part_is_gone_on_with(tmp_path: Path, spy: Spy) -> None:
    content = noise("part", 4 * MIB)
    spy.before = lambda direct, data: data[: 512 * 3 if direct else len(data)]
    assert stored(tmp_path, spy, blocks(content)) == content


def test_where_it_cannot_be_done_the_page_cache_serves(tmp_path: Path, spy: Spy) -> None:
    content = noise("refused", 2 * MIB + 5)
    spy.refuse(errno.EINVAL)
    assert stored(tmp_path, spy, blocks(content)) == content
    assert spy.calls[-1] == (len(content), False)


def test_an_error_of_the_disk_is_no_reason_to_try_another_way(tmp_path: Path, spy: Spy) -> None:
    disk = LinuxFileSystem()
    folder = os.open(tmp_path, os.O_RDONLY)
    descriptor = disk.create("full", folder)
    try:
        if not is_direct_here(tmp_path):
            pytest.fail("the tests need a file system that takes direct writes")
        for number in (errno.ENOSPC, errno.EIO):
            spy.refuse(number)
            with pytest.raises(OSError, match=os.strerror(number)):
                disk.write(descriptor, blocks(noise("x", MIB)))
            assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
    finally:
        os.close(descriptor)
        os.close(folder)
    assert all(direct for _, direct in spy.calls)


def test_a_buffer_in_blocks_has_its_length_and_begins_with_a_block() -> None:
    for length in (1, 100, BLOCK_BYTES, MIB + 7):
        memory = block_buffer(length)
        assert memory.nbytes == length
        assert bytes(memory) == bytes(length)

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
from blake3 import blake3

from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.refs import (
    HEADER_BYTES,
    Difference,
    RefsHeader,
    RefsKind,
    RefsSet,
    apply_difference,
    checked_ids,
    decode_difference,
    decode_full,
    encode_difference,
    encode_full,
    read_header,
    refs_set_of,
)
from holdfast_contract.ids import ZERO_HASH
from tests.support.samples import DOMAIN, flips, ids

BASE = "01J0000000000000000000BASE"


def full(chunk_ids: list[bytes]) -> bytes:
    out = io.BytesIO()
    encode_full(DOMAIN, iter(chunk_ids), len(chunk_ids), refs_set_of(chunk_ids), out.write)
    return out.getvalue()


def read(data: bytes) -> list[bytes]:
    return list(decode_full(io.BytesIO(data).read))


def difference(base: list[bytes], whole: list[bytes]) -> bytes:
    added = sorted(set(whole) - set(base))
    removed = sorted(set(base) - set(whole))
    return raw_difference(base, whole, added, removed)


def raw_difference(
    base: Iterable[bytes], whole: list[bytes], added: list[bytes], removed: list[bytes]
) -> bytes:
    out = io.BytesIO()
    encode_difference(
        DOMAIN,
        (refs_set_of(whole), len(whole)),
        (BASE, refs_set_of(base)),
        (iter(added), len(added)),
        (iter(removed), len(removed)),
        out.write,
    )
    return out.getvalue()


def read_at(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def read_difference(data: bytes) -> Difference:
    return decode_difference(read_at(data), len(data))


def resealed(data: bytes) -> bytes:
    """Return `data` with its last 32 bytes made to fit the others."""
    return data[:-32] + blake3(data[:-32]).digest()


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return resealed(data[:at] + value + data[at + len(value) :])


@pytest.mark.parametrize("count", [0, 1, 5, 8192, 8193, 20_000])
def test_a_full_list_comes_back(count: int) -> None:
    chunk_ids = ids(count)
    data = full(chunk_ids)
    assert read(data) == chunk_ids
    assert len(data) == read_header(data).object_bytes == 144 + 32 * count + 32


def test_refs_set_is_the_hash_of_the_ids_one_after_the_other() -> None:
    chunk_ids = ids(10_000)
    assert refs_set_of(chunk_ids) == blake3(b"".join(chunk_ids)).digest()
    steps = RefsSet()
    for start in range(0, 10_000, 777):
        steps.update(chunk_ids[start : start + 777])
    assert (steps.digest(), steps.count) == (refs_set_of(chunk_ids), 10_000)


@pytest.mark.parametrize(
    "chunk_ids",
    [
        ids(3)[::-1],
        [*ids(3), ids(3)[2]],
        [b"a" * 31, b"b" * 33],
        [b"a" * 31],
        [b""],
    ],
)
def test_ids_out_of_order_doubled_or_of_another_length_have_no_refs_set(
    chunk_ids: list[bytes],
) -> None:
    with pytest.raises(InvalidInput):
        refs_set_of(chunk_ids)


def test_order_is_checked_across_batches() -> None:
    chunk_ids = ids(2 * 8192)
    order = RefsSet()
    order.update(chunk_ids[:8192])
    with pytest.raises(InvalidInput):
        order.update(chunk_ids[8191:])


def test_a_reader_that_gives_little_at_a_time_is_enough() -> None:
    chunk_ids = ids(100)
    stream = io.BytesIO(full(chunk_ids))
    assert list(decode_full(lambda length: stream.read(min(length, 7)))) == chunk_ids


def test_every_flipped_bit_of_a_full_list_is_refused() -> None:
    for bit, data in flips(full(ids(3))):
        with pytest.raises(HoldfastError):
            read(data)
            pytest.fail(f"bit {bit}")


def test_every_flipped_bit_of_a_difference_is_refused() -> None:
    for bit, data in flips(difference(ids(4), ids(6)[1:])):
        with pytest.raises(HoldfastError):
            read_difference(data)
            pytest.fail(f"bit {bit}")


def test_a_full_list_cut_off_or_prolonged_is_refused() -> None:
    data = full(ids(3))
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            read(data[:length])
    with pytest.raises(InvalidInput, match="behind the end"):
        read(data + b"\0")


def test_a_difference_cut_off_or_prolonged_is_refused() -> None:
    data = difference(ids(4), ids(6)[1:])
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            read_difference(data[:length])
    with pytest.raises(InvalidInput):
        read_difference(data + b"\0")


def test_a_list_that_is_not_the_promised_set_fails_while_written() -> None:
    chunk_ids = ids(5)
    sink = io.BytesIO()
    for count, refs_set in [(4, refs_set_of(chunk_ids)), (6, refs_set_of(chunk_ids))]:
        with pytest.raises(InvalidInput):
            encode_full(DOMAIN, chunk_ids, count, refs_set, sink.write)
    with pytest.raises(InvalidInput, match="not the set"):
        encode_full(DOMAIN, chunk_ids, 5, refs_set_of(chunk_ids[1:]), sink.write)


def test_a_sound_hash_does_not_save_a_list_that_is_another_set() -> None:
    chunk_ids = ids(5)
    data = full(chunk_ids)
    swapped = data[:144] + data[176:208] + data[144:176] + data[208:]
    doubled = data[:144] + data[144:176] * 2 + data[208:]
    another = data[:24] + refs_set_of(chunk_ids[1:]) + data[56:]
    for forged in (swapped, doubled, another):
        with pytest.raises(InvalidInput):
            read(resealed(forged))


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"XXXX", InvalidInput),
        (4, b"\x02", UnsupportedVersion),
        (5, b"\x00", UnsupportedVersion),
        (5, b"\x03", UnsupportedVersion),
        (6, b"\x01", InvalidInput),
        (56, b"\x04", InvalidInput),
        (64, BASE.encode(), InvalidInput),
        (90, b"\x01", InvalidInput),
        (96, b"\x01", InvalidInput),
        (136, b"\x01", InvalidInput),
        (128, b"\xff" * 8, InvalidInput),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    at: int, value: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        read(changed(full(ids(3)), at, value))


@pytest.mark.parametrize(
    ("at", "value"),
    [(64, bytes(26)), (64, b"01J0000000000000000000BASI"), (64, b"\xff" * 26), (128, b"\xff")],
)
def test_a_difference_without_a_sound_base_is_refused(at: int, value: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_header(changed(difference(ids(4), ids(6)[1:]), at, value))


def test_full_lists_and_differences_are_not_taken_for_each_other() -> None:
    with pytest.raises(InvalidInput):
        read(difference(ids(4), ids(6)))
    with pytest.raises(InvalidInput):
        read_difference(full(ids(4)))


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        (ids(5), ids(5)),
        ([], ids(5)),
        (ids(5), []),
        (ids(40), ids(60)[5:]),
        (ids(9000)[:4500], ids(9000)[2000:]),
    ],
)
def test_a_difference_leads_from_the_base_to_the_whole_list(
    base: list[bytes], whole: list[bytes]
) -> None:
    found = read_difference(difference(base, whole))
    header = found.header
    merged = apply_difference(iter(base), found.added(), found.removed())
    assert list(checked_ids(merged, header.refs_set, header.count)) == whole
    assert (header.base, header.base_set) == (BASE, refs_set_of(base))
    assert header.kind == RefsKind.DIFFERENCE


def test_what_is_added_must_be_new_and_what_is_removed_must_be_there() -> None:
    a, b, c, d = ids(4)
    for base, added, removed in [
        ([a, b], [b], []),
        ([a, b], [], [c]),
        ([b, c], [], [a]),
        ([b, c], [], [d]),
        ([], [], [a]),
        ([b, c], [a, c], []),
    ]:
        with pytest.raises(InvalidInput):
            list(apply_difference(base, added, removed))


def test_a_difference_to_another_base_is_found_by_the_set() -> None:
    base, whole = ids(10), ids(12)[2:]
    found = read_difference(difference(base, whole))
    other = sorted([*base[:3], *base[4:]])
    merged = apply_difference(other, found.added(), found.removed())
    with pytest.raises(InvalidInput):
        list(checked_ids(merged, found.header.refs_set, found.header.count))


def test_unsorted_sections_of_a_difference_are_refused() -> None:
    data = difference(ids(2), ids(6))
    at = HEADER_BYTES
    swapped = data[:at] + data[at + 32 : at + 64] + data[at : at + 32] + data[at + 64 :]
    with pytest.raises(InvalidInput, match="ascending"):
        read_difference(resealed(swapped))
    with pytest.raises(InvalidInput, match="another number"):
        encode_difference(
            DOMAIN,
            (ZERO_HASH, 5),
            (BASE, ZERO_HASH),
            (ids(2), 3),
            ([], 0),
            io.BytesIO().write,
        )


def test_more_ids_than_an_object_may_hold_are_not_written() -> None:
    header = RefsHeader(RefsKind.FULL, DOMAIN, ZERO_HASH, 1 << 26, "", ZERO_HASH, 1 << 26, 0)
    assert header.object_bytes > 2 << 30
    with pytest.raises(TooLarge):
        read_header(header.encode())
    with pytest.raises(TooLarge):
        encode_full(DOMAIN, [], 1 << 26, ZERO_HASH, io.BytesIO().write)


def test_a_long_list_is_never_whole_in_memory() -> None:
    count = 100_000
    data = b"".join(number.to_bytes(32, "big") for number in range(count))
    refs_set = blake3(data).digest()
    stream = io.BytesIO(full([data[at : at + 32] for at in range(0, len(data), 32)]))
    tracemalloc.start()
    try:
        found = sum(1 for _ in checked_ids(decode_full(stream.read), refs_set, count))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == count
    assert peak < 4 << 20

from __future__ import annotations

import math

import pytest

from holdfast_agent.crypto.sealing import Sealer
from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.chunk import (
    SEALED_BYTES_MIN,
    ChunkHeader,
    ChunkType,
    padme,
    parse_chunk_header,
    sealed_bytes_of,
)
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, SEALED_BYTES_MAX
from tests.support.samples import KEYS

SEALED = bytes(Sealer(KEYS).seal(ChunkType.TREE, b"plaintext of a chunk").sealed)


def changed(at: int, value: bytes) -> bytes:
    return SEALED[:at] + value + SEALED[at + len(value) :]


def padme_as_defined(length: int) -> int:
    """Return Padme in the words of docs/format.md, with logarithms."""
    e = math.floor(math.log2(length))
    s = math.floor(math.log2(e)) + 1
    step = 2 ** (e - s)
    return int(math.ceil(length / step) * step)


def test_padme_is_what_the_format_defines() -> None:
    lengths = [*range(2, 5000), *(2**n + d for n in range(13, 23) for d in (-1, 0, 1, 12345))]
    assert [padme(n) for n in lengths] == [padme_as_defined(n) for n in lengths]


def test_padme_adds_at_most_an_eighth_and_leaves_padded_lengths_alone() -> None:
    for length in range(9, 20000):
        assert length <= padme(length) <= length * 1.125
        assert padme(padme(length)) == padme(length)


def test_the_longest_chunk_stored_raw_is_within_the_limit() -> None:
    assert sealed_bytes_of(CHUNK_PLAIN_BYTES_MAX) == 60 + (4 << 20) + (128 << 10) + 16
    assert sealed_bytes_of(CHUNK_PLAIN_BYTES_MAX) <= SEALED_BYTES_MAX


def test_header_comes_back_from_its_bytes() -> None:
    header = parse_chunk_header(SEALED)
    assert header.encode() == SEALED[:60]
    assert (header.type, header.epoch) == (ChunkType.TREE, 2)
    built = ChunkHeader(3, 1, 77, b"s" * 16, b"c" * 32).encode()
    assert parse_chunk_header(built + SEALED[60:]) == ChunkHeader(3, 1, 77, b"s" * 16, b"c" * 32)


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"X", InvalidInput),
        (4, b"\x02", UnsupportedVersion),
        (4, b"\x00", UnsupportedVersion),
        (5, b"\x02", UnsupportedVersion),
        (6, b"\x00", UnsupportedVersion),
        (6, b"\x04", UnsupportedVersion),
        (7, b"\x02", UnsupportedVersion),
        (7, b"\x81", UnsupportedVersion),
        (8, b"\x00\x00\x00\x00", InvalidInput),
    ],
)
def test_what_the_format_does_not_know_is_refused(
    at: int, value: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        parse_chunk_header(changed(at, value))


def test_lengths_that_no_sealing_makes_are_refused() -> None:
    for length in range(SEALED_BYTES_MIN):
        with pytest.raises(InvalidInput, match="too short"):
            parse_chunk_header((SEALED * 5)[:length])
    with pytest.raises(InvalidInput, match="not padded"):
        parse_chunk_header(SEALED[:60] + bytes(16 + 129))
    with pytest.raises(TooLarge):
        parse_chunk_header(SEALED + bytes(SEALED_BYTES_MAX))

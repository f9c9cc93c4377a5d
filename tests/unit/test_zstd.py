"""zstd between buffers: one sound frame of the said length, and nothing beside it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import zstandard

from holdfast_agent.crypto.zstd import Compressor, Decompressor, ZstdFailed
from tests.support.samples import noise

WORDS = [noise(f"word {n}", 3 + n % 9) for n in range(256)]
TEXT = b"".join(WORDS[n] for n in noise("text", 6_000))


def frame_of(data: bytes, level: int = 1) -> bytes:
    room = memoryview(bytearray(len(data) + 1_000))
    return bytes(room[: Compressor(level).compress_into(data, room)])


def unpacked(frame: bytes, length: int) -> bytes:
    room = bytearray(length)
    Decompressor().decompress_into(frame, memoryview(room))
    return bytes(room)


@pytest.mark.parametrize("level", [-1, 1, 3, 9])
def test_frames_are_zstd_frames_that_tell_their_length(level: int) -> None:
    frame = frame_of(TEXT, level)
    assert len(frame) < len(TEXT) * 3 // 4
    assert zstandard.frame_content_size(frame) == len(TEXT)
    assert not zstandard.get_frame_parameters(frame).has_checksum
    assert zstandard.ZstdDecompressor().decompress(frame) == TEXT
    assert unpacked(frame, len(TEXT)) == TEXT


@pytest.mark.parametrize("lacks", [1, 2, 100])
def test_a_frame_that_does_not_fit_is_told_and_writes_nothing_behind_its_room(lacks: int) -> None:
    frame = frame_of(TEXT)
    whole = bytearray(b"\xaa" * (len(frame) + 64))
    room = memoryview(whole)[: len(frame) - lacks]
    compressor = Compressor(1)
    assert compressor.compress_into(TEXT, room) == 0
    assert bytes(whole[len(room) :]) == b"\xaa" * (len(whole) - len(room))
    # It is as good as new afterwards.
    assert compressor.compress_into(TEXT, memoryview(whole)) == len(frame)
    assert compressor.compress_into(noise("x", 5000), memoryview(whole)[:4999]) == 0


def test_matches_are_found_as_far_back_as_a_quarter_mebibyte() -> None:
    for distance, is_found in ((200_000, True), (600_000, False)):
        block = noise("block", 50_000)
        data = block + noise("between", distance - len(block)) + block
        assert (len(frame_of(data)) < len(data) - 40_000) is is_found


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0",
        frame_of(TEXT)[:-1],
        frame_of(TEXT) + b"\0",
        frame_of(TEXT) + frame_of(TEXT),
        frame_of(TEXT) + zstandard.ZstdCompressor().compress(b""),
        frame_of(TEXT) + b"\x50\x2a\x4d\x18\4\0\0\0skip",
        b"\x50\x2a\x4d\x18\4\0\0\0skip" + frame_of(TEXT),
        zstandard.ZstdCompressor(write_content_size=False).compress(TEXT),
    ],
    ids=["empty", "zero", "torn", "more", "two", "empty-behind", "skip-behind", "skip", "unsaid"],
)
def test_what_is_not_one_sound_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(ZstdFailed):
        unpacked(frame, len(TEXT))


@pytest.mark.parametrize("length", [0, 1, len(TEXT) - 1, len(TEXT) + 1])
def test_a_frame_of_another_length_than_its_room_is_refused(length: int) -> None:
    with pytest.raises(ZstdFailed):
        unpacked(frame_of(TEXT), length)


def test_no_flipped_bit_writes_behind_the_room() -> None:
    frame = bytearray(frame_of(TEXT))
    whole = bytearray(len(TEXT) + 64)
    for at in range(0, len(frame), 101):
        frame[at] ^= 1 << at % 8
        with suppress(ZstdFailed):
            Decompressor().decompress_into(frame, memoryview(whole)[: len(TEXT)])
        frame[at] ^= 1 << at % 8
        assert whole[len(TEXT) :] == bytes(64)
    Decompressor().decompress_into(frame, memoryview(whole)[: len(TEXT)])
    assert whole[: len(TEXT)] == TEXT

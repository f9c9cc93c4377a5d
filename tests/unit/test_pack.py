from __future__ import annotations

from collections.abc import Callable

import pytest
from blake3 import blake3

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.crypto.sealing import Opener, Sealer
from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.pack import (
    ENTRY_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    TRAILER_BYTES,
    PackEntry,
    PackWriter,
    read_footer,
    scan_frames,
    verify_pack,
)
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import PACK_BYTES_MAX
from tests.support.samples import DOMAIN, KEYS, OTHER_DOMAIN, flips, noise, small_pack

PACK = small_pack(4)


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def footer(data: bytes) -> list[PackEntry]:
    return read_footer(reader(data), len(data), DOMAIN)


def with_footer(data: bytes, entries: list[PackEntry], *, header: bytes | None = None) -> bytes:
    """Return the frames of `data` under a new footer that is sound in itself."""
    header = data[:HEADER_BYTES] if header is None else header
    last = verify_pack(data, DOMAIN)[-1]
    rows = b"".join(
        e.chunk_id
        + e.storage_hash
        + b"".join(n.to_bytes(4, "little") for n in (e.offset, e.length, e.epoch))
        + bytes((e.type, 0, 0, 0))
        for e in entries
    )
    body = b"HFFT" + len(entries).to_bytes(4, "little") + rows
    trailer = blake3(header + body).digest() + len(body).to_bytes(4, "little") + b"HFPE"
    return header + data[HEADER_BYTES : last.offset + last.length] + body + trailer


def test_a_pack_tells_what_was_added_and_its_chunks_open() -> None:
    sealer, opener, writer = Sealer(KEYS), Opener(KEYS), PackWriter(DOMAIN)
    plain = {}
    for number in range(5):
        data = noise(f"plain {number}", 1000 * number + 1)
        chunk = sealer.seal(ChunkType.CONTENT, data)
        assert chunk.chunk_id not in writer
        writer.add(chunk.chunk_id, chunk.sealed, chunk.storage_hash)
        assert chunk.chunk_id in writer
        plain[chunk.chunk_id] = data
    said = writer.bytes_used
    pack = b"".join(writer.finish())
    assert len(pack) == said
    entries = verify_pack(memoryview(pack), DOMAIN)
    assert entries == footer(pack) == writer.entries
    assert len(writer) == len(entries) == 5
    for entry in entries:
        sealed = pack[entry.offset : entry.offset + entry.length]
        assert opener.open(ChunkType.CONTENT, entry.chunk_id, sealed) == plain[entry.chunk_id]
        assert blake3(sealed).digest() == entry.storage_hash


def test_the_writer_copies_no_sealed_chunk() -> None:
    chunk = Sealer(KEYS).seal(ChunkType.CONTENT, b"x")
    writer = PackWriter(DOMAIN)
    writer.add(chunk.chunk_id, chunk.sealed)
    assert any(part is chunk.sealed for part in writer.finish())


def test_a_chunk_is_added_once() -> None:
    chunk = Sealer(KEYS).seal(ChunkType.CONTENT, b"x")
    writer = PackWriter(DOMAIN)
    writer.add(chunk.chunk_id, chunk.sealed)
    with pytest.raises(InvalidInput, match="twice"):
        writer.add(chunk.chunk_id, Sealer(KEYS).seal(ChunkType.CONTENT, b"x").sealed)
    assert len(writer) == 1


def test_an_empty_pack_is_not_made() -> None:
    with pytest.raises(InvalidInput):
        PackWriter(DOMAIN).finish()


def test_a_pack_never_grows_over_its_limit() -> None:
    sealer, writer = Sealer(KEYS, level=-1), PackWriter(DOMAIN)
    big = sealer.seal(ChunkType.CONTENT, noise("big", 4 << 20)).sealed
    number = 0
    while writer.fits(len(big)):
        writer.add(ChunkId(noise(f"{number}")), big, b"h" * 32)
        number += 1
    assert PACK_BYTES_MAX - len(big) < writer.bytes_used + 200 <= PACK_BYTES_MAX
    with pytest.raises(TooLarge):
        writer.add(ChunkId(noise("one more")), big)


@pytest.mark.parametrize("read", [footer, lambda data: verify_pack(data, DOMAIN)])
def test_a_pack_cut_off_anywhere_is_refused(read: Callable[[bytes], object]) -> None:
    for length in range(len(PACK)):
        with pytest.raises(InvalidInput):
            read(PACK[:length])
    with pytest.raises(InvalidInput):
        read(PACK + b"\0")


def test_every_flipped_bit_of_a_pack_is_refused() -> None:
    for bit, changed in flips(PACK):
        with pytest.raises(HoldfastError):
            verify_pack(changed, DOMAIN)
            pytest.fail(f"bit {bit} of byte {bit // 8}")


def test_every_flipped_bit_of_header_footer_and_trailer_is_refused_without_reading_chunks() -> None:
    entries = footer(PACK)
    footer_start = entries[-1].offset + entries[-1].length
    for bit, changed in flips(PACK):
        if bit // 8 < HEADER_BYTES or bit // 8 >= footer_start:
            with pytest.raises(InvalidInput):
                footer(changed)


def test_a_pack_over_the_limit_is_refused_before_it_is_read() -> None:
    def read_at(offset: int, length: int) -> bytes:
        pytest.fail(f"read {length} bytes at {offset}")

    with pytest.raises(TooLarge):
        read_footer(read_at, PACK_BYTES_MAX + 1, DOMAIN)


def test_a_pack_of_another_domain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="another domain"):
        verify_pack(PACK, OTHER_DOMAIN)


def test_a_footer_that_is_sound_in_itself_must_still_agree_with_the_frames() -> None:
    one, two, *rest = verify_pack(PACK, DOMAIN)
    assert verify_pack(with_footer(PACK, [one, two, *rest]), DOMAIN) == [one, two, *rest]
    lies = {
        "order": [two, one, *rest],
        "another id": [one._replace(chunk_id=ChunkId(noise("x"))), two, *rest],
        "another storage hash": [one._replace(storage_hash=noise("x")), two, *rest],
        "another type": [one._replace(type=2), two, *rest],
        "an unknown type": [one._replace(type=4), two, *rest],
        "another epoch": [one._replace(epoch=1), two, *rest],
        "epoch 0": [one._replace(epoch=0), two, *rest],
        "shifted": [one._replace(offset=one.offset + 1), two, *rest],
        "longer": [one._replace(length=one.length + 1), two, *rest],
        "one missing": [one, *rest],
        "last missing": [one, two, *rest[:-1]],
        "one twice": [one, one, *rest],
        "an id twice": [one, two._replace(chunk_id=one.chunk_id), *rest],
        "none": [],
    }
    for name, entries in lies.items():
        with pytest.raises(InvalidInput):
            verify_pack(with_footer(PACK, entries), DOMAIN)
            pytest.fail(name)


def test_a_footer_cannot_vouch_for_a_header_of_another_version_or_domain() -> None:
    entries = verify_pack(PACK, DOMAIN)
    headers = [
        b"HFPK\x02" + PACK[5:HEADER_BYTES],
        b"HFPK\x01\x00\x01\x00" + PACK[8:HEADER_BYTES],
        PACK[:8] + OTHER_DOMAIN,
        b"XFPK" + PACK[4:HEADER_BYTES],
    ]
    for header in headers:
        with pytest.raises(HoldfastError):
            verify_pack(with_footer(PACK, entries, header=header), DOMAIN)


def test_frames_alone_tell_what_the_footer_told() -> None:
    entries = footer(PACK)
    torn = PACK[: -TRAILER_BYTES - ENTRY_BYTES]
    assert list(scan_frames(reader(torn), len(torn))) == entries


def test_pack_with_a_flipped_length_loses_one_chunk_only() -> None:
    entries = footer(PACK)
    for lost, entry in enumerate(entries):
        changed = bytearray(PACK)
        changed[entry.offset - FRAME_BYTES + 5] ^= 1
        found = list(scan_frames(reader(bytes(changed)), len(changed)))
        assert found == entries[:lost] + entries[lost + 1 :]


def test_every_flipped_bit_of_the_frames_loses_at_most_one_chunk() -> None:
    entries = footer(PACK)
    opener = Opener(KEYS)
    body_end = entries[-1].offset + entries[-1].length
    plain = {
        e.chunk_id: opener.open(ChunkType(e.type), e.chunk_id, PACK[e.offset :][: e.length])
        for e in entries
    }
    for bit, changed in flips(PACK[:body_end]):
        sound = 0
        for entry in scan_frames(reader(changed), len(changed)):
            sealed = changed[entry.offset : entry.offset + entry.length]
            try:
                opened = opener.open(ChunkType(entry.type), entry.chunk_id, sealed)
            except HoldfastError:
                continue
            sound += opened == plain[entry.chunk_id]
        assert sound >= len(entries) - 1, bit


def test_a_frame_inside_a_chunk_is_not_taken_for_one() -> None:
    """An uploader can put what looks like a frame into its ciphertext."""
    inner = small_pack(2)
    frame = inner[HEADER_BYTES : HEADER_BYTES + 400]
    sealed = bytearray(Sealer(KEYS).seal(ChunkType.CONTENT, noise("p", 2000)).sealed)
    sealed[100:500] = frame
    writer = PackWriter(DOMAIN)
    writer.add(chunk_id(KEYS, ChunkType.CONTENT, b"p"), bytes(sealed))
    pack = b"".join(writer.finish())
    assert list(scan_frames(reader(pack), len(pack))) == writer.entries


def test_a_scan_finds_the_next_frame_across_its_windows() -> None:
    sealer, writer = Sealer(KEYS), PackWriter(DOMAIN)
    for length in (1, 1_500_000, 3):
        chunk = sealer.seal(ChunkType.CONTENT, noise(f"{length}", length))
        writer.add(chunk.chunk_id, chunk.sealed)
    pack = bytearray(b"".join(writer.finish()))
    pack[writer.entries[1].offset - 1] ^= 1
    found = list(scan_frames(reader(bytes(pack)), len(pack)))
    assert found == [writer.entries[0], writer.entries[2]]

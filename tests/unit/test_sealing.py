from __future__ import annotations

import hmac
import struct
import threading
from collections.abc import Callable

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial, chunk_id
from holdfast_agent.crypto.sealing import Opener, SealedChunk, Sealer
from holdfast_contract.errors import Damaged, InvalidInput, TooLarge
from holdfast_contract.format.chunk import (
    ChunkHeader,
    ChunkType,
    padme,
    parse_chunk_header,
    sealed_bytes_of,
    storage_hash,
)
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, PAGE_BYTES_MAX
from tests.support.samples import DOMAIN, KEYS, MATERIAL, OTHER_DOMAIN, OTHER_KEYS, flips, noise

SEALER = Sealer(KEYS)
OPENER = Opener(KEYS)
CONTENT = ChunkType.CONTENT


def open_chunk(chunk: SealedChunk, opener: Opener = OPENER) -> bytes:
    return opener.open(chunk.type, chunk.chunk_id, chunk.sealed)


def forge(
    inside: bytes,
    of_chunk: ChunkId,
    *,
    flags: int = 0,
    kind: int = CONTENT,
    domain: bytes = DOMAIN,
    epoch: int = 2,
) -> bytes:
    """Seal `inside` as a holder of the key could, whatever it says."""
    salt = noise("salt", 16)
    message = b"holdfast/1/chunk" + struct.pack("<I", epoch) + of_chunk + salt
    both = hmac.digest(KEYS.data[epoch], message, "sha512")
    header = ChunkHeader(kind, flags, epoch, salt, both[32:]).encode()
    bound = header + domain + of_chunk
    return header + AESGCM(both[:32]).encrypt(bytes(12), inside, bound)


def inside(plain_bytes: int, payload: bytes, *, payload_bytes: int | None = None) -> bytes:
    head = struct.pack("<II", plain_bytes, len(payload) if payload_bytes is None else payload_bytes)
    data = head + payload
    return data + bytes(padme(len(data)) - len(data))


def reason(kind: ChunkType, of_chunk: ChunkId, sealed: bytes) -> object:
    with pytest.raises(Damaged) as caught:
        OPENER.open(kind, of_chunk, sealed)
    assert caught.value.details["object"] == of_chunk.hex()
    return caught.value.details["reason"]


@pytest.mark.parametrize("kind", ChunkType)
@pytest.mark.parametrize("length", [1, 2, 100, 1023, 65_537, 1 << 20])
def test_what_is_sealed_opens_to_the_same_bytes(kind: ChunkType, length: int) -> None:
    for data in (noise(f"{length}", length), b"abc" * (length // 3) + b"x" * (length % 3)):
        chunk = SEALER.seal(kind, memoryview(data))
        assert open_chunk(chunk) == data
        assert chunk.chunk_id == chunk_id(KEYS, kind, data)
        assert chunk.storage_hash == storage_hash(chunk.sealed)
        assert (chunk.epoch, chunk.type, chunk.plain_bytes) == (2, kind, length)


def test_the_longest_chunk_is_sealed_and_a_longer_one_is_not() -> None:
    longest = SEALER.seal(CONTENT, noise("longest", CHUNK_PLAIN_BYTES_MAX))
    assert len(longest.sealed) == sealed_bytes_of(CHUNK_PLAIN_BYTES_MAX)
    assert open_chunk(longest) == noise("longest", CHUNK_PLAIN_BYTES_MAX)
    for kind, limit in ((CONTENT, CHUNK_PLAIN_BYTES_MAX), (ChunkType.TREE, PAGE_BYTES_MAX)):
        with pytest.raises(TooLarge):
            SEALER.seal(kind, bytes(limit + 1))
    with pytest.raises(InvalidInput):
        SEALER.seal(CONTENT, b"")


def test_what_zstd_makes_no_smaller_is_stored_raw() -> None:
    random = SEALER.seal(CONTENT, noise("random", 5000))
    text = SEALER.seal(CONTENT, b"text " * 1000)
    assert parse_chunk_header(random.sealed).flags == 0
    assert parse_chunk_header(text.sealed).flags == 1
    assert len(random.sealed) == sealed_bytes_of(5000)
    assert len(text.sealed) < 300


def test_the_level_is_a_choice_of_the_call_and_changes_no_id() -> None:
    data = b"".join(b"%d, " % (n * n) for n in range(5000))
    low, high = SEALER.seal(CONTENT, data), SEALER.seal(CONTENT, data, level=19)
    assert len(high.sealed) < len(low.sealed)
    assert high.chunk_id == low.chunk_id
    assert open_chunk(high) == open_chunk(low) == data


def test_every_sealing_draws_its_own_salt_and_key() -> None:
    sealed = [bytes(SEALER.seal(CONTENT, b"same bytes").sealed) for _ in range(50)]
    assert len({s[12:28] for s in sealed}) == len({s[28:60] for s in sealed}) == 50
    assert len({s[60:] for s in sealed}) == 50


def test_a_sealed_chunk_is_what_the_format_says() -> None:
    plain = noise("plain", 30)
    chunk = SEALER.seal(CONTENT, plain)
    sealed = bytes(chunk.sealed)
    assert sealed[:12] == b"HFCK\x01\x01\x01\x00\x02\x00\x00\x00"
    message = b"holdfast/1/chunk\x02\0\0\0" + chunk.chunk_id + sealed[12:28]
    both = hmac.digest(KEYS.data[2], message, "sha512")
    assert sealed[28:60] == both[32:]
    bound = sealed[:60] + DOMAIN + chunk.chunk_id
    found = AESGCM(both[:32]).decrypt(bytes(12), sealed[60:], bound)
    assert found == struct.pack("<II", 30, 30) + plain + bytes(2)


def test_every_flipped_bit_of_a_sealed_chunk_is_damage() -> None:
    for plain in (b"some plaintext", b"a" * 200):
        chunk = SEALER.seal(CONTENT, plain)
        for bit, changed in flips(bytes(chunk.sealed)):
            assert reason(CONTENT, chunk.chunk_id, changed), bit


def test_a_sealed_chunk_cut_off_or_prolonged_anywhere_is_damage() -> None:
    chunk = SEALER.seal(CONTENT, b"some plaintext")
    sealed = bytes(chunk.sealed)
    for length in range(len(sealed)):
        reason(CONTENT, chunk.chunk_id, sealed[:length])
    for more in range(1, 40):
        reason(CONTENT, chunk.chunk_id, sealed + bytes(more))


def test_a_chunk_does_not_stand_for_another_type() -> None:
    for kind in ChunkType:
        chunk = SEALER.seal(kind, b"plaintext")
        for other in set(ChunkType) - {kind}:
            assert reason(other, chunk.chunk_id, bytes(chunk.sealed)) == "type"
            retyped = bytearray(chunk.sealed)
            retyped[6] = other
            assert reason(other, chunk.chunk_id, bytes(retyped)) == "tag"


def test_a_chunk_does_not_stand_for_another_id() -> None:
    one, two = SEALER.seal(CONTENT, b"one"), SEALER.seal(CONTENT, b"two")
    assert reason(CONTENT, two.chunk_id, bytes(one.sealed)) == "commitment"


def test_a_chunk_does_not_open_in_another_domain() -> None:
    chunk = SEALER.seal(CONTENT, b"plaintext")
    with pytest.raises(Damaged):
        open_chunk(chunk, Opener(OTHER_KEYS))
    same_secrets = KeyMaterial(OTHER_DOMAIN, MATERIAL.base_secret, MATERIAL.epochs)
    with pytest.raises(Damaged):
        open_chunk(chunk, Opener(DomainKeys(same_secrets)))


def test_the_domain_is_bound_even_where_all_keys_are_equal() -> None:
    sealed = forge(inside(5, b"plain"), id_of(b"plain"), domain=OTHER_DOMAIN)
    assert reason(CONTENT, id_of(b"plain"), sealed) == "tag"


def test_every_held_epoch_opens_and_a_foreign_one_is_damage() -> None:
    old = Sealer(DomainKeys(KeyMaterial(DOMAIN, MATERIAL.base_secret, MATERIAL.epochs[:1])))
    chunk = old.seal(CONTENT, b"plaintext")
    assert chunk.epoch == old.epoch == 1
    assert open_chunk(chunk) == b"plaintext"
    newest_only = Opener(DomainKeys(KeyMaterial(DOMAIN, MATERIAL.base_secret, MATERIAL.epochs[1:])))
    with pytest.raises(Damaged) as caught:
        open_chunk(chunk, newest_only)
    assert caught.value.details["reason"] == "epoch"
    swapped = bytearray(chunk.sealed)
    swapped[8] = 2
    assert reason(CONTENT, chunk.chunk_id, bytes(swapped)) == "commitment"


def id_of(plain: bytes, kind: ChunkType = CONTENT) -> ChunkId:
    return chunk_id(KEYS, kind, plain)


PLAIN = b"plain" * 10
FRAME = zstandard.ZstdCompressor(level=1).compress(PLAIN)


def test_the_forger_of_these_tests_can_make_sound_chunks() -> None:
    raw = forge(inside(50, PLAIN), id_of(PLAIN))
    packed = forge(inside(50, FRAME), id_of(PLAIN), flags=1)
    assert OPENER.open(CONTENT, id_of(PLAIN), raw) == PLAIN
    assert OPENER.open(CONTENT, id_of(PLAIN), packed) == PLAIN


FORGED: dict[str, tuple[bytes, int, str]] = {
    "payload longer than the inside": (inside(50, PLAIN, payload_bytes=53), 0, "padding"),
    "payload of 4 GiB": (inside(50, PLAIN, payload_bytes=(1 << 32) - 1), 0, "padding"),
    "padding not zero": (inside(50, PLAIN)[:-1] + b"\x01", 0, "padding"),
    "padding longer than padme": (inside(50, PLAIN)[:58] + bytes(6), 0, "padding"),
    "plaintext of no bytes": (inside(0, PLAIN), 0, "length"),
    "plaintext of 4 MiB and 1": (inside((4 << 20) + 1, PLAIN), 0, "length"),
    "raw payload shorter than said": (inside(51, PLAIN), 0, "length"),
    "raw payload longer than said": (inside(49, PLAIN), 0, "length"),
    "no zstd frame": (inside(50, PLAIN), 1, "zstd"),
    "frame declares more": (inside(49, FRAME), 1, "zstd"),
    "frame declares less": (inside(51, FRAME), 1, "zstd"),
    "frame cut off": (inside(50, FRAME[:-1]), 1, "zstd"),
    "bytes behind the frame": (inside(50, FRAME + b"\0"), 1, "zstd"),
    "two frames": (inside(50, FRAME + FRAME), 1, "zstd"),
    "a skippable frame first": (inside(50, b"\x50\x2a\x4d\x18\1\0\0\0x" + FRAME), 1, "zstd"),
    "another plaintext": (inside(50, b"other" * 10), 0, "id"),
    "an empty payload": (inside(50, b""), 1, "layout"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_a_holder_of_the_key_sealed_wrongly_is_damage(name: str) -> None:
    data, flags, expected = FORGED[name]
    assert reason(CONTENT, id_of(PLAIN), forge(data, id_of(PLAIN), flags=flags)) == expected


def test_a_frame_without_a_declared_size_is_damage() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    frame = compressor.compress(PLAIN)
    assert zstandard.frame_content_size(frame) == -1
    assert reason(CONTENT, id_of(PLAIN), forge(inside(50, frame), id_of(PLAIN), flags=1)) == "zstd"


def bomb(declared: int) -> bytes:
    """A frame that declares `declared` bytes (4-byte field) and consists of run-length blocks."""
    header = b"\x28\xb5\x2f\xfd\xa0" + declared.to_bytes(4, "little")
    block = (128 << 10) << 3 | 1 << 1
    blocks = [(block | last).to_bytes(3, "little") + b"\0" for last in [0] * 7 + [1]]
    return header + b"".join(blocks)


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    frame = bomb(1 << 30)
    assert zstandard.frame_content_size(frame) == 1 << 30
    assert zstandard.frame_content_size(bomb(1 << 20)) == 1 << 20
    opened = zstandard.ZstdDecompressor().decompress(bomb(1 << 20))
    assert opened == bytes(1 << 20)
    said = inside(1 << 20, frame)
    assert reason(CONTENT, id_of(PLAIN), forge(said, id_of(PLAIN), flags=1)) == "zstd"
    said = inside(1 << 30, frame)
    assert reason(CONTENT, id_of(PLAIN), forge(said, id_of(PLAIN), flags=1)) == "length"


def test_a_frame_that_declares_little_and_holds_much_is_damage() -> None:
    for declared in (1, 50, 4096):
        frame = bomb(declared)
        said = inside(declared, frame)
        assert reason(CONTENT, id_of(PLAIN), forge(said, id_of(PLAIN), flags=1)) == "zstd"


def test_a_tree_chunk_is_at_most_a_mebibyte() -> None:
    plain = bytes((1 << 20) + 1)
    frame = zstandard.ZstdCompressor().compress(plain)
    of_chunk = id_of(plain, ChunkType.TREE)
    sealed = forge(inside(len(plain), frame), of_chunk, flags=1, kind=2)
    assert reason(ChunkType.TREE, of_chunk, sealed) == "length"


def test_threads_share_a_sealer_and_an_opener() -> None:
    failures: list[str] = []

    def work(name: str) -> None:
        for number in range(60):
            data = noise(f"{name} {number}", 1 + number * 701) + b"z" * number
            if open_chunk(SEALER.seal(CONTENT, data)) != data:
                failures.append(name)

    in_threads([lambda name=name: work(name) for name in "abcd"])  # type: ignore[misc]
    assert failures == []


def in_threads(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_result_is_not_overwritten_by_the_next_chunk() -> None:
    """Scratch buffers are reused: what was returned before must not be one of them."""
    one, two = noise("one", 5000), noise("two", 5000)
    sealed = [SEALER.seal(CONTENT, data) for data in (one, two)]
    opened = [open_chunk(chunk) for chunk in sealed]
    assert opened == [one, two]
    assert storage_hash(sealed[0].sealed) == sealed[0].storage_hash

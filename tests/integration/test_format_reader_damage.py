"""The stand-alone reader tells every damage and every forgery, and restores what is left."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3

from tests.support.reader_world import CLIENT, READER, World, contents, data_folder, of_page
from tests.support.store_builder import Node, Snapshot, StoreBuilder, folder
from tests.support.store_bytes import CONTENT, TREE, Keyring, padme, page_of, seal

FOLDERS = ("domains", "identities", "manifests", "refs", "packs", "journal")
NODES = data_folder(
    Node(b"a", content=(b"first",)),
    Node(b"b", content=(b"second",)),
    Node(b"c", content=(b"third" * 1000,), xattrs=((b"user.a", b"1"),), xattrs_in_blocks=True),
    folder(b"d", Node(b"e", content=(b"fifth",)), Node(b"f", content=(b"z" * 5000,), spill=2)),
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty domain with one client, small pages and small tree chunks."""
    made = World(tmp_path)
    made.store.page_entries, made.store.tree_chunk_bytes = 2, 100
    return made


def two_snapshots(world: World) -> Snapshot:
    """Write two snapshots, the second with refs that are a difference; return the second."""
    first = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"first",))))
    return world.store.snapshot(CLIENT, NODES, base=first)


# --- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_flipped_byte_is_told_and_no_wrong_byte_restored(world: World, kind: str) -> None:
    snapshot = two_snapshots(world)
    code, target = world.restore(snapshot)
    right = contents(target)
    assert code == 0
    assert len(right) == 5
    path = world.objects(kind)[-1]
    good = path.read_bytes()
    step = max(1, len(good) // 60)
    for at in [*range(min(60, len(good))), *range(60, len(good), step), len(good) - 1]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        code, target = world.restore(snapshot)
        assert code == 13, f"byte {at} of {len(good)}"
        found = contents(target) if target.exists() else {}
        assert found.items() <= right.items(), f"byte {at} of {len(good)}"


@pytest.mark.parametrize("kind", FOLDERS)
def test_an_object_of_another_length_is_told(world: World, kind: str) -> None:
    snapshot = two_snapshots(world)
    path = world.objects(kind)[-1]
    good = path.read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert world.restore(snapshot)[0] == 13, length
    path.write_bytes(good + b"\0")
    assert world.restore(snapshot)[0] == 13


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_missing_object_is_told(world: World, kind: str) -> None:
    snapshot = two_snapshots(world)
    world.store.snapshot(CLIENT, data_folder())
    gone = {"journal": -2, "manifests": -2, "refs": -2, "packs": -2}.get(kind, -1)
    world.objects(kind)[gone].unlink()
    assert world.restore(snapshot)[0] == 13


def test_damaged_content_is_named_with_its_file_and_the_rest_restored(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.store.tree_chunk_bytes = 10_000
    snapshot = world.store.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    data = bytearray(path.read_bytes())
    data[24 + 48 + 100] ^= 1  # in the first chunk: the first piece of /data/c
    path.write_bytes(bytes(data))
    code, target = world.restore(snapshot)
    told = capsys.readouterr().err
    assert code == 13
    assert sorted(contents(target)) == ["/data/a", "/data/b", "/data/d/e", "/data/d/f"]
    assert "damaged: '/data/c': no good copy of chunk" in told
    assert f"damaged: packs/{world.store.keys.domain.hex()}/{path.name} chunk" in told


def test_a_pack_with_a_torn_footer_is_read_by_its_frames(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    path.write_bytes(path.read_bytes()[:-100])
    code, target = world.restore(snapshot)
    assert code == 13
    assert len(contents(target)) == 5


def test_a_pack_with_two_torn_ends_loses_one_chunk_only(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    data = bytearray(path.read_bytes())
    data[30] ^= 1  # the length in the first frame
    path.write_bytes(bytes(data[:-100]))
    code, target = world.restore(snapshot)
    assert code == 13
    assert sorted(contents(target)) == ["/data/a", "/data/b", "/data/d/e", "/data/d/f"]


def test_without_its_journal_a_store_is_restored_all_the_same(world: World) -> None:
    snapshot = two_snapshots(world)
    for path in world.objects("journal"):
        path.write_bytes(b"x")
    code, target = world.restore(snapshot)
    assert code == 13
    assert len(contents(target)) == 5


def test_an_exchanged_journal_object_is_told(world: World, tmp_path: Path) -> None:
    snapshot = two_snapshots(world)
    other = World(tmp_path / "other")
    two_snapshots(other)
    other.store.journal(("store", {"store_id": bytes(16)}))
    world.objects("journal")[2].write_bytes(other.objects("journal")[-1].read_bytes())
    assert world.restore(snapshot)[0] == 13


@pytest.mark.parametrize(
    ("offset", "change"),
    [
        (0, b"X"),
        (4, b"\2"),
        (7, b"\1"),
        (8, b"other store id.."),
        (24, b"\7"),
        (32, b"\7"),
        (40, b"\2"),
        (44, bytes(32)),
        (76, b"\1"),
    ],
)
def test_a_journal_object_that_fits_its_own_hash_but_not_the_chain_is_told(
    world: World, offset: int, change: bytes
) -> None:
    snapshot = two_snapshots(world)
    path = world.objects("journal")[2]
    forged = bytearray(path.read_bytes()[:-32])
    forged[offset : offset + len(change)] = change
    path.write_bytes(bytes(forged) + blake3(bytes(forged)).digest())
    assert world.restore(snapshot)[0] == 13


@pytest.mark.parametrize(
    "record",
    [
        ("unknown", {"domain": bytes(16)}),
        ("purge", {"domain": bytes(16)}),
        ("purge", {"domain": bytes(16), "snapshot": bytes(32), "more": 1}),
    ],
)
def test_a_journal_record_that_the_format_lacks_is_told(
    world: World, record: tuple[str, dict[str, Any]]
) -> None:
    snapshot = two_snapshots(world)
    world.store.journal(record)
    assert world.restore(snapshot)[0] == 13


def test_a_commit_record_cannot_lead_out_of_the_store(world: World) -> None:
    snapshot = two_snapshots(world)
    world.store.commit(CLIENT, Snapshot(snapshot.id, snapshot.manifest, "../../x", set(), 2))
    world.objects("journal")[-2].unlink()
    assert world.restore(snapshot)[0] == 13


def test_a_frame_that_declares_a_gibibyte_is_not_inflated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = zstandard.ZstdCompressor().compressobj(size=1 << 30)
    huge = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
    snapshot = sealed_as(world, inside=inside(250, huge))
    real = zstandard.ZstdDecompressor.decompress

    class Watching:
        def decompress(self, payload: bytes, **options: bool) -> bytes:
            assert payload != huge
            return real(zstandard.ZstdDecompressor(), payload, **options)

    monkeypatch.setattr(READER.zstandard, "ZstdDecompressor", Watching)
    assert world.restore(snapshot)[0] == 13


# --- Forged manifests and identities ------------------------------------------------------------


def test_a_manifest_signed_by_a_sibling_is_refused(world: World) -> None:
    world.store.add_client("shop/web-1")
    forged = world.store.snapshot(CLIENT, NODES, signer="shop/web-1")
    assert world.restore(forged)[0] == 13


def test_a_manifest_signed_by_an_identity_that_the_journal_lacks_is_refused(world: World) -> None:
    world.store.add_client("shop/web-2", announced=False)
    forged = world.store.snapshot("shop/web-2", NODES)
    assert world.restore(forged)[0] == 13


def test_a_manifest_with_a_mac_of_another_key_is_refused(world: World) -> None:
    real, other = world.store.keys, Keyring.of(b"other")
    world.store.keys = Keyring(real.domain, other.base, real.epochs)
    forged = world.store.snapshot(CLIENT, NODES)
    world.store.keys = real
    assert world.restore(forged)[0] == 13


def test_a_manifest_with_a_key_that_the_format_lacks_is_refused(world: World) -> None:
    assert world.restore(world.store.snapshot(CLIENT, NODES, surprise=1))[0] == 13


def test_a_manifest_whose_body_names_another_domain_is_refused(world: World) -> None:
    assert world.restore(world.store.snapshot(CLIENT, NODES, domain=bytes(16)))[0] == 13


def test_a_commit_record_that_names_another_manifest_is_told(world: World) -> None:
    first = two_snapshots(world)
    second = world.store.snapshot(CLIENT, data_folder(), committed=False)
    exchanged = Snapshot(second.id, first.manifest, second.refs, second.ids, 3)
    world.store.commit(CLIENT, exchanged)
    assert world.restore(second)[0] == 13


def test_refs_with_an_id_too_few_or_too_many_are_told(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    few = set(sorted(snapshot.ids)[1:])
    assert world.restore(world.store.snapshot(CLIENT, NODES, forged_ids=few))[0] == 13
    many = snapshot.ids | {bytes(range(32))}
    assert world.restore(world.store.snapshot(CLIENT, NODES, forged_ids=many))[0] == 13
    assert world.restore(snapshot)[0] == 0


def test_a_difference_that_adds_what_its_base_has_is_refused(world: World) -> None:
    first = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"1" * 9000,))))
    both = data_folder(Node(b"a", content=(b"1" * 9000,)), Node(b"b", content=(b"2" * 9000,)))
    second = world.store.snapshot(CLIENT, both, base=first)
    path = next(path for path in world.objects("refs") if path.name == second.refs)
    good = path.read_bytes()
    added = int.from_bytes(good[128:136], "little")
    ids = sorted([*(good[i : i + 32] for i in range(144, 144 + 32 * added, 32)), min(first.ids)])
    rest = good[144 + 32 * added : -32]
    forged = good[:128] + (added + 1).to_bytes(8, "little") + good[136:144] + b"".join(ids) + rest
    assert world.restore(second)[0] == 0
    path.write_bytes(forged + blake3(forged).digest())
    assert world.restore(second)[0] == 13


def test_refs_through_more_than_16_differences_are_refused(world: World) -> None:
    chain = [world.store.snapshot(CLIENT, data_folder(Node(b"0", content=(b"0",))))]
    for number in range(1, 18):
        node = Node(b"%d" % number, content=(b"%d" % number,))
        chain.append(world.store.snapshot(CLIENT, data_folder(node), base=chain[-1]))
    assert world.restore(chain[16])[0] == 0
    assert world.restore(chain[17])[0] == 13


@pytest.mark.parametrize("counted", ["files", "dirs", "bytes"])
def test_a_tree_larger_than_its_manifest_says_ends_the_walk(world: World, counted: str) -> None:
    small: dict[str, Any] = {"files": 4, "dirs": 0, "bytes": 10_015}
    forged = world.store.snapshot(CLIENT, NODES, **{counted: small[counted]})
    assert world.restore(forged)[0] == 13


# --- Forged chunks ------------------------------------------------------------------------------


def sealed_as(world: World, **forged: Any) -> Snapshot:
    """Return a snapshot of one file whose only content chunk is sealed in a forged way."""
    store = world.store
    text = b"text " * 50
    chunk_id = store.chunk(CONTENT, text, **forged)
    digest = blake3(text, key=store.keys.use("content-id")).digest()
    stats = [[b"f", 1, 0o644, len(text), 0, 0, 1, 0]]
    return snapshot_of(world, stats, [chunk_id], [[0, digest, [0, 0, len(text)], None]])


def snapshot_of(world: World, stats: list[Any], ids: list[bytes], content: list[Any]) -> Snapshot:
    """Return a snapshot whose root is one page of these parts."""
    return of_page(world, page_of(stats, ids, [[0, 0, "root", "root"]], content), ids)


def inside(plain: int, payload: bytes, padding: bytes | None = None) -> bytes:
    """Return what a sealed chunk holds, padded rightly unless told otherwise."""
    start = struct.pack("<II", plain, len(payload)) + payload
    return start.ljust(padme(len(start)), b"\0") if padding is None else start + padding


def test_a_chunk_that_is_sealed_rightly_opens(world: World) -> None:
    assert world.restore(sealed_as(world))[0] == 0
    assert world.restore(sealed_as(world, packed=False))[0] == 0


PACKED = zstandard.ZstdCompressor().compress(b"text " * 50)
LONGER = zstandard.ZstdCompressor().compress(b"text " * 60)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(b"text " * 50)


@pytest.mark.parametrize(
    "forged",
    [
        {"chunk_id": bytes(range(32))},
        {"com": bytes(32)},
        {"head": b"HFCX\x01\x01\x01\x01"},
        {"head": b"HFCK\x02\x01\x01\x01"},
        {"head": b"HFCK\x01\x02\x01\x01"},
        {"head": b"HFCK\x01\x01\x02\x01"},
        {"head": b"HFCK\x01\x01\x01\x03"},
        {"inside": inside(250, PACKED, b"\0" * 63)},
        {"inside": inside(250, PACKED)[:-1] + b"\1"},
        {"inside": inside(251, PACKED)},
        {"inside": inside(250, LONGER)},
        {"inside": inside(300, LONGER)},
        {"inside": inside(250, UNSIZED)},
        {"inside": inside(250, PACKED + PACKED)},
        {"inside": inside(250, PACKED[:-3])},
        {"inside": inside(0, b"")},
        {"inside": inside(1 << 31, PACKED)},
        {"inside": inside(250, b"text " * 50), "packed": False, "chunk_id": bytes(32)},
        {"inside": inside(249, b"text " * 50), "packed": False},
    ],
)
def test_a_chunk_that_is_sealed_wrongly_is_refused(world: World, forged: dict[str, Any]) -> None:
    code, target = world.restore(sealed_as(world, **forged))
    assert code == 13
    assert contents(target) == {}


def test_a_chunk_cannot_stand_for_another_or_be_of_another_type(world: World) -> None:
    store = world.store
    good = store.chunk(CONTENT, b"good")
    other, sealed = seal(store.keys, CONTENT, b"evil", bytes(16))
    store._chunks[-1] = (good, sealed)
    digest = blake3(b"good", key=store.keys.use("content-id")).digest()
    stats = [[b"f", 1, 0o644, 4, 0, 0, 1, 0]]
    assert world.restore(snapshot_of(world, stats, [good], [[0, digest, [0, 0, 4], None]]))[0] == 13
    as_tree = store.chunk(TREE, b"good")
    forged = snapshot_of(world, stats, [as_tree], [[0, digest, [0, 0, 4], None]])
    assert world.restore(forged)[0] == 13
    assert other != good


def test_a_pack_of_another_domain_is_refused(world: World, tmp_path: Path) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    other = StoreBuilder(tmp_path / "other", keys=Keyring.of(b"other"))
    other.create()
    other.add_client(CLIENT)
    other.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    path.write_bytes(next((tmp_path / "other/packs").rglob("01*")).read_bytes())
    code, target = world.restore(snapshot)
    assert code == 13
    assert contents(target) == {}


@pytest.mark.parametrize("head", [b"HFPX\1\0\0\0", b"HFPK\2\0\0\0", b"HFPK\1\0\0\1", None])
def test_a_pack_with_a_foreign_header_is_told_and_read_by_its_frames(
    world: World, head: bytes | None
) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    good = path.read_bytes()
    size = int.from_bytes(good[-8:-4], "little")
    header = head + good[8:24] if head else good[:8] + bytes(16)
    footer = good[-40 - size : -40]
    path.write_bytes(header + good[24:-40] + blake3(header + footer).digest() + good[-8:])
    code, target = world.restore(snapshot)
    assert code == 13
    assert len(contents(target)) == 5


def test_bytes_between_the_frames_of_a_pack_are_told(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, NODES)
    path = world.objects("packs")[0]
    good = path.read_bytes()
    footer_at = len(good) - 40 - int.from_bytes(good[-8:-4], "little")
    path.write_bytes(good[:footer_at] + b"more" + good[footer_at:])
    assert world.restore(snapshot)[0] == 13

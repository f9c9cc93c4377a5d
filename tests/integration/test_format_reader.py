"""The stand-alone reader restores what the format page describes, and refuses everything else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.reader_world import CLIENT, World, contents, data_folder, listing, planned
from tests.support.store_builder import (
    Node,
    folder,
)
from tests.support.store_bytes import (
    BLOCK,
    CHARACTER,
    FIFO,
    SOCKET,
    SYMLINK,
    Keyring,
)

BIG = bytes(range(256)) * 40
GROUP = bytes(range(16))


def tree() -> tuple[Node, ...]:
    """Return a tree with one of everything that needs no particular file system."""
    deep = folder(b"last", Node(b"f", content=(b"deep",)))
    for number in range(20):
        deep = folder(b"%03d" % number + b"d" * 252, deep)
    many = [Node(b"n%02d" % number, content=(b"text %d" % number,)) for number in range(10)]
    data = folder(
        b"data",
        Node(b"a", content=(b"hello ", b"world"), mode=0o4755, owner=(1001, 1002, "u", "g")),
        Node(b"big", content=(BIG,), mtime_ns=-1_500_000_001),
        Node(b"blocks", content=(BIG, b"x" * 5000), spill=1),
        Node(b"blocks2", content=(b"y" * 9000,), spill=2),
        Node(b"empty"),
        Node(b"fifo", FIFO, 0o620),
        Node(b"first", content=(b"linked",), link=GROUP),
        Node(b"holes", content=(100_000, b"middle", 50_000)),
        Node(b"link", SYMLINK, 0o777, target=b"/etc/nowhere\xff", mtime_ns=-7),
        Node(b"small-hole", content=(500, b"x", 500)),
        Node(b"socket", SOCKET, 0o711),
        Node(b"xattrs", content=(b"x",), xattrs=((b"user.a", b"1"), (b"user.b", b""))),
        Node(
            b"xattrs-in-blocks",
            content=(b"z",),
            xattrs=((b"user.c", b"3" * 100), (b"user.d", b"4")),
            xattrs_in_blocks=True,
        ),
        Node(b"\xff\xfe", content=(b"no utf-8",)),
        folder(b"elsewhere", Node(b"second", content=(b"linked",), link=GROUP), mode=0o1711),
        folder(b"old", mtime_ns=-123_456_789_012),
        folder(b"many", *many),
        deep,
    )
    return (data,)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty domain with one client."""
    return World(tmp_path)


# --- What is stored comes back ------------------------------------------------------------------


def test_every_attribute_of_every_type_comes_back(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, tree())
    code, target = world.restore(snapshot)
    assert code == 0
    assert listing(target) == planned(tree())


def test_contents_come_back_byte_for_byte(world: World) -> None:
    code, target = world.restore(world.store.snapshot(CLIENT, tree()))
    found = contents(target / "data" / "many") | contents(target / "data" / "elsewhere")
    assert code == 0
    assert found == {f"/n{n:02d}": b"text %d" % n for n in range(10)} | {"/second": b"linked"}
    for node in tree()[0].children:
        if node.kind == 1:
            assert (target / "data" / os.fsdecode(node.name)).read_bytes() == node.data


def test_a_path_longer_than_4096_bytes_comes_back(world: World) -> None:
    _, target = world.restore(world.store.snapshot(CLIENT, tree()))
    deep = {path: data for path, data in contents(target).items() if data == b"deep"}
    assert len(deep) == 1
    assert len(next(iter(deep))) > 4096


def test_hard_links_share_one_inode_across_directories(world: World) -> None:
    _, target = world.restore(world.store.snapshot(CLIENT, tree()))
    assert (target / "data/first").samefile(target / "data/elsewhere/second")


def test_two_groups_with_equal_content_stay_apart(world: World) -> None:
    nodes = data_folder(
        Node(b"a", content=(b"same",), link=GROUP), Node(b"b", content=(b"same",), link=bytes(16))
    )
    _, target = world.restore(world.store.snapshot(CLIENT, nodes))
    assert not (target / "data/a").samefile(target / "data/b")


def test_a_hard_link_deep_below_another_is_made(world: World) -> None:
    deep = folder(b"z", Node(b"f", content=(b"linked",), link=GROUP))
    for _ in range(20):
        deep = folder(b"y" * 255, deep)
    other = folder(b"zz", Node(b"g", content=(b"linked",), link=GROUP))
    code, target = world.restore(world.store.snapshot(CLIENT, data_folder(deep, other)))
    assert code == 0
    assert (target / "data/zz/g").stat().st_nlink == 2


def test_holes_are_not_written(world: World) -> None:
    nodes = data_folder(Node(b"holes", content=(50 << 20, b"end")))
    _, target = world.restore(world.store.snapshot(CLIENT, nodes))
    info = (target / "data/holes").stat()
    assert info.st_size == (50 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20


def test_extended_attributes_come_back_from_pages_and_blocks(world: World) -> None:
    _, target = world.restore(world.store.snapshot(CLIENT, tree()))
    inline, blocks = target / "data/xattrs", target / "data/xattrs-in-blocks"
    assert {n: os.getxattr(inline, n) for n in os.listxattr(inline)} == {
        "user.a": b"1",
        "user.b": b"",
    }
    assert {n: os.getxattr(blocks, n) for n in os.listxattr(blocks)} == {
        "user.c": b"3" * 100,
        "user.d": b"4",
    }


def test_devices_come_back_for_root_and_are_told_otherwise(world: World) -> None:
    nodes = data_folder(
        Node(b"null", CHARACTER, 0o666, device=os.makedev(1, 3)),
        Node(b"loop", BLOCK, 0o660, device=os.makedev(7, 300)),
    )
    code, target = world.restore(world.store.snapshot(CLIENT, nodes))
    if os.geteuid() == 0:
        assert code == 0
        assert (target / "data/null").stat().st_rdev == os.makedev(1, 3)
        assert (target / "data/loop").stat().st_rdev == os.makedev(7, 300)
    else:
        assert code == 3


def test_an_implied_directory_has_mode_0755_and_skipped_entries_are_left_out(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = folder(
        b"a",
        Node(b"kept", content=(b"k",)),
        Node(b"secret", flags=4),
        folder(b"shut", flags=4),
    )
    nodes = (folder(b"srv", inner, flags=2, mode=0o700),)
    rows = ((b"/srv/a/secret", "denied", "not readable"),)
    snapshot = world.store.snapshot(CLIENT, nodes, paths=(b"/srv/a",), skipped=rows)
    code, target = world.restore(snapshot)
    assert code == 0
    assert stat.S_IMODE((target / "srv").stat().st_mode) == 0o755
    assert os.listdir(target / "srv/a") == ["kept"]
    assert "'/srv/a/secret': denied: not readable" in capsys.readouterr().err


def test_one_path_alone_can_be_restored(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, tree())
    code, target = world.restore(snapshot, "--path", "/data/many/n03")
    assert code == 0
    assert contents(target) == {"/data/many/n03": b"text 3"}
    assert list(listing(target)) == [b"/data", b"/data/many", b"/data/many/n03"]


def test_a_path_is_a_path_and_not_a_beginning_of_names(world: World) -> None:
    nodes = data_folder(Node(b"a", content=(b"1",)), Node(b"ab", content=(b"2",)))
    code, target = world.restore(world.store.snapshot(CLIENT, nodes), "--path", "/data/a/")
    assert code == 0
    assert contents(target) == {"/data/a": b"1"}


def test_a_path_that_is_not_there_is_not_found(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, tree())
    assert world.restore(snapshot, "--path", "/data/nothing")[0] == 10


def test_chunks_of_an_older_epoch_open_with_a_rotated_key(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.snapshot(CLIENT, data_folder(Node(b"old", content=(b"1",))))
    newer = Keyring.of(b"one", 1, 2)
    world.store.keys, world.store.epoch = newer, 2
    second = world.store.snapshot(CLIENT, data_folder(Node(b"new", content=(b"2",))))
    assert world.restore(second)[0] == 13  # the key file lacks epoch 2
    world.key.write_text(newer.line())
    assert world.restore(second)[0] == 0


def test_a_copy_that_does_not_open_is_replaced_by_the_next(world: World) -> None:
    nodes = data_folder(Node(b"a", content=(b"some text",)))
    world.store.snapshot(CLIENT, nodes)
    snapshot = world.store.snapshot(CLIENT, nodes)
    pack = world.objects("packs")[0]
    damaged = bytearray(pack.read_bytes())
    damaged[24 + 48 + 70] ^= 1
    pack.write_bytes(bytes(damaged))
    code, target = world.restore(snapshot)
    assert code == 13
    assert contents(target) == {"/data/a": b"some text"}


def test_refs_are_read_through_differences(world: World) -> None:
    first = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"1" * 9000,))))
    second = world.store.snapshot(
        CLIENT, data_folder(Node(b"a", content=(b"2" * 9000,))), base=first
    )
    assert world.restore(second)[0] == 0
    path = next(path for path in world.objects("refs") if path.name == first.refs)
    path.unlink()
    assert world.restore(second)[0] == 13


# --- Snapshots ----------------------------------------------------------------------------------


def test_list_names_snapshots_with_their_client(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first = world.store.snapshot(CLIENT, data_folder())
    second = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"1",))))
    assert world.run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:1] + line.split()[2:4] for line in lines] == [
        [first.id.hex(), CLIENT, "1"],
        [second.id.hex(), CLIENT, "2"],
    ]


def test_a_manifest_without_a_commit_record_is_no_snapshot(world: World) -> None:
    world.store.snapshot(CLIENT, data_folder())
    loose = world.store.snapshot(CLIENT, data_folder(Node(b"a")), committed=False)
    assert world.restore(loose)[0] == 10


def test_a_purged_snapshot_is_gone_and_a_forgotten_one_is_not(world: World) -> None:
    first = world.store.snapshot(CLIENT, data_folder())
    second = world.store.snapshot(CLIENT, data_folder(Node(b"a")))
    domain = {"domain": world.store.keys.domain}
    world.store.journal(
        ("forget", {**domain, "snapshot": first.id}), ("purge", {**domain, "snapshot": second.id})
    )
    assert world.restore(first)[0] == 0
    assert world.restore(second)[0] == 10


def test_an_ambiguous_or_unknown_id_is_not_found(world: World) -> None:
    world.store.snapshot(CLIENT, data_folder())
    world.store.snapshot(CLIENT, data_folder(Node(b"a")))
    assert world.run("restore", "", str(world.path / "out")) == 10
    assert world.run("restore", "ffffffffffff", str(world.path / "out")) == 10


def test_a_target_that_is_not_empty_is_left_alone(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, data_folder(Node(b"a", content=(b"new",))))
    target = world.path / "out1"
    (target / "data").mkdir(parents=True)
    assert world.restore(snapshot)[0] == 11
    assert contents(target) == {}


def test_wrong_usage_exits_2(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("restore", "abcdef") == 2
    assert world.run("list", "abcdef", "out") == 2
    assert world.run("nothing") == 2
    assert world.run("--help") == 0
    assert "example: format_reader.py" in capsys.readouterr().out


# --- Keys ---------------------------------------------------------------------------------------


def test_the_key_of_another_domain_is_wrong(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, data_folder())
    world.key.write_text(Keyring.of(b"other").line())
    assert world.restore(snapshot)[0] == 12


def test_another_secret_for_the_same_domain_is_wrong(world: World) -> None:
    snapshot = world.store.snapshot(CLIENT, data_folder())
    other = Keyring.of(b"other")
    other.domain = world.store.keys.domain
    world.key.write_text(other.line())
    assert world.restore(snapshot)[0] == 12


def test_any_changed_character_of_the_key_file_is_told(world: World) -> None:
    world.store.snapshot(CLIENT, data_folder())
    line = world.key.read_text()
    for at in range(len(line) - 1):
        world.key.write_text(line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :])
        assert world.run("list") == 12, at


def test_a_key_file_or_store_that_is_not_there_is_not_found(world: World) -> None:
    world.key.unlink()
    assert world.run("list") == 10
    world.key.write_text(world.store.keys.line())
    world.store.root = world.path / "elsewhere"
    assert world.run("list") == 10

"""Stored bytes that are not what was stored: exit 13, object and files named, the rest restored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World, under

CLIENT = "hurt/a-0"


class Kept:
    """One client's snapshot of two packs or more, and a copy of its sound objects."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.client = f"hurt/{name}"
        self.source, self.out = world.top / name / "source", world.top / name / "out"
        self.source.mkdir(parents=True)
        for number in range(7):
            (self.source / f"big{number}").write_bytes(os.urandom(5 << 20))
        (self.source / "small").write_bytes(b"small")
        self.store = world.data / "store"
        before = set(self.store.rglob("*"))
        world.start_agent(self.client, [self.source], HOLDFAST_RESTORE_ROOTS=str(self.out))
        self.snapshot = world.backup(self.client)["snapshot"]
        new = [path for path in set(self.store.rglob("*")) - before if path.is_file()]
        self.sound = {path: path.read_bytes() for path in new}
        self._count = 0

    def packs(self) -> list[Path]:
        """Return packs of content alone: directories are in the last, which is not full."""
        # Not by time: two packs are sent at once, and the small last one may overtake.
        packs = sorted(self._of("pack"), key=lambda path: len(self.sound[path]), reverse=True)
        assert len(packs) >= 3, packs
        return packs[:-1]

    def _of(self, kind: str) -> list[Path]:
        found = [
            path
            for path in self.sound
            if any(kind in part for part in path.relative_to(self.store).parts)
        ]
        assert found, (kind, list(self.sound))
        return found

    def only(self, kind: str) -> Path:
        """Return the one object of a kind."""
        (found,) = self._of(kind)
        return found

    def heal(self) -> None:
        """Put the sound bytes back."""
        for path, content in self.sound.items():
            if not path.exists() or path.read_bytes() != content:
                path.unlink(missing_ok=True)
                path.write_bytes(content)

    def restored(self, *options: object) -> tuple[int, str, Path]:
        """Restore into a new target; return exit status, all output, and where the tree is."""
        self._count += 1
        target = self.out / f"t{self._count}"
        done = self.world.run("restore", self.snapshot, "--target", target, *options, "--json")
        text = (done.stdout + done.stderr).decode()
        assert "Traceback" not in text
        return done.returncode, text, under(target, self.source)

    def check_partial(self, got: Path) -> set[str]:
        """Return the names that came back; each has its own content."""
        names = {path.name for path in got.iterdir()} if got.exists() else set()
        for name in names:
            assert (got / name).read_bytes() == (self.source / name).read_bytes(), name
        return names


def _write(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def hurt(world: World) -> Kept:
    """A client whose packs stay sound: what is harmed is healed."""
    return Kept(world, "healed")


@pytest.fixture
def kept(hurt: Kept) -> Iterator[Kept]:
    """The module's client; its objects are sound again after the test."""
    yield hurt
    hurt.heal()


def _flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    _write(path, bytes(content))


def _truncate(path: Path, _: Path) -> None:
    _write(path, path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path, _: Path) -> None:
    _write(path, b"")


def _delete(path: Path, _: Path) -> None:
    path.unlink()


def _swap(path: Path, other: Path) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    _write(path, two)
    _write(other, one)


# A client of its own for each: a copy once found damaged stays so until it is sent again.
@pytest.mark.parametrize("harm", [_delete, _truncate, _empty, _flip, _swap])
def test_a_harmed_pack_is_named_with_its_files_and_the_rest_comes_back(
    world: World, harm: Callable[[Path, Path], None]
) -> None:
    kept = Kept(world, harm.__name__.strip("_"))
    first, second = kept.packs()[:2]
    harm(first, second)
    status, text, got = kept.restored()
    assert status == 13, text
    assert first.name in text
    names = kept.check_partial(got)
    assert names, "the rest comes back"
    summary = json.loads(text.splitlines()[-2] if "error" in text.splitlines()[-1] else "{}")
    hit = {Path(row["path"]).name for row in summary.get("damaged") or []}
    assert hit, summary
    assert hit.isdisjoint(names)
    assert hit | names == {path.name for path in kept.source.iterdir()}
    if harm is not _flip:
        return
    verify = world.run("verify", kept.snapshot, "--json")
    assert verify.returncode == 13, verify.stderr
    assert first.name in (verify.stdout + verify.stderr).decode()
    # The files are still there: the next backup sends again what is damaged.
    for name in kept.source.iterdir():
        os.utime(name)
    assert world.backup(kept.client)["state"] == "Completed"
    status, text, got = kept.restored()
    assert status == 0, text
    assert kept.check_partial(got) == {path.name for path in kept.source.iterdir()}


@pytest.mark.parametrize("kind", ["manifest", "refs"])
@pytest.mark.parametrize("harm", [_flip, _truncate, _delete])
def test_a_harmed_manifest_or_refs_object_is_named(
    kept: Kept, kind: str, harm: Callable[[Path, Path], None]
) -> None:
    victim = kept.only(kind)
    harm(victim, victim)
    status, text, got = kept.restored()
    key = str(kept.world.keys["hurt"])
    look = kept.world.run("ls", kept.snapshot, HOLDFAST_KEY_FILE=key)
    if kind == "manifest":
        assert status == 13, text
        assert victim.name in text
        assert look.returncode == 13, look.stderr
        assert victim.name.encode() in look.stderr
    else:
        assert status in (0, 13), text
    kept.check_partial(got)


@pytest.mark.parametrize("harm", [_flip, _truncate])
def test_a_harmed_journal_object_is_named_and_loses_nothing(
    own_world: World, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    world = own_world
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    world.start_agent(CLIENT, [tmp_path / "source"])
    snapshot = world.backup(CLIENT)["snapshot"]
    journal = sorted(p for p in (world.data / "store" / "journal").rglob("*") if p.is_file())
    assert journal
    sound = journal[-1].read_bytes()
    world.stop_server()
    harm(journal[-1], journal[-1])
    world.start_server()
    world.until_connected(CLIENT)
    doctor = world.run("doctor")
    assert doctor.returncode == 1
    assert journal[-1].name.encode() in doctor.stdout
    refused = world.run("backup", CLIENT, "--json")
    assert refused.returncode == 13, refused.stderr
    assert journal[-1].name.encode() in refused.stderr, "the object is named"
    assert b"Traceback" not in refused.stderr
    back = world.run("restore", snapshot, "--in-place")
    assert back.returncode == 0, "what is kept can be restored all the same"
    world.stop_server()
    _write(journal[-1], sound)
    _flip(journal[0], journal[0])
    world.start_server()
    assert journal[0].name in world.cli("doctor", expect=1)
    world.until_connected(CLIENT)
    assert [row["id"] for row in world.json("snapshots")] == [snapshot]
    assert world.backup(CLIENT)["state"] == "Completed"


def _local(kept: Kept, harm: Callable[[Path, Path], None]) -> tuple[Any, Path, Path]:
    first, second = kept.packs()[:2]
    harm(first, second)
    target = kept.out / f"local-{harm.__name__}"
    key = str(kept.world.keys["hurt"])
    done = kept.world.run("restore", kept.snapshot, "--local", target, "--key-file", key, "--json")
    return done, first, under(target, kept.source)


def test_a_local_restore_names_the_same(hurt: Kept) -> None:
    done, first, got = _local(hurt, _flip)
    try:
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == 13, text
        assert first.name in text
        assert hurt.check_partial(got)
    finally:
        hurt.heal()

"""Restores into places that resist: full, read-only, in the way, forbidden; modes and limits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World, under

CLIENT = "back/a-0"
NEVER, ALTERNATE = "back/never", "back/alternate"


@pytest.fixture(scope="module")
def kept(world: World) -> dict[str, Any]:
    """A client with one snapshot of a small tree; targets below `out`."""
    source, out = world.top / "source", world.top / "out"
    (source / "sub").mkdir(parents=True)
    out.mkdir()
    (source / "one").write_bytes(b"one")
    (source / "two").write_bytes(b"two" * 1000)
    (source / "sub" / "three").write_bytes(b"three")
    (source / "big").write_bytes(os.urandom(6 << 20))
    world.start_agent(CLIENT, [source], HOLDFAST_RESTORE_ROOTS=f"{source}:{out}")
    snapshot = world.backup(CLIENT)["snapshot"]
    return {"source": source, "out": out, "snapshot": snapshot}


@contextmanager
def _mounted(place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "t", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_full_target_is_14_and_leaves_no_half_file(world: World, kept: dict[str, Any]) -> None:
    source, out = kept["source"], kept["out"]
    with _mounted(out / "full", "size=2M") as target:
        done = world.run("restore", kept["snapshot"], "--target", target, "--json")
        assert done.returncode == 14, (done.stdout[-800:], done.stderr)
        assert b'"no-space"' in done.stderr
        got = under(target, source)
        for name in _files(got) if got.exists() else set():
            assert (got / name).read_bytes() == (source / name).read_bytes(), name
    with _mounted(out / "full", "size=20M") as target:
        assert world.restore(kept["snapshot"], "--target", target)["state"] == "Completed"


def test_a_read_only_target_fails_with_a_clear_error(world: World, kept: dict[str, Any]) -> None:
    with _mounted(kept["out"] / "readonly", "ro") as target:
        done = world.run("restore", kept["snapshot"], "--target", target, "--json")
    assert done.returncode in (1, 12), (done.stdout[-800:], done.stderr)
    assert b"ead-only" in done.stderr, done.stderr


def test_a_directory_where_a_file_should_be_is_told_and_stays(
    world: World, kept: dict[str, Any]
) -> None:
    source, target = kept["source"], kept["out"] / "inway"
    got = under(target, source)
    (got / "one").mkdir(parents=True)
    (got / "one" / "precious").write_bytes(b"precious")
    (got / "sub").write_bytes(b"a file where a directory should be")
    done = world.run("restore", kept["snapshot"], "--target", target, "--json")
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert (got / "one" / "precious").read_bytes() == b"precious"
    assert (got / "two").read_bytes() == b"two" * 1000
    assert b"one" in done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["always", "if-changed", "if-newer", "never"])
def test_overwrite_modes_do_what_they_say(world: World, kept: dict[str, Any], mode: str) -> None:
    source, target = kept["source"], kept["out"] / f"mode-{mode}"
    got = under(target, source)
    got.mkdir(parents=True)
    (got / "one").write_bytes(b"ONE")
    (got / "two").write_bytes(b"older")
    os.utime(got / "two", (1, 1))
    (got / "extra").write_bytes(b"extra")
    done = world.restore(
        kept["snapshot"], "--target", target, "--overwrite", mode, "--exclude", "big"
    )
    one, two = (got / "one").read_bytes(), (got / "two").read_bytes()
    assert (got / "extra").exists()
    assert not (got / "big").exists()
    # The directory itself is the third: its time is put right.
    expected = {
        "always": (b"one", b"two" * 1000, 3),
        "if-changed": (b"one", b"two" * 1000, 3),
        "if-newer": (b"ONE", b"two" * 1000, 1),
        "never": (b"ONE", b"older", 0),
    }[mode]
    assert (one, two, done["overwritten"]) == expected


def test_delete_removes_inside_restored_folders_only(world: World, kept: dict[str, Any]) -> None:
    source, target = kept["source"], kept["out"] / "deleted"
    world.restore(kept["snapshot"], "--target", target, "--exclude", "big")
    got = under(target, source)
    for name in ("extra", "sub/extra", "saved.log"):
        (got / name).write_bytes(b"x")
    (got.parent / "beside").write_bytes(b"x")
    options = ["--target", target, "--delete", "--exclude", "*.log", "--exclude", "big"]
    plan = world.restore(kept["snapshot"], *options, "--dry-run")
    assert plan["deleted"] == 2
    assert (got / "extra").exists()
    done = world.restore(kept["snapshot"], *options)
    assert done["deleted"] == 2
    assert _files(got) == {"one", "two", "sub/three", "saved.log"}
    assert (got.parent / "beside").exists()
    part = world.restore(
        f"{kept['snapshot']}:{source}/sub", "--target", target, "--delete", "--yes"
    )
    assert part["deleted"] == 0
    assert (got / "saved.log").exists(), "outside of what is restored"


def test_strip_and_include_choose_what_comes_and_where(world: World, kept: dict[str, Any]) -> None:
    source, out = kept["source"], kept["out"]
    world.restore(f"{kept['snapshot']}:{source}/sub", "--target", out / "whole")
    assert _files(under(out / "whole", source)) == {"sub/three"}
    world.restore(f"{kept['snapshot']}:{source}/sub", "--target", out / "strip", "--strip")
    assert _files(out / "strip") == {"three"}
    world.restore(f"{kept['snapshot']}:{source}/one", "--target", out / "file", "--strip")
    assert _files(out / "file") == {"one"}
    world.restore(
        kept["snapshot"], "--target", out / "inc", "--include", "tw*", "--include", "three"
    )
    assert _files(under(out / "inc", source)) == {"two", "sub/three"}
    world.restore(
        kept["snapshot"],
        "--target",
        out / "exc",
        "--exclude",
        "tw*",
        "--exclude",
        "big",
        "--exclude",
        "sub",
    )
    assert _files(under(out / "exc", source)) == {"one"}


def test_places_outside_the_restore_roots_are_refused(world: World, kept: dict[str, Any]) -> None:
    for outside in (world.top / "elsewhere", f"{kept['out']}/../elsewhere"):
        done = world.run("restore", kept["snapshot"], "--target", outside, "--json")
        assert done.returncode == (2 if ".." in str(outside) else 12), done.stderr
    assert not (world.top / "elsewhere").exists()
    link = kept["out"] / "link"
    os.symlink(world.top, link)
    done = world.run("restore", kept["snapshot"], "--target", link / "through", "--json")
    assert done.returncode not in (0, 3), done.stdout
    assert not (world.top / "through").exists()


def test_a_pod_decides_whether_and_where_restores_may_write(
    world: World, kept: dict[str, Any]
) -> None:
    source, out = kept["source"], kept["out"]
    world.start_agent(NEVER, [source], HOLDFAST_RESTORE="never")
    world.start_agent(
        ALTERNATE,
        [source],
        HOLDFAST_RESTORE="alternate",
        HOLDFAST_RESTORE_ROOTS=f"{out}:{source}",
    )
    place = ["--target", out / "never"]
    for where in (place, ["--in-place"]):
        done = world.run("restore", kept["snapshot"], *where, "--to", NEVER, "--json")
        assert done.returncode == 12, (where, done.stderr)
    done = world.run("restore", kept["snapshot"], "--in-place", "--to", ALTERNATE, "--json")
    assert done.returncode == 12, done.stderr
    assert not (out / "never").exists()
    world.restore(kept["snapshot"], "--target", out / "alt", "--to", ALTERNATE)
    lines = world.run(
        *("restore", kept["snapshot"], "--target", out / "both"),
        *("--to", ALTERNATE, "--to", NEVER, "--json"),
    )
    assert lines.returncode == 12, lines.stderr


def test_a_pod_decides_what_is_shown_through_the_server(world: World, tmp_path: Path) -> None:
    source = world.top / "shown"
    source.mkdir()
    (source / "file").write_bytes(b"secret content")
    mute, open_ = "mute/a-0", "open/a-0"
    world.start_agent(mute, [source], HOLDFAST_BROWSE="never")
    world.start_agent(open_, [source], HOLDFAST_BROWSE="content")
    hidden = world.backup(mute)["snapshot"]
    shown = world.backup(open_)["snapshot"]
    for words in (("ls", hidden), ("browse", mute, source), ("dump", f"{hidden}:{source}/file")):
        done = world.run(*words)
        assert done.returncode == 12, (words, done.stderr)
        assert b"key" in done.stderr or words[0] == "browse"
    assert world.cli("dump", f"{shown}:{source}/file") == "secret content"
    out = tmp_path / "dumped"
    world.cli("dump", f"{shown}:{source}/file", "--out", out)
    assert out.read_bytes() == b"secret content"
    assert world.run("dump", f"{shown}:{source}/file", "--out", out).returncode == 11
    assert world.run("dump", f"{shown}:{source}/absent").returncode == 10
    assert world.run("ls", f"{shown}:/absent").returncode == 10
    assert world.run("browse", open_, "/etc").returncode == 12
    assert world.run("browse", open_, "/").returncode == 12
    assert world.run("browse", open_, f"{source}/../..").returncode == 2
    assert world.run("browse", open_, f"{source}/absent").returncode == 10


def test_special_bits_of_another_client_need_to_be_asked_for(
    world: World, kept: dict[str, Any]
) -> None:
    source, out = world.top / "special", kept["out"]
    source.mkdir()
    (source / "suid").write_bytes(b"x")
    os.chmod(source / "suid", 0o4755)
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(source / "fifo")
    world.start_agent("back/special", [source])
    snapshot = world.backup("back/special")["snapshot"]
    done = world.restore(snapshot, "--target", out / "s1", "--to", CLIENT, expect=3)
    got = under(out / "s1", source)
    named = {Path(row["path"]).name for row in done["not_exact"]}
    assert named == {"suid", "null"}
    assert (got / "suid").stat().st_mode & 0o7777 == 0o755
    assert not (got / "null").exists()
    assert (got / "fifo").is_fifo()
    world.restore(snapshot, "--target", out / "s2", "--to", CLIENT, "--special")
    got = under(out / "s2", source)
    assert (got / "suid").stat().st_mode & 0o7777 == 0o4755
    assert (got / "null").is_char_device()


def test_a_restore_that_names_nothing_is_10(world: World, kept: dict[str, Any]) -> None:
    done = world.run(
        "restore", f"{kept['snapshot']}:{kept['source']}/absent", "--in-place", "--json"
    )
    assert done.returncode == 10, done.stderr
    assert world.run("restore", kept["snapshot"], "--in-place", "--to", "back/x").returncode == 10
    shadow = kept["source"].rename(kept["source"].with_name("moved"))
    try:
        assert world.restore(kept["snapshot"], "--in-place")["created"] >= 4
        assert (kept["source"] / "one").read_bytes() == b"one"
    finally:
        subprocess.run(["rm", "-rf", kept["source"]], check=True)
        shadow.rename(kept["source"])

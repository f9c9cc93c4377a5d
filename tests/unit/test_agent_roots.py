"""What the agent may touch is decided name by name, and its own files are left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_agent.sources.roots import OwnFiles, Roots, is_within, normal_path
from holdfast_contract.errors import InvalidInput, OutsideRoots


@pytest.mark.parametrize(
    ("given", "normal"),
    [(b"/", b"/"), (b"/a", b"/a"), (b"//a///b/", b"/a/b"), (b"/a\xff", b"/a\xff")],
)
def test_a_path_is_made_normal(given: bytes, normal: bytes) -> None:
    assert normal_path(given) == normal


@pytest.mark.parametrize("path", [b"", b"a", b"a/b", b"/a/../b", b"/..", b"/a/./b", b"/a\0b"])
def test_a_path_that_is_not_absolute_and_plain_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidInput):
        normal_path(path)


@pytest.mark.parametrize("path", [b"/data", b"/data/", b"/data/a/b", b"/other"])
def test_a_root_and_what_is_below_it_is_allowed(path: bytes) -> None:
    roots = Roots.configured([b"/data", b"/other"])
    assert roots.check(path) == path.rstrip(b"/")
    assert roots.real(path) == path.rstrip(b"/")


@pytest.mark.parametrize("path", [b"/", b"/dat", b"/data2", b"/dataa/b", b"/etc/passwd"])
def test_what_is_not_below_a_root_is_refused(path: bytes) -> None:
    roots = Roots.configured([b"/data"])
    for ask in (roots.check, roots.real):
        with pytest.raises(OutsideRoots):
            ask(path)


def test_dots_cannot_lead_out_of_a_root() -> None:
    with pytest.raises(InvalidInput):
        Roots.configured([b"/data"]).check(b"/data/../etc")


def test_the_root_of_everything_holds_everything() -> None:
    assert is_within(b"/etc", b"/")
    assert Roots.configured([b"/"]).real(b"/etc/x") == b"/etc/x"


def test_a_root_given_by_a_symlink_is_opened_where_it_led_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    here = os.fsencode(tmp_path)
    roots = Roots.configured([here + b"/link"])
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("/etc")
    assert roots.check(here + b"/link/a") == here + b"/link/a"
    assert roots.real(here + b"/link/a") == here + b"/real/a"
    assert roots.real(here + b"/link") == here + b"/real"
    assert roots.real(here + b"/real/a") == here + b"/real/a"
    with pytest.raises(OutsideRoots):
        roots.check(here + b"/etc")


def test_own_files_are_known_by_what_they_are_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    key = tmp_path / "key"
    key.write_bytes(b"secret")
    os.link(key, tmp_path / "other name")
    own = OwnFiles([os.fsencode(tmp_path / "state"), os.fsencode(key)])
    for path in (key, tmp_path / "other name", tmp_path / "state"):
        info = path.stat()
        assert own.is_own((info.st_dev, info.st_ino)), path
    info = tmp_path.stat()
    assert not own.is_own((info.st_dev, info.st_ino))
    assert not own.is_own((key.stat().st_dev + 1, key.stat().st_ino))


def test_a_key_that_is_replaced_is_known_after_a_refresh(tmp_path: Path) -> None:
    """As Kubernetes replaces a Secret's files: through a symlink that moves."""
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    (tmp_path / "key").symlink_to("one")
    own = OwnFiles([os.fsencode(tmp_path / "key")])
    os.replace(tmp_path / "two", tmp_path / "one")
    info = (tmp_path / "one").stat()
    assert not own.is_own((info.st_dev, info.st_ino))
    own.refresh()
    assert own.is_own((info.st_dev, info.st_ino))


def test_own_files_that_do_not_exist_are_no_error(tmp_path: Path) -> None:
    own = OwnFiles([os.fsencode(tmp_path / "later")])
    assert not own.is_own((1, 1))
    assert not own.is_empty
    assert OwnFiles([]).is_empty

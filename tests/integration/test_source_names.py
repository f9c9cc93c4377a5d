"""Names of a directory come sorted and once each, from memory or from sorted runs on disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from holdfast_agent.sources import names as naming
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.names import Names
from tests.support.directories import opened


def listed(monkeypatch: pytest.MonkeyPatch, names: list[str], error: int = 0) -> None:
    """Have the kernel list these names, then fail if `error` says so."""

    def items() -> Iterator[object]:
        yield from (SimpleNamespace(name=name) for name in names)
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "scandir", lambda _: contextlib.nullcontext(items()))


def full_disk() -> BinaryIO:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    return Full()


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def names_max(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Names that are held at once: with the last one everything stays in memory."""
    bound = int(request.param)
    monkeypatch.setattr(naming, "NAMES_MAX", bound)
    monkeypatch.setattr(naming, "_AHEAD", 5)
    monkeypatch.setattr(naming, "_READ_BYTES_MIN", 3)
    monkeypatch.setattr(naming, "_READ_BYTES_MAX", 11)
    return bound


@pytest.mark.parametrize("open_spool", [io.BytesIO, full_disk], ids=["spool", "full disk"])
def test_every_name_comes_once_and_in_order(
    tmp_path: Path, names_max: int, open_spool: Callable[[], BinaryIO]
) -> None:
    rng = random.Random(names_max)
    for number in range(150):
        name = rng.randbytes(rng.randrange(1, 40)).replace(b"/", b"-").replace(b"\0", b"0")
        with open(os.path.join(os.fsencode(tmp_path), name + b"%d" % number), "wb"):
            pass
    wanted = sorted(os.listdir(os.fsencode(tmp_path)))
    with opened(tmp_path) as directory:
        names = Names(directory, open_spool)
        assert len(names._ahead) == (0 if names_max < len(wanted) else len(wanted))
        taken: list[bytes] = []
        while names.has():
            # As the walk does: up to some name, at most so many; both may fall anywhere.
            last = rng.choice([None, *wanted])
            part = names.take(last, rng.randrange(1, 30))
            assert last is None or all(name <= last for name in part)
            taken += part
            assert names.has(last) == any(last is None or n <= last for n in wanted[len(taken) :])
        assert taken == wanted
        assert names.take(None, 10) == []
        assert names.findings == []
        names.close()


def test_a_name_that_is_listed_twice_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_max: int
) -> None:
    with opened(tmp_path) as directory:
        listed(monkeypatch, ["b", "a", "b", "c", "a", "c"])
        names = Names(directory, io.BytesIO)
    assert names.take(None, 100) == [b"a", b"b", b"c"]


def test_an_error_in_the_middle_keeps_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_max: int
) -> None:
    with opened(tmp_path) as directory:
        listed(monkeypatch, ["c", "a", "b"], errno.EIO)
        names = Names(directory, io.BytesIO)
    assert names.take(None, 100) == [b"a", b"b", b"c"]
    assert [(finding.path, finding.reason) for finding in names.findings] == [
        (b"", Reason.IO_ERROR)
    ]


def test_what_is_left_out_is_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_max: int
) -> None:
    with opened(tmp_path) as directory:
        listed(monkeypatch, [f"{number:02}" for number in range(50)])
        names = Names(directory, io.BytesIO, lambda name, _: name.endswith(b"0"))
    assert names.take(None, 100) == [b"%02d" % number for number in range(50) if number % 10]


def test_names_that_are_not_utf_8_keep_their_bytes_through_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "NAMES_MAX", 2)
    wanted = [b"\x80\xff", b"\xc3\xa9", b"\xe9", b"a\nb", b"n" * 255]
    for name in wanted:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    with opened(tmp_path) as directory:
        assert Names(directory, io.BytesIO).take(None, 10) == sorted(wanted)

"""Small parts of the command: secret files, output, references, answers."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from holdfast_cli.answers import asked_names, asked_rows, parsed
from holdfast_cli.api import Api
from holdfast_cli.output import (
    facts,
    moment,
    print_json_rows,
    shown_name,
    size,
    table,
)
from holdfast_cli.references import Part, resolve, split_reference
from holdfast_cli.secrets import SecretFile
from holdfast_contract.errors import Conflict, Damaged, InvalidInput, UsageError
from holdfast_contract.protocol.http import QueryCreate
from tests.support.cli_api import FakeApi, snapshot


# --- secret files
def test_a_secret_file_is_new_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with SecretFile(tmp_path / "s") as file:
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
            file.write("secret")
    finally:
        os.umask(before)
    assert (tmp_path / "s").read_text() == "secret"
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    place = tmp_path / "s"
    place.write_text("mine")
    for target in (place, tmp_path / "link"):
        if target != place:
            target.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Conflict), SecretFile(target):
            pytest.fail("entered")
    assert place.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_secret_that_came_to_nothing_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), SecretFile(tmp_path / "a") as file:
        file.write("secret")
        raise ValueError("later")
    with SecretFile(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_secret_can_be_kept_through_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), SecretFile(tmp_path / "a") as file:
        file.write("secret")
        file.keep()
        raise ValueError("later")
    assert (tmp_path / "a").read_text() == "secret"


def test_a_secret_file_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError), SecretFile(tmp_path / "no" / "s"):
        pytest.fail("entered")
    with SecretFile(None) as file:
        file.write("nowhere")


# --- output
def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "NUMBER"), [("long\x1b", "1"), ("x", "1,000")], right=(1,))
    assert capsys.readouterr().out.splitlines() == [
        "A         NUMBER",
        "long\\x1b       1",
        "x          1,000",
    ]


def test_facts_are_aligned_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    facts([("a", "1\n2"), ("long name", "\u202ex")])
    assert capsys.readouterr().out == "a          1\\x0a2\nlong name  \\u202ex\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_are_in_iec_units(count: int, text: str) -> None:
    assert size(count) == text


def test_times_are_local_with_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "XYZ-2")
    time.tzset()
    try:
        assert moment("2026-01-31T23:30:00.123456Z") == "2026-02-01 01:30:00 XYZ"
        assert moment("0001-01-01T00:00:00.000000Z").startswith("0001-01-01")
        assert moment("9999-12-31T23:59:59.999999Z") == "9999-12-31 23:59:59 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert moment(None) == "-"


def test_names_show_their_bytes_and_never_act() -> None:
    assert shown_name("/a b", None) == "/a b"
    assert shown_name("/\\xff", "L/8=") == "/\\xff"
    assert shown_name("/\\xff", None) == "/\\\\xff"


def test_rows_are_one_json_array_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    for rows in ([], [1], [{"a": "\x1b"}, {"b": 2}]):
        print_json_rows(rows)
        assert json.loads(capsys.readouterr().out) == rows


def test_nothing_is_printed_where_the_first_row_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Iterator[int]:
        raise InvalidInput("no")
        yield 1

    with pytest.raises(InvalidInput):
        print_json_rows(rows())
    assert capsys.readouterr().out == ""


@dataclass
class Answer:
    """What an agent answers, in pieces of at most `size` bytes."""

    stream: io.BytesIO
    size: int

    def read_some(self, most: int) -> bytes:
        return self.stream.read(min(most, self.size))


@dataclass
class Asked:
    """An API that has one answer."""

    answer: Answer

    @contextmanager
    def ask(self, query: QueryCreate) -> Iterator[Answer]:
        assert query.kind == "ls"
        yield self.answer


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_answers_lines_are_found_wherever_its_pieces_end(size: int) -> None:
    rows = [{"path": f"/{number}"} for number in range(20)]
    whole = b"".join(json.dumps(row).encode() + b"\n" for row in [*rows, {"type": "end"}])
    stream = io.BytesIO(whole)

    asked = cast(Api, Asked(Answer(stream, size)))
    assert list(asked_rows(asked, QueryCreate(kind="ls"))) == rows


def test_a_line_beyond_the_limit_is_no_row() -> None:
    stream = io.BytesIO(b'{"path": "' + b"x" * (3 << 20) + b'"}\n{"type": "end"}\n')
    asked = cast(Api, Asked(Answer(stream, 1 << 18)))
    with pytest.raises(InvalidInput, match="malformed"):
        list(asked_rows(asked, QueryCreate(kind="ls")))


def asked(data: bytes, size: int = 1 << 18) -> Api:
    return cast(Api, Asked(Answer(io.BytesIO(data), size)))


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_names_are_found_wherever_the_pieces_of_an_answer_end(size: int) -> None:
    whole = b'{"path":"/a","type":"file"}\n\n{"path":"/b","path_b64":"L2I="}\n{"type":"end"}\n'
    found = list(asked_names(asked(whole, size), QueryCreate(kind="ls")))
    assert found == [("/a", None), ("/b", "L2I=")]


@pytest.mark.parametrize(
    ("after", "error", "words"),
    [
        (b"", InvalidInput, "not complete"),
        (b'{"path":"/b"', InvalidInput, "malformed"),
        (b'{"type":"error","code":"damaged","message":"torn"}\n', Damaged, "torn"),
        (b'{"pa{"type":"error","code":"damaged"}\n{"type":"end"}\n', InvalidInput, "malformed"),
        (b'["/b"]\n{"type":"end"}\n', InvalidInput, "malformed"),
    ],
)
def test_names_before_an_answer_breaks_are_told_and_then_why(
    after: bytes, error: type[Exception], words: str
) -> None:
    found = []
    with pytest.raises(error, match=words):
        for name, _ in asked_names(asked(b'{"path":"/a"}\n' + after), QueryCreate(kind="ls")):
            found.append(name)
    assert found == ["/a"]


# --- references
@pytest.mark.parametrize(
    ("text", "reference", "path"),
    [
        ("3fa1c2", "3fa1c2", b"/"),
        ("3fa1c2:/", "3fa1c2", b"/"),
        ("3fa1c2:/a/b/", "3fa1c2", b"/a/b"),
        ("shop/web-0@latest:/a:/b", "shop/web-0@latest", b"/a:/b"),
        ("shop/web-0@2026-01-31T12:00:00Z", "shop/web-0@2026-01-31T12:00:00Z", b"/"),
        ("shop/web-0@2026-01-31T12:00:00Z:/a", "shop/web-0@2026-01-31T12:00:00Z", b"/a"),
        ("latest:/" + os.fsdecode(b"\xff"), "latest", b"/\xff"),
    ],
)
def test_a_path_begins_at_the_first_colon_and_slash(text: str, reference: str, path: bytes) -> None:
    assert split_reference(text) == (reference, path)


def test_a_reference_is_one_part_of_the_route() -> None:
    row = snapshot()
    api = FakeApi({"GET /v1/snapshots/shop%2Fweb-0%402026-01-31": row})
    assert resolve(api, "shop/web-0@2026-01-31:/a") == Part(row, b"/a")


def test_a_path_that_is_not_utf8_travels_as_bytes() -> None:
    part = Part(snapshot(), b"/\xff")
    assert part.request().path_bytes() == b"/\xff"
    assert Part(snapshot(), b"/a").request().path_b64 is None
    assert part.item().path == b"/\xff"
    assert part.item().snapshot.hex() == snapshot().id


# --- answers
END = b'{"type":"end"}\n'


def rows(data: bytes) -> list[dict[str, object]]:
    return list(parsed(io.BytesIO(data)))


def test_rows_end_at_the_mark() -> None:
    assert rows(b'{"path":"/a"}\n' + END) == [{"path": "/a"}]
    assert rows(END) == []


@pytest.mark.parametrize("data", [b"", b'{"path":"/a"}\n', b"{", b"[1]\n" + END, b"\xff\n" + END])
def test_an_answer_that_is_cut_or_torn_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        rows(data)


def test_an_answer_that_broke_says_why_even_inside_a_row() -> None:
    error = b'\n{"type":"error","code":"damaged","message":"chunk 1","hint":"h"}\n'
    for begun in (b"", b'{"path":"/a"}\n', b'{"path":"/'):
        with pytest.raises(Damaged, match="chunk 1"):
            rows(begun + error)


def test_a_row_of_an_entry_that_looks_like_the_end_is_a_row() -> None:
    row = {"type": "end", "path": "/a"}
    assert rows(json.dumps(row).encode() + b"\n" + END) == [row]

"""Names from pods may hold anything; nothing of it may act on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_contract.text import printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("größe 文件", "größe 文件"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("a\\nb", "a\\\\nb"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_control_and_foreign_bytes_are_escaped(raw: str, shown: str) -> None:
    assert printable(raw) == shown


@given(st.text())
def test_what_is_shown_is_one_line_without_controls(raw: str) -> None:
    shown = printable(raw)
    assert len(shown.splitlines()) <= 1
    assert all(ord(character) >= 32 and not 0x7F <= ord(character) <= 0x9F for character in shown)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_names_never_look_the_same(one: bytes, two: bytes) -> None:
    shown = [printable(name.decode("utf-8", "surrogateescape")) for name in (one, two)]
    assert (shown[0] == shown[1]) == (one == two)

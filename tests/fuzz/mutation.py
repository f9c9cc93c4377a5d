"""Mutations that follow from a seed: no engine, no coverage, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

BYTES_MAX = 1 << 16
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63)
_WORDS = (
    b"\xdf\xff\xff\xff\xff",  # a map, an array, a string of 4 GiB in MessagePack
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x91" * 600,
    b"[" * 600,
    b'{"a":' * 300,
    b"\x00",
    b"../",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"1e999",
    b"9" * 400,
    b"\n",
)


def mutated(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Return `data` with one to six changes; `others` lend their parts."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        rng.choice(_OPERATIONS)(found, others, rng)
    return bytes(found[:BYTES_MAX])


def _at(data: bytearray, rng: Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = (rng.choice(_NUMBERS) + rng.choice((-1, 0, 1))) % (1 << 8 * width)
    at = _at(data, rng)
    data[at : at + width] = number.to_bytes(width, "little" if order == "little" else "big")


def _remove(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice((1, 2, 8, 64, 1 << 20))]


def _repeat(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    part = bytes(data[at : at + rng.choice((1, 4, 32, 200))])
    data[at:at] = part * rng.choice((1, 2, 40))


def _insert(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    data[at:at] = rng.choice(_WORDS) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 9))


def _splice(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    other = rng.choice(others) if others else b""
    start = rng.randrange(len(other) + 1)
    at = _at(data, rng)
    length = rng.choice((0, 4, 32, 1 << 20))
    data[at : at + length] = other[start : start + rng.choice((4, 32, 1 << 20))]


_OPERATIONS: tuple[Callable[[bytearray, Sequence[bytes], Random], None], ...] = (
    _flip, _flip, _set, _number, _number, _remove, _repeat, _insert, _splice,
)  # fmt: skip

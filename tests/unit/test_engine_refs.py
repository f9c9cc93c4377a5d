"""The refs object: full or a difference, always the same set."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from holdfast_agent.engine.refs import DEPTH_MAX, BuiltRefs, RefsBase
from holdfast_contract.format.refs import (
    RefsKind,
    apply_difference,
    decode_difference,
    decode_full,
    read_header,
    refs_set_of,
)
from holdfast_contract.ids import new_ulid
from tests.support.samples import DOMAIN, ids

BASE = new_ulid()


def build(wanted: Sequence[bytes], base: RefsBase | None) -> tuple[BuiltRefs, bytes]:
    built = BuiltRefs(DOMAIN, wanted, base, io.BytesIO)
    built.body.seek(0)
    data = built.body.read()
    assert (len(data), built.count, built.refs_set) == (
        built.length,
        len(wanted),
        refs_set_of(wanted),
    )
    assert list(built.ids()) == list(wanted)
    return built, data


def base_of(known: Sequence[bytes], depth: int = 0) -> RefsBase:
    return RefsBase(BASE, refs_set_of(known), depth, lambda: known)


@pytest.mark.parametrize("count", [1, 5, 10_000])
def test_without_a_base_the_list_is_full(count: int) -> None:
    built, data = build(ids(count), None)
    assert built.depth == 0
    assert list(decode_full(io.BytesIO(data).read)) == ids(count)
    built.close()


@pytest.mark.parametrize(("added", "removed"), [(0, 0), (1, 0), (0, 1), (7, 9), (90, 0)])
def test_difference_and_base_make_the_whole_list(added: int, removed: int) -> None:
    everything = ids(300)
    known, wanted = everything[: 300 - added], everything[removed:]
    built, data = build(wanted, base_of(sorted(known), depth=4))
    assert (built.depth, read_header(data).base) == (5, BASE)
    difference = decode_difference(lambda at, n: data[at : at + n], len(data))
    assert list(apply_difference(known, difference.added(), difference.removed())) == wanted
    assert len(data) == 144 + 32 * (added + removed) + 32


def test_difference_longer_than_the_list_is_not_written() -> None:
    built, data = build(ids(20, "new"), base_of(ids(20)))
    assert (built.depth, read_header(data).kind) == (0, RefsKind.FULL)


@pytest.mark.parametrize(("depth", "kind"), [(14, 2), (15, 1), (16, 1), (-1, 1)])
def test_chain_is_no_longer_than_allowed(depth: int, kind: int) -> None:
    built, data = build(ids(50), base_of(ids(50), depth))
    assert read_header(data).kind == kind
    assert built.depth == (depth + 1 if kind == 2 else 0) <= DEPTH_MAX

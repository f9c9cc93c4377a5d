"""Small files that one backup has bundled: found again by content id, whatever lies where."""

from __future__ import annotations

import random

import pytest

from holdfast_agent.engine.content_index import BundledFiles
from holdfast_agent.engine.drafts import ChunkDraft


def filled(
    files: BundledFiles, ids: list[bytes], per_bundle: int
) -> list[tuple[ChunkDraft, int, int]]:
    places = []
    draft = ChunkDraft()
    for number, content_id in enumerate(ids):
        if number % per_bundle == 0:
            draft = ChunkDraft()
        assert files.find(content_id) is None
        files.add(content_id, draft, 10 * number, number + 1)
        places.append((draft, 10 * number, number + 1))
    return places


@pytest.mark.parametrize("slots_first", [2, 64, 4096])
@pytest.mark.parametrize("tail_records", [1, 7, 2000])
def test_every_file_is_found_where_it_lies(slots_first: int, tail_records: int) -> None:
    draw = random.Random(f"{slots_first} {tail_records}")
    files = BundledFiles(slots_first=slots_first, tail_records=tail_records)
    ids = [draw.randbytes(32) for _ in range(1000)]
    places = filled(files, ids, per_bundle=9)
    assert [files.find(content_id) for content_id in ids] == places
    assert files.find(draw.randbytes(32)) is None
    files.close()


def test_ids_that_share_slot_and_hint_are_told_apart() -> None:
    draw = random.Random(3)
    files = BundledFiles(slots_first=2, tail_records=3)
    same = draw.randbytes(8)
    ids = [same + draw.randbytes(24) for _ in range(40)]
    places = filled(files, ids, per_bundle=4)
    assert [files.find(content_id) for content_id in ids] == places
    assert files.find(same + draw.randbytes(24)) is None


def test_what_was_not_looked_for_cannot_be_added() -> None:
    files = BundledFiles()
    files.find(b"1" * 32)
    with pytest.raises(AssertionError):
        files.add(b"2" * 32, ChunkDraft(), 0, 1)

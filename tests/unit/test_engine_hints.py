"""The sorted file of content ids: every number put in is found, little else, and cheaply."""

from __future__ import annotations

import io
import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.engine.hints import ContentHints


class CountedFile(io.BytesIO):
    """A file that counts the bytes read from it."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.read_bytes += len(found)
        return found


@given(
    contents=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3000)), min_size=0, max_size=700)
)
def test_every_number_is_found_by_its_content(contents: list[tuple[int, int]]) -> None:
    """Few contents for many numbers: runs of one key go over several segments."""
    ids = [random.Random(n).randbytes(32) for n in range(41)]
    hints = ContentHints()
    for content, number in contents:
        hints.add([ids[content]], number)
    hints.finish()
    for content in range(41):
        expected = sorted({number for found, number in contents if found == content})
        assert list(hints.find(ids[content])) == expected
    assert hints.count == len(set(contents))


def test_a_look_up_reads_four_kilobytes_and_memory_holds_a_two_hundredth() -> None:
    files: list[CountedFile] = []

    def spool() -> CountedFile:
        files.append(CountedFile())
        return files[-1]

    rng = random.Random(1)
    hints = ContentHints(spool)
    ids = [rng.randbytes(32) for _ in range(20_000)]
    for number in range(0, len(ids), 100):
        hints.add(ids[number : number + 100], number // 100)
    hints.finish()
    assert hints.count * 16 == len(files[-1].getvalue())
    assert hints._fences.itemsize * len(hints._fences) < hints.count * 16 / 400
    files[-1].read_bytes = 0
    for at in range(0, len(ids), 1000):
        assert at // 100 in list(hints.find(ids[at]))
    assert files[-1].read_bytes <= 20 * 3 * 4096
    unknown = [rng.randbytes(32) for _ in range(100)]
    assert all(list(hints.find(one)) == [] for one in unknown)
    hints.close()


def test_nothing_is_found_in_nothing() -> None:
    hints = ContentHints()
    hints.finish()
    assert list(hints.find(bytes(32))) == []

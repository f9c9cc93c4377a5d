"""What the counting proxy of `tests/bench/wire.py` counts."""

from __future__ import annotations

from tests.support.counting_proxy import Passed


def test_between_two_looks_passed_what_they_differ_by() -> None:
    passed = Passed(up=110, down=220, packets=5, connections=2).since(Passed(10, 20, 3, 2))
    assert passed == Passed(up=100, down=200, packets=2, connections=0)
    assert passed.bytes == 300


def test_each_packet_has_its_heads() -> None:
    assert Passed(up=100, down=200, packets=2, connections=0).bytes_with_heads == 300 + 2 * 66

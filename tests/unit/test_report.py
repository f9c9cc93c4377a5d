from __future__ import annotations

import msgspec
import pytest

from holdfast_contract.errors import InvalidInput, UnsupportedVersion
from holdfast_contract.format.report import (
    Report,
    ReportKind,
    ReportRow,
    decode_report,
    encode_report,
)
from tests.support.samples import flips

ROWS = (
    ReportRow(b"/data/\xff", "denied", "permission denied"),
    ReportRow(b"/data/b", "vanished", ""),
)
DATA = encode_report(ReportKind.SKIPPED, iter(ROWS), more=3)


def test_a_report_comes_back() -> None:
    assert decode_report(DATA) == Report(kind=1, rows=ROWS, more=3)
    assert msgspec.msgpack.decode(DATA) == {
        "kind": 1,
        "rows": [[b"/data/\xff", "denied", "permission denied"], [b"/data/b", "vanished", ""]],
        "more": 3,
    }
    assert decode_report(encode_report(ReportKind.NOT_EXACT, [])).rows == ()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnsupportedVersion):
        decode_report(msgspec.msgpack.encode({"kind": 3, "rows": [], "more": 0}))


@pytest.mark.parametrize(
    "value",
    [
        {"kind": 1, "rows": []},
        {"kind": 1, "rows": [], "more": -1},
        {"kind": 1, "rows": [[b"", "denied", ""]], "more": 0},
        {"kind": 1, "rows": [[b"/a", "", ""]], "more": 0},
        {"kind": 1, "rows": [[b"/a", "denied"]], "more": 0},
        {"kind": 1, "rows": [["/a", "denied", ""]], "more": 0},
        {"kind": 1, "rows": [], "more": 0, "x": 0},
        [1, [], 0],
        None,
    ],
)
def test_what_is_no_report_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        decode_report(msgspec.msgpack.encode(value))


def test_a_report_longer_than_a_chunk_is_not_written() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        encode_report(ReportKind.SKIPPED, [ReportRow(b"/" + b"x" * (4 << 20), "denied", "")])


def test_a_broken_report_never_fails_in_another_way() -> None:
    """It lies inside a sealed chunk: a flip may make another report, but no foreign error."""
    refused = 0
    for _, data in flips(DATA):
        try:
            decode_report(data)
        except (InvalidInput, UnsupportedVersion):
            refused += 1
    assert refused > len(DATA)
    for length in range(len(DATA)):
        with pytest.raises(InvalidInput):
            decode_report(DATA[:length])

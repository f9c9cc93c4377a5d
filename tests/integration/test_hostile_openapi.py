"""Whatever the OpenAPI document lets somebody send: no 5xx, answers as documented, flat memory.

Cases are made from the document that the server itself shows, right ones and wrong ones, with the
token that a route is for and without any.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.api_process import api_process, resident_bytes
from tests.support.openapi_cases import Sender, run_cases

MIB = 1 << 20
EACH = 19
CASES_MIN = 3_000
GROWTH_BYTES_MAX = 32 * MIB
"""Caches of the catalog and what the cases left in it; measured: 3 MiB."""
SOAK_EACH = 620
SOAK_CASES_MIN = 100_000


@pytest.mark.timeout(900)
def test_three_thousand_cases_of_the_document_find_no_failure(tmp_path: Path) -> None:
    with api_process(tmp_path) as known:
        sender = Sender(known)
        before = resident_bytes(known.pid)
        run_cases(sender, EACH)
        grown = resident_bytes(known.pid) - before
        assert sender.statuses.total() >= CASES_MIN, sender.statuses
        assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB, {sender.statuses}"
        # It got somewhere: good answers of each kind, and refusals of many.
        assert {200, 201, 400, 401, 404, 409} <= sender.statuses.keys(), sender.statuses


@pytest.mark.soak
def test_a_hundred_thousand_cases_of_the_document_find_no_failure(tmp_path: Path) -> None:
    with api_process(tmp_path) as known:
        sender = Sender(known)
        run_cases(sender, EACH)
        before = resident_bytes(known.pid)
        run_cases(sender, SOAK_EACH, number=1)
        grown = resident_bytes(known.pid) - before
        assert sender.statuses.total() >= SOAK_CASES_MIN, sender.statuses
        assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB, {sender.statuses}"

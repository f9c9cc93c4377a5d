"""The agent's wiring: limits that end with their use, orders that another version wrote."""

from __future__ import annotations

import pytest

from holdfast_agent.runtime.service import _order_of
from holdfast_agent.runtime.workshop import Limits
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.state.journal import JournalledJob
from holdfast_contract.protocol import control

JOB = "01K8Z300000000000000000000"


@pytest.mark.parametrize(
    ("client", "own", "effective"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5), (9, 7, 7)]
)
def test_the_lower_limit_of_client_and_job_counts(client: int, own: int, effective: int) -> None:
    limits = Limits(SystemFileClock())
    limits.change(control.AgentSettings(limit_upload=client))
    assert limits.begin(is_upload=True, own=own).bytes_per_second == effective
    assert limits.begin(is_upload=False, own=0).bytes_per_second == 0


def test_a_change_reaches_what_runs_and_not_what_has_ended() -> None:
    limits = Limits(SystemFileClock())
    runs, ended = (limits.begin(is_upload=False, own=0) for _ in range(2))
    limits.end(ended)
    limits.change(control.AgentSettings(limit_download=1000))
    assert (runs.bytes_per_second, ended.bytes_per_second) == (1000, 0)


def test_an_order_is_read_from_the_journal_as_it_came() -> None:
    order = control.Verify(job=JOB, item=control.RestoreItem(bytes(32), "a/b", b"/"))
    assert _order_of(JournalledJob(JOB, control.encode(order))) == order


@pytest.mark.parametrize(
    "frame", [b"", b"\x81\xa1t\xa5other", control.encode(control.Cancel(job=JOB))]
)
def test_what_is_no_order_does_not_keep_the_agent_from_its_server(frame: bytes) -> None:
    assert _order_of(JournalledJob(JOB, frame)) is None

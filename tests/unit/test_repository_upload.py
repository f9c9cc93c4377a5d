"""The straight way: enrol, send, commit, read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_server.repository.reading import FetchStatus
from tests.support.samples import ids
from tests.support.uploads import Served, sealed


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.stop()


def test_what_was_sent_and_committed_is_read_back(served: Served) -> None:
    served.domain()
    pod = served.pod()
    wanted = ids(5)
    snapshot = pod.backup(wanted)
    grant = served.repository.open_grant("shop", [snapshot])
    got = list(grant.fetch(wanted))
    assert [answer.chunk_id for answer in got] == wanted
    assert {answer.status for answer in got} == {FetchStatus.HERE}
    assert [bytes(answer.data) for answer in got] == [sealed(one) for one in wanted]

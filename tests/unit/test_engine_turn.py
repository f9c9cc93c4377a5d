"""Which files are read again by turn, also by a clock that jumps."""

from __future__ import annotations

import pytest

from holdfast_agent.engine.turn import PERIOD_DAYS, Turn
from holdfast_agent.tree.entry import EntryType, Stat
from tests.support.samples import KEYS

DAY_NS = 86_400 * 10**9
TODAY_NS = 20_000 * DAY_NS + 5
FILES = [
    Stat(
        name=b"%d" % number,
        type=EntryType.FILE,
        flags=0,
        mode=0o644,
        size=1,
        mtime_ns=0,
        ctime_ns=0,
        inode=number,
    )
    for number in range(3_000)
]
ALL = {stat.name for stat in FILES}


def due(since_ns: int, now_ns: int) -> frozenset[bytes]:
    return Turn(KEYS, since_ns=since_ns, now_ns=now_ns).due(b"/data", FILES)


def test_every_file_has_its_turn_once_in_a_period() -> None:
    days = [
        due(TODAY_NS + day * DAY_NS, TODAY_NS + (day + 1) * DAY_NS) for day in range(PERIOD_DAYS)
    ]
    assert sorted(name for names in days for name in names) == sorted(ALL)


def test_a_second_backup_of_a_day_has_no_turn() -> None:
    assert due(TODAY_NS, TODAY_NS + 1000) == frozenset()
    # Midnight, corrected by a time server.
    assert due(TODAY_NS, TODAY_NS - DAY_NS) == frozenset()


@pytest.mark.parametrize("years", [-40, -3, 3, 40])
def test_after_a_jump_by_years_every_file_is_read(years: int) -> None:
    # Backups by the wrong clock may have left out any of the days that really passed.
    assert due(TODAY_NS, TODAY_NS + years * 365 * DAY_NS) == ALL


def test_after_a_jump_back_the_days_go_on_from_there() -> None:
    wrong_ns = TODAY_NS - 3 * 365 * DAY_NS
    found = [due(wrong_ns + day * DAY_NS, wrong_ns + (day + 1) * DAY_NS) for day in range(30)]
    assert set().union(*found) == ALL

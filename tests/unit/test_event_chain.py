"""Events are a chain: whoever changes, removes, inserts or cuts off rows is found at that row."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from holdfast_contract.errors import Conflict
from holdfast_server.catalog import events, tokens
from holdfast_server.catalog.attested import Attested
from holdfast_server.catalog.connection import Catalog, Tx, open_catalog
from tests.support.uploads import TickingClock

COUNT = 8


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    found = open_catalog("sqlite:", tmp_path, TickingClock())
    for number in range(COUNT):
        events.add(found, "test", f"event {number}", client="shop/db-0", details={"n": number})
    return found


def tampered(catalog: Catalog, folder: Path, *statements: str) -> events.Trail:
    """Write into the catalog by hand, and return what the chain tells of it."""
    with sqlite3.connect(folder / "catalog.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return events.trail(catalog)


def test_the_chain_holds_and_links_are_shown(catalog: Catalog) -> None:
    assert events.trail(catalog) == (COUNT, None)
    links = [event.link for event in events.listed(catalog)]
    assert len(set(links)) == COUNT
    assert {len(link) for link in links} == {32}


SWAP = (
    "UPDATE events SET key = 100 WHERE key = 4",
    "UPDATE events SET key = 4 WHERE key = 5",
    "UPDATE events SET key = 5 WHERE key = 100",
)
COPY = (
    "INSERT INTO events (key, time_ns, kind, client, job, message, details, link)"
    " SELECT 9, time_ns, kind, client, job, message, details, link FROM events WHERE key = 4"
)


@pytest.mark.parametrize(
    ("broken", "statements"),
    [
        (4, ["UPDATE events SET message = 'nothing happened' WHERE key = 4"]),
        (4, ["UPDATE events SET kind = 'other' WHERE key = 4"]),
        (4, ["UPDATE events SET client = 'shop/db-1' WHERE key = 4"]),
        (4, ["UPDATE events SET job = 'J' WHERE key = 4"]),
        (4, ["UPDATE events SET time_ns = time_ns + 1 WHERE key = 4"]),
        (4, ["UPDATE events SET details = x'80' WHERE key = 4"]),
        (4, ["UPDATE events SET link = zeroblob(32) WHERE key = 4"]),
        (5, ["DELETE FROM events WHERE key = 4"]),
        (2, ["DELETE FROM events WHERE key = 1"]),
        (4, [*SWAP]),
        (9, [COPY]),
        (8, ["DELETE FROM events WHERE key = 8"]),
        (8, ["DELETE FROM events WHERE key > 3"]),
        (8, ["DELETE FROM events"]),
        (8, ["UPDATE event_head SET last = 7"]),
    ],
)
def test_what_was_done_by_hand_is_found_at_its_row(
    catalog: Catalog, tmp_path: Path, broken: int, statements: list[str]
) -> None:
    assert tampered(catalog, tmp_path, *statements).broken == broken


def test_what_follows_on_a_cut_chain_does_not_mend_it(catalog: Catalog, tmp_path: Path) -> None:
    tampered(catalog, tmp_path, "DELETE FROM events WHERE key > 5")
    events.add(catalog, "test", "after")
    assert events.trail(catalog) == (5, 9)


def test_a_chain_of_many_pages_is_followed_to_its_end(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PAGE_ROWS", 3)
    assert events.trail(catalog) == (COUNT, None)
    assert tampered(catalog, tmp_path, "DELETE FROM events WHERE key = 7").broken == 8


def test_an_act_and_its_event_stand_together_or_not_at_all(catalog: Catalog) -> None:
    def note(tx: Tx, made: tokens.TokenRecord) -> None:
        events.record(tx, 1, "token-created", "made", details={"id": made.id})

    made = tokens.create(Attested(catalog, note), token_hash=bytes(32), role="viewer", domains=[])
    assert events.listed(catalog)[-1].details == {"id": made.id}

    def failing(tx: Tx, made: tokens.TokenRecord) -> None:
        note(tx, made)
        raise Conflict("no trail, no act")

    with pytest.raises(Conflict):
        tokens.create(Attested(catalog, failing), token_hash=b"x" * 32, role="admin", domains=[])
    assert tokens.listed(catalog) == [made]
    assert len(events.listed(catalog)) == COUNT + 1
    assert events.trail(catalog) == (COUNT + 1, None)

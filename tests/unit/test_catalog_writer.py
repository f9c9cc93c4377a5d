"""The one writer: transactions shared by who waits, taken back one by one, durable together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event, exc, text

from holdfast_contract.errors import Conflict, InternalError, NoSpace, StoreFailed, UsageError
from holdfast_server.catalog import events
from holdfast_server.catalog.connection import Catalog, Tx, open_catalog
from tests.support.uploads import TickingClock


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = open_catalog("sqlite:", tmp_path, TickingClock())
    yield made
    made.close()


def note(tx: Tx, message: str) -> int:
    return events.record(tx, 1, "test", message)


def messages(catalog: Catalog) -> list[str]:
    return [event.message for event in events.listed(catalog)]


def commits(catalog: Catalog) -> list[str]:
    seen: list[str] = []
    event.listen(catalog._writer, "commit", lambda connection: seen.append("commit"))
    return seen


class Gate:
    """Holds the writer until the test lets go, so that others must wait."""

    def __init__(self, catalog: Catalog) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=catalog.write, args=(self._hold,))
        self._thread.start()
        assert self._entered.wait(10)

    def _hold(self, tx: Tx) -> None:
        self._entered.set()
        assert self._open.wait(10)

    def release(self) -> None:
        self._open.set()
        self._thread.join(10)


def until_waiting(catalog: Catalog, count: int) -> None:
    for _ in range(10_000):
        if len(catalog._waiting) == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError("nobody waits")


def test_a_work_returns_its_result_and_is_durable(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.write(lambda tx: note(tx, "one")) == 1
    catalog.close()
    again = open_catalog("sqlite:", tmp_path, TickingClock())
    assert messages(again) == ["one"]
    again.close()


def test_who_waits_shares_one_transaction(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        gate = Gate(catalog)
        results = [pool.submit(catalog.write, lambda tx, i=i: note(tx, str(i))) for i in range(8)]
        until_waiting(catalog, 8)
        seen = commits(catalog)
        gate.release()
        assert sorted(result.result(10) for result in results) == list(range(1, 9))
    assert len(seen) == 2
    assert sorted(messages(catalog)) == [str(i) for i in range(8)]


def test_a_work_that_fails_takes_back_only_itself(catalog: Catalog) -> None:
    def failing(tx: Tx) -> int:
        note(tx, "never")
        raise Conflict("no")

    with ThreadPoolExecutor(3) as pool:
        gate = Gate(catalog)
        before = pool.submit(catalog.write, lambda tx: note(tx, "before"))
        until_waiting(catalog, 1)
        bad = pool.submit(catalog.write, failing)
        until_waiting(catalog, 2)
        after = pool.submit(catalog.write, lambda tx: note(tx, "after"))
        until_waiting(catalog, 3)
        gate.release()
        with pytest.raises(Conflict):
            bad.result(10)
        assert (before.result(10), after.result(10)) == (1, 2)
    assert messages(catalog) == ["before", "after"]


def test_a_row_that_contradicts_another_fails_alone(catalog: Catalog) -> None:
    def doubled(tx: Tx) -> None:
        note(tx, "never")
        tx.execute(text("INSERT INTO outbox VALUES (1, x'00'), (1, x'00')"))

    with pytest.raises(InternalError):
        catalog.write(doubled)
    catalog.write(lambda tx: note(tx, "next"))
    assert messages(catalog) == ["next"]


@pytest.mark.parametrize(
    ("said", "raised"),
    [("database or disk is full", NoSpace), ("disk I/O error", StoreFailed)],
)
def test_a_database_that_fails_takes_everybody_back(
    catalog: Catalog, said: str, raised: type[Exception]
) -> None:
    def broken(tx: Tx) -> None:
        raise exc.OperationalError("INSERT", {}, Exception(said))

    with ThreadPoolExecutor(2) as pool:
        gate = Gate(catalog)
        good = pool.submit(catalog.write, lambda tx: note(tx, "never"))
        until_waiting(catalog, 1)
        bad = pool.submit(catalog.write, broken)
        until_waiting(catalog, 2)
        gate.release()
        for each in (good, bad):
            with pytest.raises(raised):
                each.result(10)
    assert messages(catalog) == []
    assert catalog.write(lambda tx: note(tx, "next")) == 1


def test_a_failing_commit_is_told_to_everybody_and_nothing_is_written(catalog: Catalog) -> None:
    def fail(connection: object) -> None:
        raise exc.OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(catalog._writer, "commit", fail)
    with pytest.raises(StoreFailed):
        catalog.write(lambda tx: note(tx, "never"))
    event.remove(catalog._writer, "commit", fail)
    catalog.write(lambda tx: note(tx, "next"))
    assert messages(catalog) == ["next"]


def test_readers_cannot_write(catalog: Catalog) -> None:
    with pytest.raises(StoreFailed), catalog.read() as tx:
        note(tx, "never")
    assert messages(catalog) == []


def test_a_reader_sees_one_state_while_others_write(catalog: Catalog) -> None:
    with catalog.read() as tx:
        count = text("SELECT count(*) FROM events")
        assert tx.execute(count).scalar_one() == 0
        catalog.write(lambda other: note(other, "one"))
        assert tx.execute(count).scalar_one() == 0
    assert messages(catalog) == ["one"]


def test_many_threads_write_and_nothing_is_lost(catalog: Catalog) -> None:
    with ThreadPoolExecutor(12) as pool:
        done = [pool.submit(catalog.write, lambda tx, i=i: note(tx, str(i))) for i in range(400)]
        assert sorted(each.result(60) for each in done) == list(range(1, 401))
    assert sorted(map(int, messages(catalog))) == list(range(400))


def test_writing_waits_for_the_disk(catalog: Catalog) -> None:
    with catalog._writer.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("synchronous", "journal_mode", "foreign_keys")
        }
    assert settings == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}


@pytest.mark.parametrize("url", ["postgresql://host/name", "mysql:x", "catalog.sqlite"])
def test_another_kind_of_catalog_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError):
        open_catalog(url, tmp_path, TickingClock())


def test_a_catalog_may_lie_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere.sqlite"
    open_catalog(f"sqlite:{place}", tmp_path / "data", TickingClock()).close()
    assert place.exists()


def test_what_is_no_database_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"text, and no database" * 100)
    with pytest.raises(StoreFailed):
        open_catalog("sqlite:", tmp_path, TickingClock())

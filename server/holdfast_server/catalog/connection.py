"""How the catalog is opened, read and written.

One connection writes: callers hand over a piece of work, and whoever finds the writer free runs all
pieces that wait in one transaction, each within its own savepoint. So the price of a durable commit
(one fsync) is shared, a failing piece takes back only itself, and there is never a second writer.
Readers have connections of their own and see the last commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool, StaticPool

from holdfast_contract.clock import Clock
from holdfast_contract.errors import HoldfastError, InternalError, NoSpace, StoreFailed, UsageError
from holdfast_server.catalog.migrate import migrate

Tx: TypeAlias = Connection
"""A transaction under way; who holds one is inside the catalog's consistency."""
T = TypeVar("T")

READERS_MAX: Final = 16
"""Connections that read at once; the executor that calls has about as many threads."""
WORKS_MAX: Final = 256
"""Most pieces of work of one transaction: bounds how long the first of them waits."""
_PAGES: Final = "PRAGMA cache_size = -32768"


class _Work(Generic[T]):
    """One piece of work and, once it is done, what came of it."""

    def __init__(self, run: Callable[[Tx], T]) -> None:
        self._run = run
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.is_done = False

    def attempt(self, tx: Tx) -> None:
        """Run within a savepoint; an error of the work takes back only the work."""
        savepoint = tx.begin_nested()
        try:
            self._result = [self._run(tx)]
            savepoint.commit()
        except exc.DBAPIError as error:
            # What the database refuses may concern the whole transaction (disk full): give it up.
            if not isinstance(error, exc.IntegrityError):
                raise
            savepoint.rollback()
            self.error = error
        except BaseException as error:  # noqa: BLE001  (handed to the thread that asked)
            savepoint.rollback()
            self.error = error

    def result(self) -> T:
        """Return what `run` returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


class Catalog:
    """The open catalog. Thread-safe.

    Life cycle: `open_catalog`, then `read` and `write` from any thread, `close` once at the end.
    """

    def __init__(self, writer: Engine, readers: Engine, clock: Clock) -> None:
        self._writer = writer
        self._readers = readers
        self.clock = clock
        self._waiting: list[_Work[Any]] = []
        self._condition = threading.Condition()
        self._is_writing = False

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """Give a transaction that sees one consistent state and cannot write.

        Raises:
            StoreFailed: the catalog cannot be read.
        """
        with _translated(), self._readers.connect() as connection, connection.begin():
            yield connection

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in a durable transaction and return what it returned.

        `work` may run on another thread, together with works of others, and must not block on
        anything but the database. When it raises, what it wrote is taken back.

        Raises:
            NoSpace, StoreFailed: nothing was written.
            Whatever `work` raises.
        """
        mine = _Work(work)
        with self._condition:
            self._waiting.append(mine)
            while self._is_writing and not mine.is_done:
                self._condition.wait()
            if mine.is_done:
                return self._outcome(mine)
            self._is_writing = True
            # Mine is within reach: who waits longest stands first, and every round serves some.
            batch = self._waiting[:WORKS_MAX]
            if mine not in batch:
                batch = [mine, *batch[:-1]]
            for each in batch:
                self._waiting.remove(each)
        self._run(batch)
        return self._outcome(mine)

    def _run(self, batch: list[_Work[Any]]) -> None:
        failure: BaseException | None = None
        try:
            with _translated(), self._writer.connect() as connection, connection.begin():
                for each in batch:
                    each.attempt(connection)
        except BaseException as error:
            failure = error
            if not isinstance(error, Exception):
                raise
        finally:
            with self._condition:
                for each in batch:
                    each.error = _copy(failure) if failure is not None else each.error
                    each.is_done = True
                self._is_writing = False
                self._condition.notify_all()

    @staticmethod
    def _outcome(work: _Work[T]) -> T:
        with _translated():
            return work.result()

    def close(self) -> None:
        """Close every connection; nothing may be called afterwards."""
        self._writer.dispose()
        self._readers.dispose()


def _copy(error: BaseException) -> BaseException:
    """Return an error for one of several threads: they must not share a traceback."""
    if isinstance(error, HoldfastError):
        twin = type(error)(error.message, hint=error.hint, **error.details)
        twin.__cause__ = error.__cause__
        return twin
    return InternalError(f"a transaction of the catalog broke: {type(error).__name__}")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the database raises into errors of the product."""
    try:
        yield
    except exc.IntegrityError as error:
        raise InternalError(f"catalog: a row contradicts another ({_text(error)})") from error
    except exc.DBAPIError as error:
        if "full" in _text(error):
            raise NoSpace("the catalog's file system is full") from error
        raise StoreFailed(f"the catalog does not work: {_text(error)}") from error
    except exc.TimeoutError as error:
        raise StoreFailed("the catalog is too busy", hint="try again") from error


def _text(error: exc.DBAPIError) -> str:
    return str(error.orig)[:200]


def open_catalog(url: str, data_dir: Path, clock: Clock) -> Catalog:
    """Open the catalog, made or migrated if need be.

    `url`: `sqlite:` alone is `catalog.sqlite` in `data_dir`; `sqlite:PATH` another file.

    Raises:
        UsageError: the URL names something else.
        Conflict: the catalog was written by a newer version.
        StoreFailed: it cannot be opened.
    """
    path = _sqlite_path(url, data_dir)
    location = make_url("sqlite+pysqlite://").set(database=str(path))
    with _translated():
        writer = _engine(location, is_writer=True)
        readers = _engine(location, is_writer=False)
        try:
            migrate(writer, path)
        except BaseException:
            writer.dispose()
            readers.dispose()
            raise
    return Catalog(writer, readers, clock)


def _sqlite_path(url: str, data_dir: Path) -> Path:
    scheme, _, rest = url.partition(":")
    if scheme != "sqlite":
        raise UsageError(
            f"not a catalog that this version can open: {scheme}:",
            hint="use sqlite: or sqlite:/path/of/file",
        )
    return Path(rest.removeprefix("//")) if rest else data_dir / "catalog.sqlite"


def _engine(location: URL, *, is_writer: bool) -> Engine:
    options: dict[str, Any] = {"connect_args": {"check_same_thread": False, "timeout": 30.0}}
    if is_writer:
        engine = create_engine(location, poolclass=StaticPool, **options)
    else:
        engine = create_engine(
            location,
            poolclass=QueuePool,
            pool_size=READERS_MAX,
            max_overflow=0,
            pool_timeout=30,
            **options,
        )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        # The driver's own idea of transactions would begin them too late: BEGIN is said below.
        connection.isolation_level = None
        for pragma in _pragmas(is_writer=is_writer):
            connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")

    return engine


def _pragmas(*, is_writer: bool) -> list[str]:
    if not is_writer:
        return ["PRAGMA query_only = ON"]
    # FULL: a transaction whose deletion or acknowledgement has been acted upon must not be lost.
    return [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
        _PAGES,
    ]

"""Mistakes that were made elsewhere, planted one at a time: the simulation has to find each.

Each is a context manager that puts a plausible, wrong piece of code in the place of a right one.
None of them is a switch of the product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import chain, count, islice
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from sqlalchemy import select, update

from holdfast_agent.engine.assembly import Assembly
from holdfast_agent.engine.refs import BuiltRefs
from holdfast_agent.sources.watches import Watches
from holdfast_agent.tree.page import page_ids
from holdfast_contract.errors import Conflict
from holdfast_server.api import agent_jobs
from holdfast_server.catalog import chunks, schema
from holdfast_server.catalog.batches import sorted_batches
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import CopyState
from holdfast_server.control.reported import checked_result
from holdfast_server.repository import commit as commits
from holdfast_server.repository import recovery
from holdfast_server.repository.commit import Commits, Committed
from holdfast_server.repository.commit_check import Checker
from holdfast_server.stores.incoming import Temporary
from holdfast_server.stores.local import LocalStore
from tests.simulation.hints import watches_of
from tests.simulation.installation import installed
from tests.simulation.loop import MACHINE, Machine, loop_now, pause
from tests.simulation.storm import theme_of
from tests.simulation.threads import Thread
from tests.simulation.world import world_of

Plant = Callable[[], AbstractContextManager[Any]]


@contextmanager
def acknowledge_before_the_catalog_commits() -> Iterator[None]:
    """The answer goes out while the transaction still waits for its turn."""
    plain = Commits.commit

    def commit(self: Commits, client: Any, session: str, **names: Any) -> Committed:
        data, known = self._uploaded(client, session, names["manifest"])
        if known is not None:
            return plain(self, client, session, **names)
        candidate = self._candidate(client, session, data, (names["manifest"], names["refs"]))

        def later() -> None:
            with suppress(Exception):
                plain(self, client, session, **names)

        Thread(later).start()
        return Committed(candidate.snapshot, self._parts.clock.now_ns())

    with patch.object(Commits, "commit", commit):
        yield


@contextmanager
def commit_without_revalidation() -> Iterator[None]:
    """What `have` said is still true, is it not?"""
    with (
        patch.object(Checker, "is_complete", lambda *args: True),
        patch.object(Checker, "still_complete", lambda *args: True),
    ):
        yield


@contextmanager
def parent_looked_up_outside_the_transaction() -> Iterator[None]:
    """The parent stood when the checks began, and they take their time."""
    parents: dict[bytes, Any] = {}
    plain_candidate, plain_parent = Commits._candidate, commits._usable_parent

    def candidate_of(self: Commits, *args: Any) -> Any:
        found = plain_candidate(self, *args)
        with self._parts.catalog.read() as tx:
            parents[found.snapshot] = plain_parent(tx, found)
        pause(loop_now().rng.uniform(0.1, 0.6))
        return found

    with (
        patch.object(Commits, "_candidate", candidate_of),
        patch.object(commits, "_usable_parent", lambda tx, found: parents[found.snapshot]),
        patch.object(commits, "_stands", lambda tx, snapshot: True),
    ):
        yield


@contextmanager
def no_directory_fsync() -> Iterator[None]:
    """The file is synced, its name is not."""

    def publish(self: LocalStore, temporary: str, name: Any) -> None:
        *folders, leaf = name.split("/")
        with self._folders.durable(tuple(folders)) as folder:
            try:
                self._filesystem.link(temporary, self._incoming, leaf, folder)
            except FileExistsError as exc:
                raise Conflict(f"the object exists: {name}", object=name) from exc

    with patch.object(LocalStore, "_publish", publish):
        yield


@contextmanager
def fsync_retried() -> Iterator[None]:
    """An fsync failed; the next one says that all is well."""

    def seal(self: Temporary) -> int:
        assert self._descriptor is not None
        descriptor, self._descriptor = self._descriptor, None
        try:
            for _ in range(3):
                with suppress(OSError):
                    self._disk.sync(descriptor)
                    break
            return self._disk.status(descriptor).size
        finally:
            self._disk.close(descriptor)

    with patch.object(Temporary, "seal", seal):
        yield


@contextmanager
def late_first_upload_clobbers_the_second() -> Iterator[None]:
    """The temporary file is renamed to its name, whatever lies there."""
    plain = LocalStore._publish

    def publish(self: LocalStore, temporary: str, name: Any) -> None:
        *folders, leaf = name.split("/")
        with suppress(OSError), self._folders.existing(folders) as folder:
            self._filesystem.unlink(leaf, folder)
        plain(self, temporary, name)

    with patch.object(LocalStore, "_publish", publish):
        yield


@contextmanager
def last_copy_wins() -> Iterator[None]:
    """The newest copy of a chunk is the one that is served."""
    plain = chunks.index_pack

    def index_pack(tx: Tx, origin: Any, entries: Iterable[Any]) -> None:
        entries = list(entries)
        table = schema.chunks.c
        for batch in sorted_batches({entry.chunk_id for entry in entries}):
            where = (
                table.domain_key == origin.domain_key,
                table.chunk_id.in_(batch),
                table.state == CopyState.LIVE,
            )
            tx.execute(update(schema.chunks).where(*where).values(state=CopyState.SPARE))
        plain(tx, origin, entries)

    with patch.object(chunks, "index_pack", index_pack):
        yield


@contextmanager
def id_looked_up_without_its_domain() -> Iterator[None]:
    """A chunk is a chunk."""

    def live_ids(
        tx: Tx, domain_key: int, ids: Iterable[bytes], *, epoch_min: int, epoch_max: Any = None
    ) -> set[bytes]:
        live: set[bytes] = set()
        table = schema.chunks.c
        for batch in sorted_batches(set(ids)):
            where = (table.chunk_id.in_(batch), table.state == CopyState.LIVE)
            live.update(tx.execute(select(table.chunk_id).where(*where)).scalars())
        return live

    with patch.object(chunks, "live_ids", live_ids):
        yield


@contextmanager
def refs_by_subtraction() -> Iterator[None]:
    """The parent's refs, less what stood in pages that are gone, and what is new: also where a
    file stayed."""
    dropped: defaultdict[Machine, set[bytes]] = defaultdict(set)
    plain_drop, plain_init = Assembly.drop, BuiltRefs.__init__

    def drop(self: Assembly, old: Any) -> None:
        dropped[MACHINE.get()].update(page_ids(old.known.data))
        plain_drop(self, old)

    def init(
        self: BuiltRefs, domain_id: Any, ids: Iterable[bytes], base: Any, open_spool: Any
    ) -> None:
        gone = dropped.pop(MACHINE.get(), set())
        if base is not None:
            gone &= set(base.ids())
            ids = [found for found in ids if found not in gone]
        plain_init(self, domain_id, ids, base, open_spool)

    with patch.object(Assembly, "drop", drop), patch.object(BuiltRefs, "__init__", init):
        yield


@contextmanager
def unsettled_files_trusted() -> Iterator[None]:
    """Equal times are an equal file, also within one tick."""
    with (
        patch("tests.simulation.source.is_young", lambda *args, **options: False),
        patch("holdfast_agent.sources.scan._flags", lambda *args: 0),
    ):
        yield


@contextmanager
def catalog_rolled_back_unnoticed() -> Iterator[None]:
    """A catalog that opens is the catalog."""
    with (
        patch.object(recovery, "_check_end", lambda *args: None),
        patch.object(recovery, "_follow", lambda *args: False),
    ):
        yield


@contextmanager
def report_of_a_job_stored_in_clear() -> Iterator[None]:
    """The names of what was skipped are kept with the job, as they came."""

    def checked(body: bytes) -> tuple[bytes, bytes]:
        return checked_result(body)[0], body

    with patch.object(agent_jobs, "checked_result", checked):
        yield


class _Believing:
    """A hasher that finds every content to be right."""

    def __init__(self, keys: object) -> None:
        pass

    def update(self, data: object) -> None:
        pass

    def hole(self, length: int) -> None:
        pass

    def digest(self) -> _Believing:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@contextmanager
def content_id_not_recomputed() -> Iterator[None]:
    """The chunks are authentic: so is the file made of them."""
    with ExitStack() as stack:
        for module in ("restore.execute", "jobs.verify_content"):
            name = f"holdfast_agent.{module}"
            stack.enter_context(patch(f"{name}.ContentHasher", _Believing))
            stack.enter_context(patch(f"{name}.content_id", lambda keys, data: _Believing(keys)))
        yield


@contextmanager
def hints_kept_after_an_overflow() -> Iterator[None]:
    """The queue was full for a moment; what was told before still counts."""
    with patch.object(Watches, "_lose_all", lambda self: None):
        yield


@contextmanager
def hints_kept_over_a_restart() -> Iterator[None]:
    """The agent was away for a moment only."""
    kept: dict[int, Watches] = {}

    def watches(clock: Any) -> Watches:
        found = kept.setdefault(id(clock.volume), watches_of(clock))
        queue: Any = found._queue
        if queue is not None and queue not in clock.volume.queues:
            clock.volume.queues.append(queue)
            found._busy = None
        return found

    with (
        patch("tests.simulation.stand_ins.watches_of", watches),
        patch.object(Watches, "close", lambda self: None),
    ):
        yield


@contextmanager
def hints_true_for_any_parent() -> Iterator[None]:
    """What was looked at was looked at, whether or not a snapshot came of it."""
    plain = Watches.begin

    def begin(self: Watches, parent: bytes, view: Any, *, is_known: bool) -> Any:
        self._truth = (parent, view)
        self._before |= self._now
        return plain(self, parent, view, is_known=is_known)

    def end(self: Watches, job: Any, truth: Any, *, has_read_all: bool) -> None:
        plain_end(self, job, truth or (b"", job._view), has_read_all=has_read_all)

    plain_end = Watches.end
    with patch.object(Watches, "begin", begin), patch.object(Watches, "end", end):
        yield


@contextmanager
def hints_of_a_directory_whatever_its_path() -> Iterator[None]:
    """A directory of which nothing was told is the one that it was."""
    with patch("holdfast_agent.sources.watches.hash", lambda path: 0, create=True):
        yield


class Mistake(NamedTuple):
    """A planted mistake, and where it is met."""

    plant: Plant
    theme: str
    """What the seeds are about that may find it."""
    seed: int
    """One that does."""


MISTAKES: Final[dict[str, Mistake]] = {
    plant.__name__: Mistake(plant, theme, seed)
    for plant, theme, seed in (
        (acknowledge_before_the_catalog_commits, "", 3),
        (commit_without_revalidation, "collector", 178),
        (parent_looked_up_outside_the_transaction, "collector", 122),
        (no_directory_fsync, "rollback", 2),
        (fsync_retried, "disk", 5),
        (late_first_upload_clobbers_the_second, "strangers", 11),
        (last_copy_wins, "strangers", 4),
        (id_looked_up_without_its_domain, "strangers", 4),
        (refs_by_subtraction, "", 5),
        (unsettled_files_trusted, "races", 13),
        (catalog_rolled_back_unnoticed, "rollback", 107),
        (report_of_a_job_stored_in_clear, "races", 20),
        (content_id_not_recomputed, "strangers", 39),
        (hints_kept_after_an_overflow, "hints", 54),
        (hints_kept_over_a_restart, "hints", 6),
        (hints_true_for_any_parent, "hints", 254),
        (hints_of_a_directory_whatever_its_path, "hints", 6),
    )
}


def is_found(mistake: Mistake, seed: int) -> bool:
    """Tell whether a run of this seed goes wrong with the mistake in it."""
    installed()  # made without the mistake
    with mistake.plant(), world_of(seed) as world:
        try:
            world.run()
        except Exception:
            return True
    return False


def finding_seed(mistake: Mistake, tries: int) -> int | None:
    """Return the first seed that finds a mistake: the pinned one, or others of its theme."""
    others = (seed for seed in count() if not mistake.theme or theme_of(seed) == mistake.theme)
    for seed in islice(chain([mistake.seed], others), tries):
        if is_found(mistake, seed):
            return seed
    return None

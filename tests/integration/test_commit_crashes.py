"""Every step of the write order stopped at once, restarted and verified.

A step is a call of the store or a transaction of the catalog, stopped before it or after it (its
answer is lost). Afterwards: what was acknowledged exists as row, object and journal record; what
was not is invisible or whole; and doing everything again ends where an undisturbed run ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.chunk import storage_hash
from holdfast_contract.format.manifest import snapshot_id
from holdfast_contract.ids import ClientName, ObjectName
from holdfast_server.catalog import chunks, domains, objects, outbox, snapshots, state
from holdfast_server.catalog.schema import CopyState, ObjectKind, ObjectState
from holdfast_server.catalog.snapshots import Filter
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import (
    Commit,
    DomainStored,
    IdentityStored,
    JournalRecord,
    decode_record,
)
from holdfast_server.repository.names import object_name
from holdfast_server.stores.local import LocalStore
from holdfast_server.stores.port import Store
from tests.support.crashes import SteppingStore, Steps, step_transactions
from tests.support.fetching import fetched
from tests.support.filesystem import Crash, SimulatedFileSystem
from tests.support.samples import ids, noise
from tests.support.stores import MemoryStore
from tests.support.uploads import Pod, Served, difference, domain_record, full_refs, pack_of

WANTED = ids(6)
CLIENT = ClientName("shop/db-0")


@dataclass
class Acknowledged:
    """What the server said was done."""

    domain: bool = False
    identity: bytes = b""
    packs: list[tuple[str, bytes]] = field(default_factory=list)
    snapshots: list[bytes] = field(default_factory=list)


class Site(Served):
    """A repository whose machine stops at a step."""

    def __init__(self, folder: Path, steps: Steps, open_store: Callable[[], Store]) -> None:
        self.steps = steps
        self.open_store = open_store
        super().__init__(folder)

    def attach(self) -> None:
        self.plain = self.open_store()
        self.store = SteppingStore(self.plain, self.steps)
        step_transactions(self.catalog, self.steps)

    def restart_after_crash(self, steps: Steps | None = None) -> None:
        self.catalog.close()
        self.steps = steps or Steps()
        self.start()


class Script:
    """What an agent and an administrator do; every step may be done again."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.done = Acknowledged()

    def run(self) -> None:
        self.site.repository.create_domain("shop", domain_record("shop"))
        self.done.domain = True
        pod = Pod(self.site, CLIENT)
        self.done.identity = pod.identity
        first = self.backup(pod, "J1", WANTED[:4])
        base = self.site.repository.history.get(first).refs
        second = self.backup(pod, "J2", WANTED[1:], (base, WANTED[:4]), first)
        self.site.repository.close_session("J1")
        assert self.site.repository.head(CLIENT) == (2, second)

    def backup(
        self,
        pod: Pod,
        job: str,
        wanted: list[bytes],
        base: tuple[str, list[bytes]] | None = None,
        parent: bytes = bytes(32),
    ) -> bytes:
        """Do one backup as an agent that has lost its journal would, unless it stands already."""
        repository = self.site.repository
        seq = 1 if base is None else 2
        if repository.head(CLIENT).seq >= seq:
            with self.site.catalog.read() as tx:
                (found,) = (s for s in snapshots.listed(tx, Filter(CLIENT)) if s.seq == seq)
            self.done.snapshots.append(found.id)
            return found.id
        session = pod.open(job)
        answer = repository.have(CLIENT, session.id, b"".join(wanted), 1)
        fresh = [one for one, is_there in zip(wanted, answer, strict=True) if not is_there]
        for name, each in zip(session.packs, (fresh[:2], fresh[2:]), strict=False):
            if each:
                self.done.packs.append((name, pod_pack(pod, session.id, name, each)))
        refs = full_refs(pod.domain, wanted)
        if base is not None:
            refs = difference(pod.domain, wanted, base)
        for _ in range(2):
            pod.put_refs(session, refs)
        manifest = pod.manifest(wanted, parent=parent)
        pod.put_manifest(session, manifest)
        answer_one = pod.commit(session, seq)
        self.done.snapshots.append(answer_one.snapshot)
        assert answer_one.snapshot == snapshot_id(manifest)
        assert pod.commit(session, seq) == answer_one
        return answer_one.snapshot


def pod_pack(pod: Pod, session: str, name: str, wanted: list[bytes]) -> bytes:
    """Send a pack and return its bytes."""
    data = pack_of(pod.domain, wanted)
    upload = pod.served.repository.begin_pack(pod.name, session, name, len(data))
    upload.write(data)
    upload.commit()
    return data


# --- what must hold after every crash


def journal(store: Store) -> list[JournalRecord]:
    found: list[JournalRecord] = []
    for name in store.list("journal"):
        found += [decode_record(body) for body in decode_journal(store.get(name)).records]
    return found


def verify(site: Site, done: Acknowledged) -> None:
    """Check catalog, store and journal against each other and against what was said."""
    assert site.repository.refusal == ""
    store, records = site.plain, journal(site.plain)
    with site.catalog.read() as tx:
        assert outbox.pending(tx, 10) == []
        assert state.load(tx).record_durable == state.load(tx).record_last == len(records)
    check_names(site, store)
    if done.domain:
        assert any(isinstance(record, DomainStored) for record in records)
        assert site.repository.domain_record("shop") == domain_record("shop")
    if done.identity:
        said = {record.identity for record in records if isinstance(record, IdentityStored)}
        current = site.repository.current_identity(CLIENT)
        assert current is not None and current.identity == done.identity
        assert said == {done.identity}
    if done.domain:
        check_chunks(site, store, done)
    check_snapshots(site, records, done)


def check_names(site: Site, store: Store) -> None:
    """No byte lies under a name that is not registered; what counts is there and right."""
    for name in store.list():
        folder, _, ulid = name.rpartition("/")
        if folder == "journal":
            continue
        with site.catalog.read() as tx:
            row = objects.find(tx, ulid)
        assert row is not None, f"{name} was never registered"
        if row.state is ObjectState.STORED:
            assert row.length == len(store.get(name))


def check_chunks(site: Site, store: Store, done: Acknowledged) -> None:
    """Every live chunk's bytes are what was sent; every acknowledged pack is indexed."""
    domain = domains.get(site.catalog, "shop")
    with site.catalog.read() as tx:
        known = chunks.copies(tx, domain.key, WANTED)
    for copies in known.values():
        assert sum(copy.state is CopyState.LIVE for copy in copies) == 1
        for copy in copies:
            name = object_name(ObjectKind.PACK, domain.domain, copy.ulid)
            sealed = store.get(name, copy.offset, copy.length)
            assert storage_hash(sealed) == copy.storage_hash
    indexed = {copy.ulid for copies in known.values() for copy in copies}
    for ulid, data in done.packs:
        assert ulid in indexed
        assert store.get(object_name(ObjectKind.PACK, domain.domain, ulid)) == data


def check_snapshots(site: Site, records: list[JournalRecord], done: Acknowledged) -> None:
    """Row, objects and record of a snapshot come together; what was acknowledged is there."""
    said = [record.snapshot for record in records if isinstance(record, Commit)]
    with site.catalog.read() as tx:
        shown = snapshots.listed(tx, Filter())
    assert [snapshot.id for snapshot in shown] == said
    assert set(done.snapshots) <= set(said)
    for snapshot in shown:
        assert snapshot_id(site.repository.manifest(snapshot.id)) == snapshot.id
        wanted = list(site.repository._references.ids(snapshot.domain, snapshot.refs_key))
        answers = fetched(site.repository.open_grant("shop", [snapshot.id]), wanted)
        assert [answer.status for answer in answers] == [0] * len(wanted)


# --- the crashes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the steps of a run without a crash."""
    steps = Steps()
    memory = MemoryStore()
    site = Site(tmp_path_factory.mktemp("whole"), steps, lambda: memory)
    script = Script(site)
    script.run()
    taken = list(steps.taken)
    verify(site, script.done)
    site.stop()
    return taken


LANES = 6


@pytest.mark.parametrize("lane", range(LANES))
def test_every_step_can_be_the_last(undisturbed: list[str], tmp_path: Path, lane: int) -> None:
    assert len(undisturbed) > 100
    for stop_at in range(lane + 1, len(undisturbed) + 1, LANES):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        memory = MemoryStore()
        crash_and_resume(folder, stop_at, partial(restarted, memory))
        shutil.rmtree(folder)


def restarted(memory: MemoryStore) -> MemoryStore:
    memory.crash()
    return memory


@pytest.mark.parametrize("lane", range(LANES))
def test_every_step_can_be_the_last_on_a_disk_that_forgets(
    undisturbed: list[str], tmp_path: Path, lane: int
) -> None:
    # A third of the points: the disk costs more, and the memory store has had them all.
    for stop_at in range(lane + 1, len(undisturbed) + 1, 3 * LANES):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        disk = SimulatedFileSystem()

        def open_store(disk: SimulatedFileSystem = disk) -> LocalStore:
            disk.crash()
            return LocalStore.open("/", disk)

        crash_and_resume(folder, stop_at, open_store)
        shutil.rmtree(folder)


def crash_and_resume(folder: Path, stop_at: int, open_store: Callable[[], Store]) -> None:
    steps = Steps(stop_at)
    try:
        site = Site(folder, steps, open_store)
    except Crash:
        # It stopped while it started for the first time.
        site = Site(folder, Steps(), open_store)
        verify(site, Acknowledged())
    script = Script(site)
    if not steps.is_down:
        with pytest.raises(Crash):
            script.run()
        assert steps.is_down
        site.restart_after_crash()
        verify(site, script.done)
    again = Script(site)
    again.run()
    verify(site, again.done)
    assert set(script.done.snapshots) <= set(again.done.snapshots)
    assert site.repository.history.count() == 2
    site.stop()


def test_a_crash_while_it_recovers_is_no_worse(tmp_path: Path, undisturbed: list[str]) -> None:
    """Stop at a commit's journal record, then at each step of the start that follows."""
    at = max(i for i, name in enumerate(undisturbed, 1) if name == "after put journal")
    for second in range(1, 12):
        folder = tmp_path / str(second)
        folder.mkdir()
        memory = MemoryStore()
        site = Site(folder, Steps(at), partial(restarted, memory))
        script = Script(site)
        with pytest.raises(Crash):
            script.run()
        try:
            site.restart_after_crash(Steps(second))
        except Crash:
            site.restart_after_crash()
        site.steps.stop_at = None
        verify(site, script.done)
        assert site.repository.history.count() == 2
        site.stop()


def test_the_verifier_finds_what_is_missing(tmp_path: Path) -> None:
    """A planted loss of each kind is found."""
    memory = MemoryStore()
    site = Site(tmp_path, Steps(), lambda: memory)
    script = Script(site)
    script.run()
    whole = dict(memory.objects)
    for name in list(whole):
        del memory.objects[name]
        with pytest.raises((AssertionError, HoldfastError)):
            verify(site, script.done)
        memory.objects = dict(whole)
    memory.objects[ObjectName(f"packs/{noise('d', 16).hex()}/01JD0000000000000000000000")] = b"x"
    with pytest.raises(AssertionError, match="never registered"):
        verify(site, script.done)
    memory.objects = dict(whole)
    verify(site, script.done)
    site.stop()

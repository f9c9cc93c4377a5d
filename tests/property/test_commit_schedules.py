"""Two pods, damage and restarts in any order: what stands is whole, or says that it is not.

After every step: each shown snapshot's chunks are live with the bytes that were sent, or known to
be damaged; one that was committed while a chunk was damaged is called incomplete; a client's
history is one chain.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast_contract.errors import MissingChunks
from holdfast_contract.format.chunk import storage_hash
from holdfast_contract.ids import ObjectName
from holdfast_server.catalog import chunks, domains
from holdfast_server.catalog.chunks import Copy
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.catalog.snapshots import Filter
from tests.support.fetching import fetched
from tests.support.samples import ids
from tests.support.uploads import Pod, Served, difference

CHUNKS = ids(3)
PODS = st.integers(0, 1)
NEEDS = st.sets(st.integers(0, 2), min_size=1).map(lambda found: [CHUNKS[n] for n in sorted(found)])


class Schedules(RuleBasedStateMachine):
    """What agents, a bad disk and an unlucky server do to one repository."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.served = Served(Path(self.folder.name))
        self.served.domain()
        self.pods = [self.served.pod(f"shop/db-{number}") for number in range(2)]
        self.salt = 0
        self.acknowledged: dict[bytes, str] = {}

    @initialize()
    def begin(self) -> None:
        self.key = domains.get(self.served.catalog, "shop").key
        for pod in self.pods:
            self.acknowledged[pod.backup(CHUNKS)] = "complete"

    def teardown(self) -> None:
        self.served.stop()
        self.folder.cleanup()

    # --- steps

    @rule(number=PODS, wanted=NEEDS, uses_parent=st.booleans(), is_honest=st.booleans())
    def back_up(self, number: int, wanted: list[bytes], uses_parent: bool, is_honest: bool) -> None:
        """Commit; whether the agent sent what was missing is up to it."""
        pod = self.pods[number]
        session = pod.open()
        answer = self.served.repository.have(pod.name, session.id, b"".join(wanted), 1)
        fresh = [one for one, is_live in zip(wanted, answer, strict=True) if not is_live]
        if fresh and is_honest:
            self.salt += 1
            pod.send(fresh, session, salt=str(self.salt))
        parent = self.served.repository.parent_for(pod.name) if uses_parent else None
        refs = b""
        if parent is not None:
            record = self.served.repository.history.get(parent)
            if record.refs_depth < 15:
                before = list(self.served.repository._references.ids(pod.domain, record.refs_key))
                refs = difference(pod.domain, wanted, (record.refs, before))
        head = self.served.repository.head(pod.name)
        try:
            done = pod.finish(session, wanted, refs, parent=parent or bytes(32))
        except MissingChunks as refused:
            assert fresh and not is_honest
            named = {*refused.details["missing"], *refused.details["damaged"]}  # type: ignore[misc]
            assert named == {one.hex() for one in fresh}
            assert self.served.repository.head(pod.name) == head
            self._incomplete(pod, wanted, fresh)
            return
        assert not fresh or is_honest
        self.acknowledged[done.snapshot] = "complete"

    def _incomplete(self, pod: Pod, wanted: list[bytes], fresh: list[bytes]) -> None:
        """Commit as incomplete: stands only where all that is not live is damaged."""
        known = self._copies()
        damaged = [one for one in fresh if known.get(one)]
        with suppress(MissingChunks):
            done = pod.finish(pod.open(), wanted, result="incomplete")
            assert damaged == fresh
            self.acknowledged[done.snapshot] = "incomplete"
            return
        assert damaged != fresh

    @rule(number=PODS, wanted=NEEDS)
    def send_only(self, number: int, wanted: list[bytes]) -> None:
        self.salt += 1
        pod = self.pods[number]
        pod.send(wanted, pod.open(), salt=str(self.salt))

    @rule(which=st.integers(0, 2), number=PODS)
    def harm_and_report(self, which: int, number: int) -> None:
        """A bit of the live copy flips, and a pod finds out."""
        live = [
            copy for copy in self._copies().get(CHUNKS[which], []) if copy.state is CopyState.LIVE
        ]
        if not live:
            return
        copy, objects = live[0], self.served.memory.objects
        name = self._place(copy)
        data = bytearray(objects[name])
        data[copy.offset + 65] ^= 1
        objects[name] = bytes(data)
        said = self.served.repository.report_damage(
            "shop",
            self.pods[number].name,
            chunk=copy.chunk_id,
            object_name=name,
            offset=copy.offset,
            reason="flipped",
        )
        assert said == "damaged"

    @rule(number=PODS)
    def restart(self, number: int) -> None:
        self.served.restart()

    # --- what always holds

    def _copies(self) -> dict[bytes, list[Copy]]:
        with self.served.catalog.read() as tx:
            return chunks.copies(tx, self.key, CHUNKS)

    def _place(self, copy: Copy) -> ObjectName:
        return self.pods[0].place(ObjectKind.PACK, copy.ulid)

    @invariant()
    def live_copies_have_their_bytes(self) -> None:
        for copies in self._copies().values():
            states = [copy.state for copy in copies]
            assert states.count(CopyState.LIVE) + states.count(CopyState.DAMAGED) == 1
            for copy in copies:
                if copy.state is CopyState.LIVE:
                    data = self.served.memory.objects[self._place(copy)]
                    sealed = data[copy.offset : copy.offset + copy.length]
                    assert storage_hash(sealed) == copy.storage_hash

    @invariant()
    def what_was_acknowledged_stands_in_one_chain(self) -> None:
        shown = self.served.repository.snapshots(Filter())
        assert {found.id: found.result for found in shown} == self.acknowledged
        for pod in self.pods:
            own = [found for found in shown if found.client == pod.name]
            assert [found.seq for found in own] == list(range(1, len(own) + 1))
            assert [found.prev for found in own][1:] == [found.id for found in own][:-1]

    @invariant()
    def every_snapshot_is_served_or_says_what_is_damaged(self) -> None:
        for found in self.served.repository.snapshots(Filter()):
            repository = self.served.repository
            wanted = list(repository._references.ids(found.domain, found.refs_key))
            answers = fetched(repository.open_grant("shop", [found.id]), wanted)
            lost = [answer.chunk_id for answer in answers if answer.status == 2]
            assert all(answer.status in (0, 2) for answer in answers)
            assert repository.damaged_of([found.id]) == lost


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=25, stateful_step_count=14, deadline=None)

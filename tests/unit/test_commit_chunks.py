"""What a commit needs to be there, and what may be damaged or leave meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_server.catalog.schema import CopyState
from holdfast_server.repository import commit as commit_module
from tests.support.commits import from_hex, mark, missing, sent
from tests.support.samples import ids
from tests.support.uploads import Pod, Served, full_refs


def test_missing_chunks_are_named_and_the_next_round_stands(served: Served, pod: Pod) -> None:
    wanted = ids(4)
    session = pod.open()
    pod.send(wanted[1:3], session)
    found = missing(pod, session, wanted)
    assert found.details == {
        "missing": [wanted[0].hex(), wanted[3].hex()],
        "damaged": [],
        "next": "",
    }
    assert served.repository.missing_page(pod.name, session.id) == (
        [wanted[0], wanted[3]],
        [],
        b"",
    )
    assert served.repository.history.count() == 0
    pod.send([wanted[0], wanted[3]], session)
    refs, manifest = (
        served.repository.more_names(pod.name, session.id, kind, 1)[0]
        for kind in ("refs", "manifests")
    )
    pod.put_refs(session, full_refs(pod.domain, wanted), refs)
    pod.put_manifest(session, pod.manifest(wanted), manifest)
    done = served.repository.commit(pod.name, session.id, manifest=manifest, refs=refs, seq=1)
    assert served.repository.head(pod.name).snapshot == done.snapshot


def test_the_refused_commit_itself_stands_once_the_chunks_are_there(pod: Pod) -> None:
    session = pod.open()
    missing(pod, session, ids(2))
    pod.send(ids(2), session)
    assert pod.commit(session, 1).snapshot == pod.served.repository.head(pod.name).snapshot


def test_many_missing_chunks_come_in_pages(served: Served, pod: Pod) -> None:
    wanted = ids(2300)
    session = pod.open()
    pod.send(wanted[::7], session)
    for chunk_id in wanted[::14]:
        mark(pod, chunk_id, CopyState.DAMAGED)
    details = missing(pod, session, wanted).details
    gone, bad = (from_hex(details[name]) for name in ("missing", "damaged"))
    after = bytes.fromhex(str(details["next"]))
    pages = 1
    while after:
        page = served.repository.missing_page(pod.name, session.id, after)
        assert len(page.missing) + len(page.damaged) <= 1000
        gone, bad, after, pages = gone + page.missing, bad + page.damaged, page.next, pages + 1
    assert bad == wanted[::14]
    assert gone == [one for index, one in enumerate(wanted) if index % 7]
    assert pages == 3


def test_another_domains_chunks_are_missing(served: Served, pod: Pod) -> None:
    served.domain("attic")
    wanted = ids(2)
    served.pod("attic/db-0").backup(wanted)
    found = missing(pod, pod.open(), wanted)
    assert found.details["missing"] == [one.hex() for one in wanted]


def test_a_siblings_chunks_are_shared(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    served.pod("shop/db-1").backup(wanted)
    pod.finish(pod.open(), wanted)


@pytest.mark.parametrize("state", [CopyState.CONDEMNED, CopyState.DELETING])
def test_condemned_chunks_are_missing(pod: Pod, state: CopyState) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    mark(pod, wanted[1], state)
    assert missing(pod, session, wanted).details["missing"] == [wanted[1].hex()]


def test_copies_of_epochs_that_its_readers_lack_are_missing(served: Served, pod: Pod) -> None:
    one, two = ids(2)
    session = pod.open()
    pod.send([one], session, epoch=1)
    pod.send([two], session, epoch=2)
    found = missing(pod, session, [one, two], epoch_min=2, epoch_new=2)
    assert found.details["missing"] == [one.hex()]
    pod.send([one], session, epoch=2, salt="again")
    assert pod.commit(session, 1)


# --- damage


def test_a_snapshot_with_damage_stands_only_as_incomplete(served: Served, pod: Pod) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    mark(pod, wanted[2], CopyState.DAMAGED)
    found = missing(pod, session, wanted)
    assert (found.details["missing"], found.details["damaged"]) == ([], [wanted[2].hex()])
    for result in ("skips", "complete"):
        assert missing(pod, pod.open(), wanted, result=result).details["damaged"]
    done = pod.finish(pod.open(), wanted, result="incomplete")
    assert served.repository.history.get(done.snapshot).result == "incomplete"


def test_incomplete_does_not_excuse_what_is_missing(pod: Pod) -> None:
    wanted = ids(3)
    session = pod.open()
    pod.send(wanted[:2], session)
    mark(pod, wanted[0], CopyState.DAMAGED)
    found = missing(pod, session, wanted, result="incomplete")
    assert found.details["missing"] == [wanted[2].hex()]


def test_what_is_shared_with_the_parent_may_still_be_damaged(pod: Pod) -> None:
    wanted = ids(4)
    parent = pod.backup(wanted)
    mark(pod, wanted[1], CopyState.DAMAGED)
    found = missing(pod, pod.open(), wanted, parent=parent)
    assert found.details["damaged"] == [wanted[1].hex()]


def test_damage_that_was_healed_is_no_obstacle(pod: Pod) -> None:
    wanted = ids(2)
    session = sent(pod, wanted)
    mark(pod, wanted[0], CopyState.DAMAGED)
    pod.send([wanted[0]], session, salt="again")
    pod.finish(session, wanted)


# --- what leaves between check and transaction


@pytest.mark.parametrize("state", [CopyState.CONDEMNED, CopyState.DAMAGED])
def test_what_stops_being_live_between_check_and_transaction_is_seen(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, state: CopyState
) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    attempt = commit_module.Commits._attempt

    def left(*arguments: Any) -> Any:
        monkeypatch.setattr(commit_module.Commits, "_attempt", attempt)
        mark(pod, wanted[1], state)
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", left)
    details = missing(pod, session, wanted).details
    key = "missing" if state is CopyState.CONDEMNED else "damaged"
    assert details[key] == [wanted[1].hex()]


def test_what_leaves_elsewhere_is_no_obstacle(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(3)
    other = ids(3, "other")
    served.pod("shop/db-1").backup(other)
    session = sent(pod, wanted)
    attempt = commit_module.Commits._attempt
    left = iter(other)

    def moving(*arguments: Any) -> Any:
        for chunk_id in left:
            mark(pod, chunk_id, CopyState.DAMAGED)
            break
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", moving)
    pod.finish(session, wanted)

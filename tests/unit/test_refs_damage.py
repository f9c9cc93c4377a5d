"""A list of chunks that is spoiled in the store: backups go on, data stays readable, it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast_contract.errors import MissingChunks
from holdfast_contract.ids import ObjectName
from holdfast_server.catalog import events
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.commit import Committed
from holdfast_server.repository.reading import FetchStatus
from tests.support.fetching import fetched
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, difference, sealed

Harm = Callable[[dict[ObjectName, bytes], ObjectName], None]


def flip(objects: dict[ObjectName, bytes], name: ObjectName) -> None:
    data = bytearray(objects[name])
    data[len(data) // 2] ^= 1
    objects[name] = bytes(data)


def cut(objects: dict[ObjectName, bytes], name: ObjectName) -> None:
    objects[name] = objects[name][: len(objects[name]) // 2]


def lose(objects: dict[ObjectName, bytes], name: ObjectName) -> None:
    del objects[name]


HARMS = [flip, cut, lose]


def harmed(pod: Pod, snapshot: bytes, harm: Harm) -> ObjectName:
    """Spoil the refs object of a snapshot and return its name."""
    name = pod.place(ObjectKind.REFS, pod.served.repository.history.get(snapshot).refs)
    harm(pod.served.memory.objects, name)
    return name


def on_base(pod: Pod, wanted: list[bytes], parent: bytes, before: list[bytes]) -> Committed:
    """Commit `wanted` with refs that are a difference to those of `parent`."""
    session = pod.open()
    pod.send([one for one in wanted if one not in before] or wanted[:1], session)
    base = (pod.served.repository.history.get(parent).refs, before)
    return pod.finish(session, wanted, difference(pod.domain, wanted, base), parent=parent)


def told(served: Served) -> list[str]:
    return [
        str(event.details["object"])
        for event in events.listed(served.catalog)
        if event.kind == "refs-damaged"
    ]


@pytest.mark.parametrize("harm", HARMS)
def test_a_full_list_commits_although_the_parents_list_is_damaged(
    served: Served, pod: Pod, harm: Harm
) -> None:
    parent = pod.backup(ids(3))
    name = harmed(pod, parent, harm)
    made = pod.backup(ids(4), parent=parent)
    assert served.repository.history.get(made).seq == 2
    assert told(served) == [name]


def test_what_the_damaged_list_shared_is_looked_up_all_the_same(served: Served, pod: Pod) -> None:
    parent = pod.backup(ids(3))
    harmed(pod, parent, flip)
    session = pod.open()
    never_sent = noise("never sent")
    with pytest.raises(MissingChunks) as refused:
        pod.finish(session, sorted([*ids(3), never_sent]), parent=parent)
    assert refused.value.details["missing"] == [never_sent.hex()]


@pytest.mark.parametrize("harm", HARMS)
def test_a_difference_to_a_damaged_list_is_asked_for_as_a_full_one(
    served: Served, pod: Pod, harm: Harm
) -> None:
    first = pod.backup(ids(3))
    second = on_base(pod, ids(4), first, ids(3)).snapshot
    name = harmed(pod, first, harm)
    # The damage lies two lists below: whoever reads through it finds it.
    for _ in range(2):
        with pytest.raises(MissingChunks) as refused:
            on_base(pod, ids(6), second, ids(4))
        assert name in refused.value.message
        assert (refused.value.details["missing"], refused.value.details["damaged"]) == ([], [])
    assert served.repository.refs_for_differences(second) == "", "no base for the next order"
    made = pod.backup(ids(6), parent=second)
    assert served.repository.refs_for_differences(made) != ""
    assert told(served) == [name], "said once"


def test_a_list_that_was_found_broken_is_no_base_even_without_a_change(
    served: Served, pod: Pod
) -> None:
    first = pod.backup(ids(3))
    harmed(pod, first, flip)
    served.repository.damaged_count([first])
    fetched(served.repository.open_grant("shop", [first]), ids(1))
    with pytest.raises(MissingChunks):
        on_base(pod, ids(3), first, ids(3))


@pytest.mark.parametrize("harm", HARMS)
def test_what_it_lists_can_be_read_and_other_domains_cannot(
    served: Served, pod: Pod, harm: Harm
) -> None:
    served.domain("attic")
    other = served.pod("attic/db-0")
    foreign = [noise("foreign")]
    other.backup(foreign)
    first = pod.backup(ids(3))
    harmed(pod, first, harm)
    asked = [*ids(3), *foreign, noise("nowhere")]
    found = fetched(served.repository.open_grant("shop", [first]), asked)
    assert [one.status for one in found] == [FetchStatus.HERE] * 3 + [FetchStatus.ABSENT] * 2
    assert [bytes(one.data) for one in found[:3]] == [sealed(one) for one in ids(3)]


def test_damaged_chunks_are_counted_rather_once_too_often(served: Served, pod: Pod) -> None:
    first = pod.backup(ids(3))
    (found,) = fetched(served.repository.open_grant("shop", [first]), ids(1))
    data = bytearray(served.memory.objects[ObjectName(found.object)])
    data[found.offset + 70] ^= 1
    served.memory.objects[ObjectName(found.object)] = bytes(data)
    served.repository.report_damage(
        "shop", "x", chunk=ids(1)[0], object_name=found.object, offset=found.offset, reason=""
    )
    served.restart()
    harmed(pod, first, flip)
    assert served.repository.damaged_of([first]) == ids(1)


def test_a_list_that_was_put_back_is_believed_again(served: Served, pod: Pod) -> None:
    first = pod.backup(ids(3))
    name = pod.place(ObjectKind.REFS, served.repository.history.get(first).refs)
    sound = served.memory.objects[name]
    flip(served.memory.objects, name)
    fetched(served.repository.open_grant("shop", [first]), ids(1))
    assert served.repository.refs_for_differences(first) == ""
    served.memory.objects[name] = sound
    fetched(served.repository.open_grant("shop", [first]), ids(1))
    assert served.repository.refs_for_differences(first) != ""
    assert on_base(pod, ids(4), first, ids(3)).snapshot

"""How snapshots are listed, named and looked at; and what a quick look finds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import Ambiguous, Damaged, InvalidInput, NotFound
from holdfast_contract.format.manifest import dataset_id
from holdfast_contract.ids import ClientName
from holdfast_server.catalog import outbox
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import ObjectKind, SnapshotState
from holdfast_server.catalog.schema import snapshots as snapshots_table
from holdfast_server.catalog.snapshots import Filter
from holdfast_server.repository import snapshot_references
from holdfast_server.repository.history import is_standing
from holdfast_server.repository.journal_records import Pin, encode_record
from holdfast_server.repository.snapshot_references import parse_moment
from tests.support.fetching import fetched
from tests.support.samples import ids, noise
from tests.support.uploads import Served

WANTED = ids(2)
DAY = 86_400 * 10**9


EVERY = Filter()


def listed(served: Served, wanted: Filter = EVERY, **more: Any) -> list[bytes]:
    return [found.id for found in served.repository.snapshots(wanted, **more)]


def trash(served: Served, snapshot: bytes) -> None:
    def work(tx: Tx) -> None:
        query = snapshots_table.update().where(snapshots_table.c.snapshot == snapshot)
        tx.execute(query.values(state=SnapshotState.TRASHED))

    served.catalog.write(work)


# --- lists


def test_snapshots_are_listed_oldest_first_and_in_pages(served: Served) -> None:
    pods = [served.pod("shop/a"), served.pod("shop/b")]
    made = [pods[n % 2].backup(WANTED) for n in range(5)]
    assert listed(served) == made
    first = served.repository.snapshots(Filter(), limit=2)
    assert [found.id for found in first] == made[:2]
    assert listed(served, after=first[-1].number) == made[2:]
    assert listed(served, Filter(client=ClientName("shop/a"))) == made[::2]
    assert listed(served, Filter(client=ClientName("shop/none"))) == []


def test_times_limit_a_list_at_both_ends(served: Served) -> None:
    pod = served.pod()
    made = [pod.backup(WANTED) for _ in range(4)]
    times = [served.repository.history.get(one).time_ns for one in made]
    assert listed(served, Filter(since_ns=times[1], until_ns=times[2])) == made[1:3]
    assert listed(served, Filter(since_ns=times[3] + 1)) == []


def test_the_latest_of_each_client(served: Served) -> None:
    pods = [served.pod("shop/a"), served.pod("shop/b")]
    made = [pods[n // 3].backup(WANTED, tags=(f"t{n % 2}",)) for n in range(6)]
    assert listed(served, Filter(latest=1)) == [made[2], made[5]]
    assert listed(served, Filter(latest=2)) == [*made[1:3], *made[4:]]
    assert listed(served, Filter(latest=1), tag="t0") == [made[2], made[4]]
    assert listed(served, Filter(latest=2, client=ClientName("shop/b")), tag="t1") == [
        made[3],
        made[5],
    ]


def test_tags_are_listed_in_pages(served: Served) -> None:
    pod = served.pod()
    made = [pod.backup(WANTED, tags=("odd",) if n % 2 else ()) for n in range(7)]
    first = served.repository.snapshots(Filter(), tag="odd", limit=2)
    assert [found.id for found in first] == [made[1], made[3]]
    assert listed(served, tag="odd", after=first[-1].number) == [made[5]]
    assert listed(served, tag="none") == []


def test_what_is_in_the_trash_is_not_listed_and_its_manifest_is_kept(served: Served) -> None:
    pod = served.pod()
    first, second = pod.backup(WANTED), pod.backup(WANTED)
    trash(served, second)
    assert listed(served) == [first]
    assert served.repository.head(pod.name).snapshot == second
    assert served.repository.manifest(second)
    assert not is_standing(served.repository.history.get(second))
    assert served.repository.parent_for(pod.name) == first
    with pytest.raises(NotFound):
        served.repository.open_grant("shop", [second])
    newest = served.repository.history.newest_of([pod.name, ClientName("shop/none")])
    assert newest == {pod.name: first}


def test_a_parent_of_the_same_dataset_goes_before_a_newer_one(served: Served) -> None:
    pod = served.pod()
    mine, other = dataset_id([b"/a"], []), dataset_id([b"/b"], [])
    assert served.repository.parent_for(pod.name) is None
    first = pod.backup(WANTED, dataset=mine)
    second = pod.backup(WANTED, dataset=other)
    assert served.repository.parent_for(pod.name, mine) == first
    assert served.repository.parent_for(pod.name, dataset_id([b"/c"], [])) == second
    assert served.repository.parent_for(pod.name) == second


# --- names


def test_a_prefix_names_a_snapshot(served: Served) -> None:
    pod = served.pod()
    snapshot = pod.backup(WANTED)
    pod.backup(WANTED)
    text = snapshot.hex()
    for length in (6, 7, 31, 64):
        assert served.repository.resolve(text[:length]).id == snapshot
    assert served.repository.resolve(text[:8].upper()).id == snapshot
    for wrong in (text[:5], text + "0", "xyzxyz", "", "latests"):
        with pytest.raises(InvalidInput):
            served.repository.resolve(wrong)
    with pytest.raises(NotFound):
        served.repository.resolve("0" * 64)


def test_an_ambiguous_prefix_names_the_candidates(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = served.pod()
    made = sorted(pod.backup(WANTED) for _ in range(3))
    monkeypatch.setattr(snapshot_references, "_PREFIX", re.compile("[0-9a-f]{0,64}"))
    with pytest.raises(Ambiguous) as caught:
        served.repository.resolve("")
    candidates = caught.value.details["candidates"]
    assert isinstance(candidates, list)
    assert [one[:64] for one in candidates] == [one.hex() for one in made]


def test_a_client_and_a_time_name_the_newest_until_then(served: Served) -> None:
    pod = served.pod()
    made = [pod.backup(WANTED) for _ in range(3)]
    times = [served.repository.history.get(one).time_ns for one in made]
    resolve = served.repository.resolve
    assert resolve(f"{pod.name}@latest").id == made[2]
    for snapshot, time_ns in zip(made, times, strict=True):
        assert resolve(f"{pod.name}@{rfc3339(time_ns)}").id == snapshot
    assert resolve(f"{pod.name}@{rfc3339(times[2] + DAY)}").id == made[2]
    assert resolve(f"{pod.name}@{rfc3339(times[2])[:10]}").id == made[2]
    with pytest.raises(NotFound) as caught:
        resolve(f"{pod.name}@{rfc3339(times[0] - 1_000_000)}")
    candidates = caught.value.details["candidates"]
    assert isinstance(candidates, list) and len(candidates) == 3
    with pytest.raises(NotFound):
        resolve("shop/none@latest")
    for wrong in ("shop@latest", f"{pod.name}@", f"{pod.name}@yesterday", f"{pod.name}@2027-13-01"):
        with pytest.raises(InvalidInput):
            resolve(wrong)


def test_latest_alone_needs_one_client(served: Served) -> None:
    with pytest.raises(NotFound):
        served.repository.resolve("latest")
    pod = served.pod()
    snapshot = pod.backup(WANTED)
    served.pod("shop/empty")
    assert served.repository.resolve("latest").id == snapshot
    served.pod("shop/second").backup(WANTED)
    with pytest.raises(Ambiguous) as caught:
        served.repository.resolve("latest")
    assert caught.value.details["candidates"] == ["shop/db-0@latest", "shop/second@latest"]


@pytest.mark.parametrize(
    ("text", "first", "length"),
    [
        ("1970-01-01", 0, DAY),
        ("1970-01-02T00:00:00Z", DAY, 10**9),
        ("1970-01-01T01:00:00+01:00", 0, 10**9),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000, 10**8),
        ("1970-01-01T00:00:00.000001Z", 1_000, 1_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456_789, 1),
        ("1969-12-31T23:59:59.5Z", -500_000_000, 10**8),
        ("2027-01-15T08:00:00.001000Z", 1_800_000_000_001_000_000, 1_000),
    ],
)
def test_a_moment_is_as_long_as_its_last_digit(text: str, first: int, length: int) -> None:
    assert parse_moment(text) == (first, first + length - 1)


@pytest.mark.parametrize("text", ["", "now", "2027-01-15T08:00:00", "08:00", "2027", "20270115"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_moment(text)


# --- manifests


def test_a_spoiled_or_absent_manifest_is_damage(served: Served) -> None:
    pod = served.pod()
    snapshot = pod.backup(WANTED)
    name = pod.place(ObjectKind.MANIFEST, served.repository.history.get(snapshot).manifest)
    whole = served.memory.objects[name]
    for bit in (0, 100, 8 * len(whole) - 1):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        served.memory.objects[name] = bytes(changed)
        with pytest.raises(Damaged) as caught:
            served.repository.manifest(snapshot)
        assert caught.value.details["object"] == name
    del served.memory.objects[name]
    with pytest.raises(Damaged):
        served.repository.manifest(snapshot)
    with pytest.raises(NotFound):
        served.repository.manifest(noise("none"))


# --- a quick look


def found(served: Served) -> dict[str, str]:
    return {finding.check: finding.state for finding in served.repository.check()}


SOUND = {"store": "ok", "journal": "ok", "snapshots": "ok", "damage": "ok", "clock": "ok"}


def test_a_sound_repository_is_called_so(served: Served) -> None:
    served.pod().backup(WANTED)
    assert found(served) == SOUND


def test_a_quick_look_finds_what_is_wrong(served: Served) -> None:
    pod = served.pod()
    snapshot = pod.backup(WANTED)
    record = served.repository.history.get(snapshot)
    objects = served.memory.objects
    for name in (
        pod.place(ObjectKind.MANIFEST, record.manifest),
        pod.place(ObjectKind.REFS, record.refs),
    ):
        whole = objects[name]
        objects[name] = whole[:-1]
        assert found(served) == SOUND | {"snapshots": "fail"}
        del objects[name]
        assert found(served) == SOUND | {"snapshots": "fail"}
        objects[name] = whole
    last = max(name for name in objects if name.startswith("journal/"))
    whole = objects.pop(last)
    assert found(served) == SOUND | {"journal": "fail"}
    objects[last] = whole[:-1] + b"?"
    assert found(served) == SOUND | {"journal": "fail"}
    objects[last] = whole
    body = encode_record(Pin(time_ns=1, domain=pod.domain, snapshot=snapshot))
    served.catalog.write(lambda tx: outbox.append(tx, body))
    assert found(served) == SOUND | {"journal": "warn"}
    served.memory.capacity = sum(map(len, objects.values())) + 1000
    assert found(served)["store"] == "fail"
    served.memory.capacity += 24 << 20
    assert found(served)["store"] == "warn"


def test_known_damage_is_a_warning(served: Served) -> None:
    pod = served.pod()
    snapshot = pod.backup(WANTED)
    (pack,) = (name for name in served.memory.objects if name.startswith("packs/"))
    del served.memory.objects[pack]
    fetched(served.repository.open_grant("shop", [snapshot]), WANTED)
    assert found(served)["damage"] == "warn"

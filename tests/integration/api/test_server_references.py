"""References as the server chooses and grants them, and first backups one after the other."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.manifest import dataset_id
from holdfast_contract.protocol.control import (
    Backup,
    Failure,
    JobState,
    Reference,
)
from holdfast_server.catalog import schema
from holdfast_server.catalog.schema import SnapshotState
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.samples import noise
from tests.support.uploads import Pod, Served, domain_record

CONTENT, TREE = sorted(noise(f"reference {number}") for number in range(2))
OTHER_PATHS = noise("other paths", 16)


def stored(pod: Pod, job: str = "", **changes: Any) -> bytes:
    """Commit a snapshot that needs a chunk of content and one of a tree."""
    session = pod.open(job)
    pod.send([CONTENT], session, kind=ChunkType.CONTENT, salt=str(pod.name))
    pod.send([TREE], session, kind=ChunkType.TREE, salt=str(pod.name))
    return pod.finish(session, [CONTENT, TREE], **changes).snapshot


async def snapshot_of(world: ApiWorld, pod: Pod, **changes: Any) -> bytes:
    found: bytes = await world.run(lambda: stored(pod, **changes))
    return found


async def statuses(agent: ActedAgent, job: str, *ids: bytes) -> list[int]:
    """Return the status byte of each chunk that is asked for."""
    answers = [await agent.call("POST", f"/grants/{job}/chunks", data=chunk) for chunk in ids]
    return [answer[32] for answer in answers]


HERE, ABSENT = 0, 1


# --- which
async def test_a_backup_names_the_newest_complete_snapshot_of_its_workload(
    world: ApiWorld,
) -> None:
    eldest, middle = await world.pod("shop/db-0"), await world.pod("shop/db-9")
    strangers = [await world.pod(name) for name in ("shop/web-0", "shop/db", "shop/db-0-1")]
    first = await snapshot_of(world, eldest)
    await snapshot_of(world, middle)
    newest = await snapshot_of(world, middle)
    await snapshot_of(world, middle, result="incomplete")
    for stranger in strangers:
        await snapshot_of(world, stranger)
    agent = await world.agent("shop/db-10")
    order = await agent.ordered()
    assert order.parent is None
    assert order.references == [Reference(first, "shop/db-0"), Reference(newest, "shop/db-9")]


async def test_one_with_skips_stands_in_and_one_of_a_revoked_client_does_not(
    world: ApiWorld,
) -> None:
    pod, revoked = await world.pod("shop/db-0"), await world.pod("shop/db-7")
    found = await snapshot_of(world, pod, result="skips")
    await snapshot_of(world, pod, result="incomplete")
    await snapshot_of(world, revoked)
    await world.call("POST", "/v1/clients/shop/db-7/revoke")
    agent = await world.agent("shop/db-1")
    assert (await agent.ordered()).references == [Reference(found, "shop/db-0")]


async def test_what_backs_up_the_same_paths_goes_before_what_is_newer(world: ApiWorld) -> None:
    pod = await world.pod("shop/db-0")
    same = await snapshot_of(world, pod, dataset=dataset_id((b"/data",), ()))
    other = await snapshot_of(world, pod, dataset=OTHER_PATHS)
    agents = [await world.agent("shop/db-1"), await world.agent("shop/db-2")]
    one = await agents[0].ordered(paths=["/data"])
    two = await agents[1].ordered(paths=["/elsewhere"])
    assert [order.references[0].snapshot for order in (one, two)] == [same, other]


async def test_new_paths_name_the_oldest_paths_of_the_client(world: ApiWorld) -> None:
    agent = await world.agent("shop/host")
    oldest = await snapshot_of(world, agent.pod, dataset=noise("first", 16))
    await snapshot_of(world, agent.pod, dataset=noise("second", 16))
    newest = await snapshot_of(world, agent.pod, dataset=noise("third", 16))
    order = await agent.ordered(paths=["/fourth"])
    assert order.parent is not None
    assert order.parent.snapshot == newest
    assert order.references == [Reference(oldest, "shop/host")]


async def test_a_domain_that_does_not_share_names_nobody(world: ApiWorld) -> None:
    pod = await world.pod("shop/db-0")
    await snapshot_of(world, pod)
    await world.run(
        world.served.repository.put_domain_record,
        "shop",
        domain_record("shop", revision=2, share_references=False),
    )
    agents = [await world.agent("shop/db-1"), await world.agent("shop/db-2")]
    for agent in agents:
        # And nobody waits for anybody.
        assert (await agent.ordered()).references == []


# --- what is granted
async def test_a_reference_grants_its_tree_until_the_job_ends_and_is_recorded(
    world: ApiWorld,
) -> None:
    pod = await world.pod("shop/db-0")
    snapshot = await snapshot_of(world, pod)
    agent = await world.agent("shop/db-1")
    manifest = f"/snapshots/{snapshot.hex()}/manifest"
    assert (await agent.refused("GET", manifest))["code"] == "not-found"
    order = await agent.ordered()
    assert await statuses(agent, order.job, TREE, CONTENT) == [HERE, ABSENT]
    # Asked for by its id, and answered yes, it belongs to the job's own upload.
    session = await world.run(agent.pod.open, order.job)
    await agent.call("POST", f"/sessions/{session.id}/have", data=CONTENT)
    assert await statuses(agent, order.job, CONTENT) == [HERE]
    assert len(await agent.call("GET", manifest)) > 100
    found = await world.call("GET", "/v1/events", params={"client": "shop/db-1"})
    (event,) = [row for row in found["items"] if row["kind"] == "reference-granted"]
    assert (event["details"]["snapshot"], event["details"]["of"]) == (snapshot.hex(), "shop/db-0")
    await agent.end(order.job, JobState.FAILED, error=Failure(code="internal", message="m"))
    assert (await agent.refused("GET", manifest))["code"] == "not-found"
    path = f"/grants/{order.job}/chunks"
    assert (await agent.refused("POST", path, data=TREE))["code"] == "not-found"


async def test_the_own_parent_grants_no_more_than_its_tree(world: ApiWorld) -> None:
    agent = await world.agent("shop/db-0")
    await snapshot_of(world, agent.pod)
    order = await agent.ordered()
    assert await statuses(agent, order.job, TREE, CONTENT) == [HERE, ABSENT]


async def test_damage_of_a_reference_is_told_with_the_order(world: ApiWorld) -> None:
    pod = await world.pod("shop/db-0")
    snapshot = await snapshot_of(world, pod)
    await world.run(damage, world.served, CONTENT)
    agent = await world.agent("shop/db-1")
    order = await agent.ordered()
    assert (order.references[0].snapshot, order.damaged) == (snapshot, 1)
    assert await agent.call("GET", f"/jobs/{order.job}/damaged") == CONTENT


def damage(served: Served, chunk: bytes) -> None:
    def work(tx: Any) -> None:
        where = schema.chunks.c.chunk_id == chunk
        tx.execute(update(schema.chunks).where(where).values(state=schema.CopyState.DAMAGED))

    served.catalog.write(work)


async def test_a_reference_that_is_pruned_meanwhile_takes_nothing_else_with_it(
    world: ApiWorld,
) -> None:
    pod = await world.pod("shop/db-0")
    snapshot = await snapshot_of(world, pod)
    agent = await world.agent("shop/db-1")
    order = await agent.ordered()

    def prune(tx: Any) -> None:
        where = schema.snapshots.c.snapshot == snapshot
        tx.execute(update(schema.snapshots).where(where).values(state=SnapshotState.TRASHED))

    await world.run(world.served.catalog.write, prune)
    assert await statuses(agent, order.job, TREE) == [ABSENT]
    session = await world.run(agent.pod.open, order.job)
    await world.run(lambda: agent.pod.send([CONTENT], session, salt="mine"))
    assert await statuses(agent, order.job, CONTENT) == [HERE]


# --- one after the other
async def test_first_backups_of_a_workload_begin_when_the_first_of_them_has_committed(
    world: ApiWorld,
) -> None:
    agents = [await world.agent(f"shop/db-{number}") for number in range(3)]
    jobs = await world.backup(*(str(agent.client) for agent in agents))
    assert (await agents[0].until(Backup)).references == []
    await world.until_event("job-waits", "shop/db-2")
    await world.services.dispatcher.round()
    assert [agent.of(Backup) for agent in agents[1:]] == [[], []]
    assert [(await world.job(job))["state"] for job in jobs[1:]] == ["Queued", "Queued"]
    snapshot = await snapshot_of(world, agents[0].pod, job=jobs[0])
    # It has committed, and is not over yet.
    world.services.dispatcher.wake()
    for agent in agents[1:]:
        assert (await agent.until(Backup)).references == [Reference(snapshot, "shop/db-0")]
    assert (await world.event_kinds(client="shop/db-1")).count("job-waits") == 1


@pytest.mark.parametrize("ending", ["failed", "cancelled", "left"])
async def test_first_backups_begin_when_the_first_has_ended_in_any_other_way(
    world: ApiWorld, ending: str
) -> None:
    first, second = await world.agent("shop/db-0"), await world.agent("shop/db-1")
    jobs = await world.backup("shop/db-0", "shop/db-1")
    await first.until(Backup)
    await world.until_event("job-waits", "shop/db-1")
    if ending == "failed":
        error = Failure(code="nothing-read", message="none")
        await first.end(jobs[0], JobState.FAILED, error=error)
    elif ending == "cancelled":
        await first.end(jobs[0], JobState.CANCELLED)
    else:
        await first.leave()
    assert (await second.until(Backup)).job == jobs[1]


async def test_others_do_not_wait(world: ApiWorld) -> None:
    """Another workload, no replica, a dry run, and a replica whose workload has a snapshot."""
    names = ("shop/db-0", "shop/web-0", "shop/db", "shop/db-1", "shop/old-0", "shop/old-1")
    agents = [await world.agent(name) for name in names]
    await snapshot_of(world, agents[-1].pod, result="incomplete")
    await world.backup("shop/db-0")
    await agents[0].until(Backup)
    await world.backup("shop/db-1", dry_run=True)
    for agent in agents[1:3]:
        await world.backup(str(agent.client))
    await world.backup("shop/old-0", "shop/old-1")
    for agent in agents[1:]:
        await agent.until(Backup)

"""What an acted agent does over the data routes, step by step, so that a test can lie at any."""

from __future__ import annotations

from typing import Any

from holdfast_contract.protocol.control import Backup, Finished, FinishedSeen, JobState
from tests.support.apiworld import ActedAgent
from tests.support.samples import noise
from tests.support.uploads import full_refs, pack_of

IDS = sorted(noise(f"chunk {number}") for number in range(4))


async def begun(agent: ActedAgent) -> tuple[str, dict[str, Any]]:
    """Ask for a backup; return its job and its session."""
    [job] = await agent.world.backup(str(agent.client))
    await agent.world.until(lambda: job in [order.job for order in agent.of(Backup)])
    session: dict[str, Any] = await agent.call("POST", f"/jobs/{job}/session")
    return job, session


async def put_pack(agent: ActedAgent, session: dict[str, Any], data: bytes, name: str = "") -> None:
    """Send a pack, under the session's first name if no other is given."""
    name = name or session["packs"][0]
    await agent.call("PUT", f"/sessions/{session['session']}/packs/{name}", data=data)


async def put_lists(
    agent: ActedAgent, session: dict[str, Any], manifest: bytes, refs: bytes
) -> dict[str, Any]:
    """Send refs and manifest; return the body of the commit."""
    base = f"/sessions/{session['session']}"
    await agent.call("PUT", f"{base}/refs/{session['refs']}", data=refs)
    await agent.call("PUT", f"{base}/manifest/{session['manifest']}", data=manifest)
    return {"manifest": session["manifest"], "refs": session["refs"], "seq": 1}


async def backed_up(agent: ActedAgent, ids: list[bytes] = IDS) -> tuple[str, str]:
    """Do a whole backup; return job and snapshot."""
    job, session = await begun(agent)
    await put_pack(agent, session, pack_of(agent.pod.domain, ids))
    manifest = await agent.world.run(agent.pod.manifest, ids)
    head = await agent.world.run(agent.world.served.repository.head, agent.client)
    body = await put_lists(agent, session, manifest, full_refs(agent.pod.domain, ids))
    body["seq"] = head.seq + 1
    path = f"/sessions/{session['session']}/commit"
    done = await agent.call("POST", path, json=body)
    assert await agent.call("POST", path, json=body) == done
    return job, done["snapshot"]


async def ended(agent: ActedAgent, job: str, snapshot: str) -> None:
    """Tell the end of a backup, and wait until it is known."""
    await agent.send(Finished(job=job, state=JobState.COMPLETED, snapshot=bytes.fromhex(snapshot)))
    await agent.until(FinishedSeen, len(agent.of(FinishedSeen)) + 1)

"""A server in a process of its own, with a store in memory, for tests that look at its memory.

`python -m tests.support.api_process FOLDER` serves a world with something in it: a domain, a client
with a snapshot whose agent is connected, has a job under way and answers queries, another one that
may be changed. The first line printed is a `Known` as JSON; it ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast_contract.protocol.control import Backup, CancelQuery, Query
from tests.support.apiworld import ActedAgent, ApiWorld, made, serving
from tests.support.backups import IDS
from tests.support.uploads import pack_of


@dataclass(frozen=True)
class Known:
    """What the world holds: tokens by audience, and values that parts of paths can have."""

    port: int
    pid: int
    tokens: dict[str, str]
    people: dict[str, str]
    """Parts of the paths below /v1; nothing that the agent needs."""
    agents: dict[str, str]


async def _furnished(world: ApiWorld) -> Known:
    await world.domain()
    other = await world.pod("shop/db-1")
    snapshot = await world.run(other.backup, IDS)
    agent = await world.agent()
    own = await world.run(agent.pod.backup, IDS)
    [job] = await world.backup("shop/db-0")
    [spare] = await world.backup("shop/db-1")
    await agent.until(Backup)
    session = await agent.call("POST", f"/jobs/{job}/session")
    data = pack_of(agent.pod.domain, IDS)
    await agent.call(
        "PUT", f"/sessions/{session['session']}/packs/{session['packs'][0]}", data=data
    )
    token = await world.call("POST", "/v1/tokens", json={"role": "admin"})
    asyncio.get_running_loop().create_task(_answer(agent))
    return Known(
        port=world.port,
        pid=os.getpid(),
        tokens={"people": world.token, "agent": agent.token, "newcomer": await world.enrol_token()},
        people={
            "domain": "shop",
            "name": "db-1",
            "id": spare,
            "ref": snapshot.hex(),
            "hash": other.identity.hex(),
            "snapshot": snapshot.hex(),
            "token": token["id"],
        },
        agents={
            "job": job,
            "grant": job,
            "session": session["session"],
            "ulid": session["packs"][1],
            "refs": session["refs"],
            "manifest": session["manifest"],
            "hash": agent.pod.identity.hex(),
            "id": own.hex(),
        },
    )


async def _answer(agent: ActedAgent) -> None:
    """Answer every query with one row."""
    count = 0
    while True:
        query = await agent.coming(Query, count + 1)
        count += 1
        if query.query in [gone.query for gone in agent.of(CancelQuery)]:
            continue
        async with await agent.world.request(
            "POST", f"/agent/v1/answers/{query.query}", token=agent.token, data=b'{"path":"/x"}\n'
        ) as response:
            await response.read()


async def _serve(folder: Path) -> None:
    served, token = await asyncio.to_thread(made, folder)
    async with serving(served, token) as world:
        print(json.dumps(asdict(await _furnished(world))), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await asyncio.to_thread(served.stop)


@contextmanager
def api_process(folder: Path) -> Iterator[Known]:
    """Run such a process inside the block."""
    with open(folder / "api.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.api_process", str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "api.log").read_text()
        yield Known(**json.loads(line))
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(30)
        finally:
            process.kill()


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))

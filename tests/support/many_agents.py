"""Some hundred real agents in one process: `python -m tests.support.many_agents FACTS FIRST COUNT`.

FACTS is a file of JSON: `server`, `ca`, `key`, `token` (an administrator's), `top`. Agent N is
`bench/agent-N`, its state lies in `top/states/N`, its only root is `top/volumes/N`.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import ssl
import sys
import urllib.request
from pathlib import Path

from holdfast_agent.config import PROGRAM, agent_config
from holdfast_agent.jobs import enrol
from holdfast_agent.runtime.service import Agent
from holdfast_agent.runtime.start import domain_keys
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.identity import IdentityFiles
from holdfast_agent.transport.http import HttpClient, trusting
from holdfast_contract.settings.arguments import read_invocation


def enrol_token(world: dict[str, str], client: str) -> str:
    """Return a new enrolment token."""
    request = urllib.request.Request(
        world["server"] + "/v1/enrol-tokens",
        json.dumps({"domain": "bench", "client": client}).encode(),
        {"Authorization": f"Bearer {world['token']}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cafile=world["ca"])
    with urllib.request.urlopen(request, context=context) as answer:
        return str(json.load(answer)["token"])


async def run_agents(world: dict[str, str], first: int, count: int) -> None:
    """Enrol and connect `count` agents, say so, and stay until standard input ends."""
    context = trusting(Path(world["ca"]))
    stop = asyncio.Event()
    tasks = []
    for number in range(first, first + count):
        state = Path(world["top"]) / "states" / str(number)
        volume = Path(world["top"]) / "volumes" / str(number)
        for folder in (state, volume):
            folder.mkdir(parents=True, exist_ok=True)
        environ = {
            "HOLDFAST_SERVER": world["server"],
            "HOLDFAST_CA": world["ca"],
            "HOLDFAST_STATE": str(state),
            "HOLDFAST_ROOTS": str(volume),
            "HOLDFAST_KEY_FILE": world["key"],
        }
        settings = read_invocation(PROGRAM, [], environ).settings
        config = agent_config(settings, f"agent-{number}")
        keys, directory, clock = domain_keys(config), StateDirectory(state), SystemFileClock()
        token = enrol_token(world, f"bench/agent-{number}")
        client = HttpClient(config.server, context, bearer=str(token).strip, user_agent="bench")
        files = IdentityFiles(directory)
        identity = enrol.enrol_client(
            files, client, keys=keys, name=f"bench/agent-{number}", clock=clock
        )
        client.close()
        agent = Agent(config, directory, keys, identity, context, clock, random.uniform)
        tasks.append(asyncio.create_task(agent.run(stop)))
        await asyncio.sleep(0)
    print("enrolled", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    await asyncio.gather(*tasks)


def main() -> None:
    """Take the command line."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    facts, first, count = sys.argv[1:]
    asyncio.run(run_agents(json.loads(Path(facts).read_text()), int(first), int(count)))


if __name__ == "__main__":
    main()

"""The server's memory stays what it is, however often fifty agents back up beside each other."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.world import World

AGENTS = 50
MIB = 1 << 20
ROUNDS = 3
GROWTH_BYTES_MAX = 24 * MIB
"""After the first round: what the allocator keeps between its blocks."""
PEAK_BYTES_MAX = 320 * MIB
"""The server alone, and the packs that may arrive at once from sixteen running jobs."""
CLIENTS = [f"bench/agent-{number}" for number in range(AGENTS)]


@pytest.fixture
def agents(own_world: World) -> Iterator[World]:
    """Fifty agents that are connected, in a process of their own."""
    world = own_world
    key = world.domain("bench")
    facts = world.top / "facts"
    facts.write_text(
        json.dumps(
            {
                "server": world.url,
                "ca": str(world.ca),
                "key": str(key),
                "token": (world.data / "admin.token").read_text().strip(),
                "top": str(world.top),
            }
        )
    )
    command = [sys.executable, "-m", "tests.support.many_agents", str(facts), "0", str(AGENTS)]
    top = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=top
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"enrolled\n"
        world.until(lambda: connected(world) == AGENTS, "all agents are connected", seconds=240)
        yield world
        process.communicate()


def connected(world: World) -> int:
    return sum(row["state"] == "connected" for row in world.json("clients"))


def status_bytes(world: World, name: str) -> int:
    """Return `VmRSS` or `VmHWM` of the server."""
    assert world.server is not None
    lines = Path(f"/proc/{world.server.popen.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def test_fifty_agents_that_back_up_at_once_leave_the_server_as_it_was(
    agents: World, record_property: Callable[[str, object], None]
) -> None:
    draw = random.Random(50)
    shared = draw.randbytes(MIB)
    resident = []
    for turn in range(ROUNDS):
        for number in range(AGENTS):
            volume = agents.top / "volumes" / str(number)
            (volume / "shared").write_bytes(shared)
            (volume / f"own {turn}").write_bytes(draw.randbytes(MIB))
            for small in range(20):
                (volume / f"small {small}").write_bytes(draw.randbytes(2_000))
        summary = agents.lines("backup", *CLIENTS)[-1]
        assert summary["state"] == "Completed", summary
        resident.append(status_bytes(agents, "VmRSS:"))
    peak = status_bytes(agents, "VmHWM:")
    record_property("mib", [size // MIB for size in (*resident, peak)])
    assert resident[-1] < resident[0] + GROWTH_BYTES_MAX, resident
    assert peak < PEAK_BYTES_MAX

"""What many idle agents cost the server: memory, and CPU of one core.

    python tests/bench/idle.py [--agents 1000] [--seconds 60]

The agents are real ones, some hundred in a process: enrolled, connected over TLS, each with a state
directory, waiting for work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.world import World

AGENTS_IN_A_PROCESS = 250
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return user and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


# --- the whole
def measure(top: Path, agents: int, seconds: float) -> None:
    """Start a server and the agents, let them be idle, and print what that costs."""
    with World(top) as world:
        world.start_server()
        # The first start migrates, and keeps what it takes for that as long as it runs.
        world.stop_server()
        world.start_server()
        key = world.domain("bench")
        facts = {
            "server": world.url, "ca": str(world.ca), "key": str(key), "top": str(top),
            "token": (world.data / "admin.token").read_text().strip(),
        }  # fmt: skip
        (top / "facts").write_text(json.dumps(facts))
        assert world.server is not None
        pid = world.server.popen.pid
        alone = resident_bytes(pid)
        processes = []
        for first in range(0, agents, AGENTS_IN_A_PROCESS):
            count = min(AGENTS_IN_A_PROCESS, agents - first)
            command = [sys.executable, "-m", "tests.support.many_agents", str(top / "facts")]
            processes.append(
                subprocess.Popen(
                    [*command, str(first), str(count)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=Path(__file__).resolve().parents[2],
                )
            )
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"enrolled\n"
        rows = world.json("clients")
        world.until(
            lambda: sum(r["state"] == "connected" for r in world.json("clients")) == agents,
            f"{agents} agents are connected",
            seconds=120,
        )
        begin, began = cpu_seconds(pid), time.monotonic()
        theirs = sum(cpu_seconds(process.pid) for process in processes)
        time.sleep(seconds)
        span = time.monotonic() - began
        share = (cpu_seconds(pid) - begin) / span
        their_share = (sum(cpu_seconds(p.pid) for p in processes) - theirs) / span / agents
        full = resident_bytes(pid)
        print(f"{len(rows)} known, {agents} connected, idle for {span:.0f} s")
        print(f"server: {full / 1e6:.0f} MB, of which {alone / 1e6:.0f} MB without agents,")
        print(f"        {(full - alone) / agents / 1024:.0f} KiB an agent, {share:.2%} of a core")
        print(f"agents: {their_share:.4%} of a core each")
        for process in processes:
            process.communicate()


def main() -> None:
    """Take the command line."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--agents", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=60)
    chosen = options.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(prefix="holdfast-idle-") as top:
        measure(Path(top), chosen.agents, chosen.seconds)


if __name__ == "__main__":
    main()

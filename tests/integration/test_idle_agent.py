"""What an agent that waits has in memory: nothing that only a job needs, nor is left of one."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

from tests.support.world import Process, World

# Runs the program as it is; at SIGUSR1 it says how many objects of a backup are left, and at its
# end what was imported until then.
WATCHED = """
import atexit, gc, signal, sys

def tell(*_):
    left = sum(type(o).__module__ == "holdfast_agent.engine.bundles" for o in gc.get_objects())
    print("left:", left, flush=True)

signal.signal(signal.SIGUSR1, tell)
sys.argv = ["holdfast-agent"]
from holdfast_agent.main import main
code = main()
print("loaded:", *sorted(sys.modules), flush=True)
sys.exit(code)
"""
OF_A_REQUEST = {"http.client", "email", "holdfast_agent.transport.gathering"}
OF_A_KEY_TO_RECEIVE = {"cryptography.hazmat.backends.openssl.backend"}
OF_A_JOB = {
    "_cffi",
    "argparse",
    "concurrent.futures.process",
    "ctypes",
    "holdfast_agent.engine.walk",
    "holdfast_agent.jobs.backup",
    "holdfast_agent.restore.execute",
    "importlib.metadata",
    "multiprocessing",
    "pyfastcdc",
    "shutil",
    "sqlite3",
    "tempfile",
    "urllib.request",
    "watchdog",
    "zstandard",
}


def watched(world: World, client: str, root: Path) -> Process:
    return world.start_agent(client, [root], prefix=[sys.executable, "-c", WATCHED])


def loaded(agent: Process) -> set[str]:
    assert agent.stop() == 0
    found = re.findall(r"^loaded: (.*)$", agent.log.read_text(), re.MULTILINE)
    return set(found[-1].split())


def test_an_agent_that_idles_has_not_loaded_what_only_a_job_needs(
    world: World, tmp_path: Path
) -> None:
    at_first = loaded(watched(world, "idle/first", tmp_path))
    assert "holdfast_agent.transport.websocket" in at_first
    assert at_first & OF_A_JOB == set()
    assert at_first >= OF_A_REQUEST | OF_A_KEY_TO_RECEIVE, "enrolling loads them"
    again = loaded(watched(world, "idle/first", tmp_path))
    assert "holdfast_agent.transport.websocket" in again
    assert again & (OF_A_JOB | OF_A_REQUEST | OF_A_KEY_TO_RECEIVE) == set()


def test_a_backup_leaves_nothing_of_itself_in_an_agent_that_idles(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    agent = watched(world, "idle/after", tmp_path)
    world.backup("idle/after", tmp_path)

    def left() -> list[int]:
        agent.popen.send_signal(signal.SIGUSR1)
        return [int(n) for n in re.findall(r"^left: (\d+)$", agent.log.read_text(), re.MULTILINE)]

    world.until(lambda: left()[-1:] == [0], "nothing of the backup is left")
    assert OF_A_JOB & loaded(agent) >= {"holdfast_agent.engine.walk", "ctypes", "sqlite3"}

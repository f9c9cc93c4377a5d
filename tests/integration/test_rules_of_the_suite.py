"""The suite's own rules: a skip fails in CI, soak runs on demand, blocking an event loop fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockbuster import BlockingError

import holdfast_agent

TOP = Path(__file__).resolve().parents[2]


def run(folder: Path, source: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_planted.py").write_text(source)
    settings = {name: value for name, value in os.environ.items() if name != "CI"}
    command = f"{sys.executable} -m pytest -c {TOP}/pyproject.toml --rootdir {TOP} -n0".split()
    command += ["-p", "no:cacheprovider", "-p", "tests.conftest"]
    return subprocess.run(
        [*command, *options, str(folder / "test_planted.py")],
        env=settings | {"PYTHONPATH": str(TOP)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SKIPPING = "import pytest\ndef test_a(): pytest.skip('no database')\ndef test_b(): pass\n"


def test_a_skipped_test_fails_the_run_in_ci_and_the_summary_stays(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPPING, CI="true")
    assert done.returncode == 1
    assert "in CI nothing may be skipped" in done.stdout
    assert "1 passed, 1 skipped" in done.stdout.splitlines()[-1]


def test_a_skipped_test_is_only_told_elsewhere(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPPING).returncode == 0


def test_a_soak_test_runs_on_demand_only(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.soak\ndef test_a(): pass\ndef test_b(): pass\n"
    assert "1 passed, 1 deselected" in run(tmp_path, source).stdout
    asked = run(tmp_path, source, "-m", "soak", "-v").stdout
    assert "test_a PASSED" in asked
    assert "1 passed, 1 deselected" in asked


def test_a_failure_shows_the_logs_of_the_worlds_processes(tmp_path: Path) -> None:
    source = f"""
import pathlib, pytest
from tests.support.world import World
@pytest.fixture
def a_world():
    pathlib.Path("{tmp_path}", "server.log").write_text("out of luck")
    return World(pathlib.Path("{tmp_path}"))
def test_a(a_world): assert False
"""
    shown = run(tmp_path, source).stdout
    assert "log of server" in shown
    assert "out of luck" in shown


def planted_nap() -> None:
    """Sleep as if a module of the agent did it."""
    assert holdfast_agent.__file__ is not None
    place = str(Path(holdfast_agent.__file__).parent / "planted.py")
    exec(compile("import time\ntime.sleep(0.0001)", place, "exec"), {})


async def test_product_code_that_blocks_the_event_loop_is_caught() -> None:
    with pytest.raises(BlockingError):
        planted_nap()


@pytest.mark.blocking(reason="shows that the mark lifts the rule")
async def test_a_marked_test_may_block() -> None:
    planted_nap()


def test_outside_an_event_loop_product_code_may_block() -> None:
    planted_nap()

"""The lock files: complete, hashed, and silent about where packages come from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
LOCKS = {
    "agent": ["holdfast-agent"],
    "server": ["holdfast-server"],
    "cli": ["holdfast"],
    "dev": ["holdfast", "holdfast-server"],
}


def lock(name: str) -> str:
    return (TOP / "requirements" / f"{name}.lock").read_text()


def pins(text: str) -> dict[str, str]:
    """Return version by name."""
    found = re.findall(r"^([a-z0-9.-]+)==(\S+)", text, flags=re.MULTILINE)
    assert found
    return dict(found)


def direct(names: list[str]) -> list[str]:
    """Return the requirement lines that distributions of ours state."""
    command = [sys.executable, str(TOP / "requirements" / "direct.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("name", LOCKS)
def test_every_direct_dependency_is_pinned_and_ours_are_not(name: str) -> None:
    pinned = pins(lock(name)).keys()
    wanted = {re.split(r"[<>=!]", line)[0] for line in direct(LOCKS[name])}
    assert wanted <= pinned
    assert not any(package.startswith("holdfast") for package in pinned)


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes(name: str) -> None:
    blocks = re.split(r"\n(?=\S)", lock(name).strip())
    assert len(blocks) == len(pins(lock(name)))
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_index_host_or_path(name: str) -> None:
    assert re.findall(r"https?:|//|/\w|--index|--find|@", lock(name)) == []


@pytest.mark.parametrize("name", ["agent", "server", "cli"])
def test_what_is_installed_is_what_was_tested(name: str) -> None:
    assert pins(lock(name)).items() <= pins(lock("dev")).items()


def test_every_direct_dependency_has_a_lower_bound() -> None:
    tools = (TOP / "requirements" / "dev.in").read_text().splitlines()
    lines = [line for line in tools if not line.startswith("#")] + direct(LOCKS["dev"])
    assert [line for line in lines if ">=" not in line] == []


def test_the_agent_brings_neither_server_nor_command() -> None:
    assert pins(lock("agent")).keys() & {"sqlalchemy", "alembic", "click", "rich"} == set()

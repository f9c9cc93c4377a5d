"""How often an agent asks the server for a backup in which nothing has changed."""

from __future__ import annotations

import re
import ssl
import urllib.request
from collections import Counter
from pathlib import Path

from tests.support.world import World

CLIENT = "calls/web-0"
COUNTED = re.compile(r'holdfast_request_seconds_count{method="(\w+)",route="([^"]+)",.*} ([\d.]+)')


def requests_of_agents(world: World) -> Counter[str]:
    """Return how often each route of agents was asked so far."""
    token = (world.data / "admin.token").read_text().strip()
    request = urllib.request.Request(
        world.url + "/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    context = ssl.create_default_context(cafile=world.ca)
    with urllib.request.urlopen(request, context=context) as answer:
        text = answer.read().decode()
    counted: Counter[str] = Counter()
    for method, route, count in COUNTED.findall(text):
        if route.startswith("/agent/"):
            counted[f"{method} {route}"] += int(float(count))
    return counted


def test_an_unchanged_backup_asks_each_thing_once(world: World, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for number in range(20):
        (volume / f"file {number}").write_bytes(bytes([number]) * 5000)
    world.start_agent(CLIENT, [volume])
    world.backup(CLIENT)
    before = requests_of_agents(world)
    world.backup(CLIENT)
    assert requests_of_agents(world) - before == {
        "GET /agent/v1/domain": 1,
        "POST /agent/v1/jobs/{job}/session": 1,
        "PUT /agent/v1/sessions/{session}/refs/{ulid}": 1,
        "PUT /agent/v1/sessions/{session}/manifest/{ulid}": 1,
        "POST /agent/v1/sessions/{session}/commit": 1,
        "PUT /agent/v1/jobs/{job}/result": 1,
    }
    world.stop_agent(CLIENT)

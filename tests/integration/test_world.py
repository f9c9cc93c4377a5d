"""The harness itself, with executables of a few lines in place of the product's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.world import World, under

ECHO = """
import json, os, sys
if "fail" in sys.argv:
    print("printed"); print("told", file=sys.stderr); sys.exit(7)
if "progress" in sys.argv:
    print(json.dumps({"type": "progress"}))
kept = {key: value for key, value in os.environ.items() if key.startswith("HOLDFAST_")}
print(json.dumps({"type": "summary", "args": sys.argv[1:], "env": kept}))
"""
DIES = "import sys; print('no room'); sys.exit(5)"
IGNORES = """
import signal, sys, pathlib
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[-1])))
pathlib.Path(sys.argv[2], "ready").parent.mkdir(exist_ok=True)
pathlib.Path(sys.argv[2], "ready").touch()
signal.pause()
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "bin").mkdir()
    return World(tmp_path, bin=tmp_path / "bin", url="https://127.0.0.1:1")


def install(world: World, name: str, script: str) -> None:
    place = world.bin / name
    place.write_text(f"#!{sys.executable}\n{script}")
    place.chmod(0o755)


def test_the_last_json_line_is_the_summary(world: World) -> None:
    install(world, "holdfast", ECHO)
    assert world.json("progress")["type"] == "summary"
    assert [line["type"] for line in world.lines("progress")] == ["progress", "summary"]


def test_arguments_and_settings_arrive_and_the_shells_own_do_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(world, "holdfast", ECHO)
    monkeypatch.setenv("HOLDFAST_NODE", "of this shell")
    done = world.backup("a/b", Path("/x y"), options=["--tag", "t"], HOLDFAST_CA="other")
    assert done["args"] == ["backup", "a/b", "--path", "/x y", "--tag", "t", "--json"]
    assert done["env"] == {
        "HOLDFAST_SERVER": "https://127.0.0.1:1",
        "HOLDFAST_CA": "other",
        "HOLDFAST_TOKEN_FILE": str(world.data / "admin.token"),
    }


def test_an_unexpected_exit_status_shows_both_outputs(world: World) -> None:
    install(world, "holdfast", ECHO)
    with pytest.raises(AssertionError, match=r"(?s)fail: exit 7, expected 0.*printed.*told"):
        world.cli("fail")
    assert world.cli("fail", expect=7) == "printed\n"


def test_a_server_that_dies_is_told_with_its_log(world: World) -> None:
    install(world, "holdfast-server", DIES)
    with pytest.raises(AssertionError, match=r"(?s)server ended with 5.*no room"):
        world.start_server()
    assert world.logs() == {"server": "no room\n"}


@pytest.mark.parametrize(("status", "told"), [(0, []), (3, ["server: exit 3"])])
def test_close_names_processes_that_do_not_end_well(
    world: World, monkeypatch: pytest.MonkeyPatch, status: int, told: list[str]
) -> None:
    install(world, "holdfast-server", IGNORES)
    monkeypatch.setattr(World, "is_healthy", lambda self: (self.data / "ready").exists())
    world.start_server(status)
    assert world.close() == told
    assert world.close() == []


def test_what_does_not_come_true_is_an_error(world: World) -> None:
    with pytest.raises(AssertionError, match="the moon is blue"):
        world.until(lambda: False, "the moon is blue", seconds=0)


def test_a_server_that_is_away_answers_nothing(world: World) -> None:
    world.ca.parent.mkdir(parents=True)
    assert world.get("/healthz") == 0


def test_a_target_holds_the_absolute_path() -> None:
    assert under(Path("/restore"), Path("/data/a")) == Path("/restore/data/a")

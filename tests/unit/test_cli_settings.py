"""Where the command finds its server."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from holdfast_cli.settings import (
    Loaded,
    Place,
    config_directory,
    load_settings,
    read_context,
    save_context,
)
from holdfast_contract.errors import NotFound, UsageError

DIRECT = {"HOLDFAST_SERVER": "https://env:1/", "HOLDFAST_TOKEN_FILE": "/env.token"}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "url").write_text("https://data:2\n")
    return folder


def place(environ: dict[str, str], **flags: str) -> Place:
    return load_settings(flags, environ).place()


def saved(environ: dict[str, str], name: str, ca: Path | None = Path("/saved.pem")) -> None:
    save_context(environ, name, Place(f"https://{name}:3", ca, Path(f"/{name}.token"), None))


def test_variables_name_the_server(environ: dict[str, str]) -> None:
    found = place(environ | DIRECT | {"HOLDFAST_CA": "/env.pem", "HOLDFAST_KEY_FILE": "/key"})
    assert found == Place("https://env:1", Path("/env.pem"), Path("/env.token"), Path("/key"))


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    environ: dict[str, str],
) -> None:
    folder = config_directory(environ)
    folder.mkdir(parents=True)
    text = 'server = "https://file:4"\ntoken_file = "/file.token"\nca = "/file.pem"\n'
    (folder / "config.toml").write_text(text)
    assert place(environ).server == "https://file:4"
    found = place(environ | {"HOLDFAST_SERVER": "https://env:1"}, token_file="/flag.token")
    assert found == Place("https://env:1", Path("/file.pem"), Path("/flag.token"), None)


def test_a_data_directory_gives_all_three(environ: dict[str, str], data: Path) -> None:
    found = place(environ | {"HOLDFAST_DATA": str(data)})
    assert found == Place("https://data:2", data / "tls/ca.pem", data / "admin.token", None)


def test_parts_of_a_data_directory_can_be_replaced(environ: dict[str, str], data: Path) -> None:
    given = environ | {"HOLDFAST_DATA": str(data)}
    found = place(given, token_file="/mine")
    assert found == Place("https://data:2", data / "tls/ca.pem", Path("/mine"), None)
    found = place(given, server="https://other.name:2")
    assert found == Place("https://other.name:2", data / "tls/ca.pem", data / "admin.token", None)


def test_a_data_directory_given_as_a_flag_wins_over_variables(
    environ: dict[str, str], data: Path
) -> None:
    assert place(environ | DIRECT, data=str(data)).token_file == data / "admin.token"
    assert place(environ | DIRECT | {"HOLDFAST_DATA": str(data)}).server == "https://env:1"


def test_a_directory_without_a_running_server_is_named(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not the data directory of a running server"):
        place(environ, data=str(tmp_path))


def test_login_saves_a_context_that_later_commands_take(environ: dict[str, str]) -> None:
    saved(environ, "first")
    saved(environ, "second", ca=None)
    assert place(environ) == Place("https://second:3", None, Path("/second.token"), None)
    found = place(environ, context="first")
    assert found == Place("https://first:3", Path("/saved.pem"), Path("/first.token"), None)
    assert place(environ | {"HOLDFAST_CONTEXT": "first"}) == found


def test_a_context_given_as_a_flag_wins_over_variables(environ: dict[str, str]) -> None:
    saved(environ, "mine")
    assert place(environ | DIRECT, context="mine").server == "https://mine:3"
    assert place(environ | DIRECT).server == "https://env:1"
    assert place(environ | DIRECT).ca is None


def test_a_contexts_token_goes_to_no_other_server(environ: dict[str, str]) -> None:
    saved(environ, "mine")
    with pytest.raises(UsageError, match="no token for https://evil:5"):
        place(environ, server="https://evil:5")
    found = place(environ, server="https://other:5", token_file="/t")
    assert found == Place("https://other:5", None, Path("/t"), None)


def test_nothing_at_all_says_both_ways(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        place(environ)
    assert "holdfast login" in caught.value.hint
    assert "HOLDFAST_DATA" in caught.value.hint


def test_relative_paths_of_a_login_are_saved_as_absolute_ones(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = 'a "b" \\c'
    file = save_context(environ, "x", Place("https://s", Path(odd), Path("t"), None))
    found = tomllib.loads(file.read_text())
    assert found["ca"] == str(tmp_path / odd)
    assert found["token_file"] == str(tmp_path / "t")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "current"])
def test_a_context_name_is_no_path(environ: dict[str, str], name: str) -> None:
    with pytest.raises(UsageError):
        saved(environ, name)


def test_unknown_and_broken_contexts_are_told_apart(environ: dict[str, str]) -> None:
    with pytest.raises(NotFound):
        place(environ, context="nobody")
    assert read_context(environ, None) == {}
    saved(environ, "x")
    for content in (b"server = ", b"\xff"):
        (config_directory(environ) / "contexts" / "x.toml").write_bytes(content)
        with pytest.raises(UsageError, match="not a saved context"):
            place(environ)


def test_unknown_keys_of_the_file_are_errors_and_unknown_variables_are_not(
    environ: dict[str, str],
) -> None:
    found: Loaded = load_settings({}, environ | {"HOLDFAST_PORT_80_TCP": "x"})
    assert found.settings.unknown_variables == ("HOLDFAST_PORT_80_TCP",)
    folder = config_directory(environ)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('sever = "x"\n')
    with pytest.raises(UsageError, match="sever"):
        load_settings({}, environ)

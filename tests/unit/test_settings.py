"""One rule of precedence and names for all three programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast_contract.errors import UsageError
from holdfast_contract.settings import (
    ABSOLUTE_PATH,
    BOOLEAN,
    CONFIG,
    DURATION,
    LOG_LEVEL,
    SIZE,
    TEXT,
    ConfigFile,
    Program,
    Setting,
    Source,
    bounded,
    choice,
    choose_config_file,
    integer,
    load,
    many,
    optional,
    show_json,
    show_text,
)
from holdfast_contract.settings.arguments import read_invocation
from holdfast_contract.settings.kinds import URL

MEMORY = Setting("memory_max", bounded(SIZE, 32 << 20, 1 << 40), 160 << 20, "ceiling of memory")
ROOTS = Setting("roots", many(ABSOLUTE_PATH, separator=":"), (), "all it may read")
BROWSE = Setting("browse", choice("names", "content", "never"), "names", "what may be shown")
WAIT = Setting("wait", DURATION, 600, "how long")
EAGER = Setting("eager", BOOLEAN, False, "do it at once")
LABEL = Setting("label", optional(TEXT), None, "a word", default_text="DIR/label")
CATALOG = Setting("catalog", optional(URL), None, "where the catalog is")
WORKERS = Setting("workers", integer(1, 64), 2, "threads")

PROGRAM = Program(
    name="holdfast-test",
    version="1.2.3",
    summary="Does nothing.",
    example="holdfast-test --roots /data",
    settings=(MEMORY, ROOTS, BROWSE, WAIT, EAGER, LABEL, CATALOG, WORKERS),
    config_path="/etc/holdfast/test.toml",
)


def no_file(path: str) -> bytes | None:
    return None


def run(*argv: str, environ: dict[str, str] | None = None, toml: str | None = None) -> Any:
    def read(path: str) -> bytes | None:
        return toml.encode() if toml is not None else None

    return read_invocation(PROGRAM, argv, environ or {}, read)


def test_names_follow_one_rule() -> None:
    assert (MEMORY.flag, MEMORY.variable) == ("--memory-max", "HOLDFAST_MEMORY_MAX")


def test_flag_beats_environment_beats_file_beats_default() -> None:
    flag, variable = ["--memory-max", "33M"], {"HOLDFAST_MEMORY_MAX": "34M"}
    toml = "memory_max = '35M'"
    cases = [
        (run(*flag, environ=variable, toml=toml), 33 << 20, Source.FLAG, "--memory-max"),
        (run(environ=variable, toml=toml), 34 << 20, Source.ENVIRONMENT, "HOLDFAST_MEMORY_MAX"),
        (run(toml=toml), 35 << 20, Source.FILE, "/etc/holdfast/test.toml"),
        (run(), 160 << 20, Source.DEFAULT, ""),
    ]
    for invocation, value, source, location in cases:
        assert invocation.settings[MEMORY] == value
        origin = invocation.settings.origin(MEMORY)
        assert (origin.source, origin.location) == (source, location)


def test_an_empty_variable_counts_as_absent() -> None:
    settings = run(environ={"HOLDFAST_MEMORY_MAX": ""}).settings
    assert settings.origin(MEMORY).source is Source.DEFAULT


def test_of_a_repeated_single_flag_the_last_counts() -> None:
    assert run("--browse", "never", "--browse", "content").settings[BROWSE] == "content"


def test_lists_come_from_repeated_flags_separators_and_toml_lists() -> None:
    two = (Path("/a"), Path("/b"))
    assert run("--roots", "/a", "--roots", "/b").settings[ROOTS] == two
    assert run("--roots", "/a:/b").settings[ROOTS] == two
    assert run(environ={"HOLDFAST_ROOTS": "/a:/b:"}).settings[ROOTS] == two
    assert run(toml="roots = ['/a', '/b']").settings[ROOTS] == two
    assert run(toml="roots = '/a:/b'").settings[ROOTS] == two


def test_an_item_of_a_toml_list_may_hold_the_separator() -> None:
    assert run(toml="roots = ['/a:b']").settings[ROOTS] == (Path("/a:b"),)


def test_toml_numbers_and_booleans_are_read_like_text() -> None:
    settings = run(toml="workers = 5\neager = true\nmemory_max = 67108864").settings
    assert (settings[WORKERS], settings[EAGER], settings[MEMORY]) == (5, True, 64 << 20)


def test_a_boolean_flag_takes_no_value_and_can_be_negated() -> None:
    assert run("--eager").settings[EAGER] is True
    assert run("--no-eager", environ={"HOLDFAST_EAGER": "yes"}).settings[EAGER] is False
    assert run(environ={"HOLDFAST_EAGER": "Yes"}).settings[EAGER] is True


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "message"),
    [
        (["--memory", "64M"], {}, "", "unrecognized arguments: --memory"),
        (["--memory-max", "much"], {}, "", "flag --memory-max: not a size: 'much'"),
        (["--memory-max", "1K"], {}, "", "out of bounds: '1K'; allowed is 32M to 1T"),
        ([], {"HOLDFAST_BROWSE": "all"}, "", "environment HOLDFAST_BROWSE: not one of names,"),
        ([], {"HOLDFAST_WORKERS": "2.5"}, "", "not a whole number"),
        ([], {}, "roots = ['a']", "/etc/holdfast/test.toml: roots: not an absolute path"),
        ([], {}, "roots = ['/a/../etc']", "not an absolute path without '..'"),
        ([], {}, "memroy_max = 1", "unknown key 'memroy_max'"),
        ([], {}, "config = 'x'", "unknown key 'config'"),
        ([], {}, "workers = [1, 2]", "workers: a list cannot stand here"),
        ([], {}, "workers = 1.5", "workers: a float cannot stand here"),
        ([], {}, "[workers]\nn = 1", "workers: a dict cannot stand here"),
        ([], {}, "workers =", "not TOML"),
        ([], {}, "#" * (1 << 20) + "#", "larger than"),
        (["config"], {}, "", "unknown command: 'config'"),
        (["start"], {}, "", "unknown command: 'start'"),
        (["--json"], {}, "", "--json goes with"),
    ],
)
def test_wrong_usage_says_where_and_what(
    argv: list[str], environ: dict[str, str], toml: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(*argv, environ=environ, toml=toml)
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_a_mistyped_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        run(toml="memroy_max = 1")
    assert caught.value.hint == "did you mean memory_max?"


def test_unknown_variables_are_named_without_value_and_never_fatal() -> None:
    environ = {"HOLDFAST_SERVICE_HOST": "10.0.0.1", "HOLDFAST_TOKEN": "hfa_geheim", "PATH": "/bin"}
    invocation = run("config", "show", environ=environ)
    assert invocation.settings.unknown_variables == ("HOLDFAST_SERVICE_HOST", "HOLDFAST_TOKEN")
    assert "HOLDFAST_SERVICE_HOST" in invocation.output
    assert "geheim" not in invocation.output
    assert "10.0.0.1" not in invocation.output


def test_config_show_prints_each_value_and_its_origin() -> None:
    output = run("config", "show", "--wait", "90", environ={"HOLDFAST_EAGER": "on"}).output
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert rows["wait"] == ["90s", "flag", "--wait"]
    assert rows["eager"] == ["true", "environment", "HOLDFAST_EAGER"]
    assert rows["memory_max"] == ["160M", "default"]
    assert rows["label"] == ["DIR/label", "default"]
    assert set(rows) >= {setting.name for setting in PROGRAM.table}


def test_config_show_json_has_sizes_in_bytes_and_lists() -> None:
    invocation = run("--roots", "/a:/b", "config", "show", "--json")
    document = json.loads(invocation.output)
    rows = {row["name"]: row for row in document["settings"]}
    assert document["program"] == "holdfast-test"
    assert rows["memory_max"]["value"] == 160 << 20
    assert rows["roots"] == {
        "name": "roots",
        "value": ["/a", "/b"],
        "source": "flag",
        "location": "--roots",
        "flag": "--roots",
        "variable": "HOLDFAST_ROOTS",
    }
    assert rows["label"]["value"] is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:geheim@db/holdfast",
        "postgresql://u:a@geheim@db/holdfast",
        "s3://bucket?x=1&secret=geheim&y=2",
    ],
)
def test_passwords_in_urls_are_masked(url: str) -> None:
    settings = run("--catalog", url).settings
    assert settings[CATALOG] == url
    shown = show_text(PROGRAM, settings) + json.dumps(show_json(PROGRAM, settings))
    assert "geheim" not in shown
    assert "***" in shown


def test_config_show_escapes_what_could_act_on_a_terminal() -> None:
    output = run("config", "show", "--label", "a\x1b[2Jb").output
    assert "\x1b" not in output
    assert "a\\x1b[2Jb" in output


def test_a_named_file_must_exist_and_the_usual_one_may_be_absent() -> None:
    assert choose_config_file(flags={}, environ={}, usual_path="/x", read=no_file) is None
    for flags, environ in (({"config": ["/f"]}, {}), ({}, {"HOLDFAST_CONFIG": "/f"})):
        with pytest.raises(UsageError, match="/f: no such configuration file"):
            choose_config_file(flags=flags, environ=environ, usual_path="/x", read=no_file)


def test_a_named_file_replaces_the_usual_one(tmp_path: Path) -> None:
    usual, named = tmp_path / "usual.toml", tmp_path / "named.toml"
    usual.write_text("workers = 3\neager = true\n")
    named.write_text("workers = 4\n")
    file = choose_config_file(flags={"config": [str(named)]}, environ={}, usual_path=str(usual))
    settings = load(PROGRAM.table, flags={}, environ={}, file=file)
    assert (settings[WORKERS], settings[EAGER]) == (4, False)
    usual_file = choose_config_file(flags={}, environ={}, usual_path=str(usual))
    assert load(PROGRAM.table, flags={}, environ={}, file=usual_file)[WORKERS] == 3


def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        choose_config_file(flags={}, environ={}, usual_path=str(tmp_path))


def test_load_without_a_parser_serves_the_command_line() -> None:
    file = ConfigFile("f.toml", {"log_level": "error"})
    settings = load(PROGRAM.table, flags={"config": ["x"]}, environ={}, file=file)
    assert settings[LOG_LEVEL] == "error"
    assert settings[CONFIG] == Path("x")


def test_help_has_an_example_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--help")
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert "holdfast-test --roots /data" in printed
    assert "HOLDFAST_MEMORY_MAX; default 160M" in printed.replace("\n" + " " * 24, " ")
    assert all(setting.flag in printed for setting in PROGRAM.table)


def test_version_names_program_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out == "holdfast-test 1.2.3\n"


def test_log_level_and_format_are_settings_of_every_program() -> None:
    names = {setting.name for setting in PROGRAM.table}
    assert {"config", "log_level", "log_format"} <= names
    with pytest.raises(UsageError):
        run("--log-format", "xml")

"""Every command's help, and what all commands have in common."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import click
import pytest

from holdfast_cli import command as command_module
from holdfast_cli.program import cli
from holdfast_cli.settings import VERSION
from holdfast_contract.errors import Cancelled
from tests.support.cli_api import run

WORDS = {
    "backup": "--path --exclude --tag --limit-upload --dry-run --detach --json",
    "restore": "--in-place --target --local --key-file --to --include --exclude --strip "
    "--overwrite --delete --special --dry-run --verify --limit-download --detach --yes --json",
    "snapshots": "--since --until --tag --latest --json",
    "snapshot show": "--json",
    "verify": "--json --detach --to",
    "browse": "--json",
    "ls": "-l -R --json",
    "find": "--client --json",
    "diff": "--json",
    "dump": "--out",
    "jobs": "--client --state --json",
    "job show": "--json",
    "job wait": "--json",
    "job cancel": "--json",
    "job log": "--json",
    "events": "--client --follow --json",
    "clients": "--json",
    "client show": "--json",
    "client set": "--limit-upload --limit-download",
    "client revoke": "--json",
    "client forget": "--json",
    "client accept": "--json",
    "enrol-token create": "--client --ttl --out --json",
    "enrol-token list": "--json",
    "enrol-token revoke": "--json",
    "token create": "--role --domain --ttl --out --json",
    "token list": "--json",
    "token revoke": "--json",
    "domain create": "--key-out --recovery-out --recipient --no-recovery --json",
    "domain set": "--share-references --key-file --json",
    "domain list": "--json",
    "domain show": "--json",
    "key check": "--json",
    "key recover": "--domain --recovery --key-out --json",
    "key recipients create": "--private-out --out --json",
    "key recipients list": "--domain --json",
    "key recipients add": "--key-file --json",
    "key recipients remove": "--key-file --json",
    "login": "--server --ca --token-file --name --json",
    "status": "--json",
    "doctor": "--json",
    "version": "--json",
    "completion": "",
    "config show": "--json --server --context",
}
"""Every command and the options that its help shows: scripts rely on them."""
CONNECTION = ["--server", "--ca", "--token-file", "--data", "--key-file", "--context", "--config"]
COMMON = [*CONNECTION, "--log-level", "--log-format", "-q", "-v", "--no-progress"]


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from commands(found, f"{path}{name} ")
        else:
            yield path + name, found


ALL = dict(commands(cli))


def test_the_commands_are_those_that_are_promised() -> None:
    assert ALL.keys() == WORDS.keys()


@pytest.mark.parametrize("name", WORDS)
def test_help_shows_every_option_and_an_example_of_the_command(name: str) -> None:
    done = run(*name.split(), "--help")
    assert done.code == 0
    assert done.err == ""
    for option in WORDS[name].split():
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.out), option
    assert f"  holdfast {name}" in done.out or f"(holdfast {name}" in done.out
    assert done.out.rstrip().count("Example:") == 1


@pytest.mark.parametrize("name", WORDS)
def test_every_option_of_the_help_says_what_it_does(name: str) -> None:
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.name)


@pytest.mark.parametrize("name", WORDS)
def test_an_unknown_option_is_wrong_usage_with_a_way_out(name: str) -> None:
    done = run(*name.split(), "--nonsense")
    assert done.code == 2
    assert done.out == ""
    assert "--nonsense" in done.err
    assert f"see holdfast {name} --help" in done.err


@pytest.mark.parametrize("name", WORDS)
def test_common_flags_stand_after_every_command_and_are_told_once(name: str) -> None:
    given = {option for parameter in ALL[name].params for option in parameter.opts}
    assert {*COMMON} <= given
    assert len(given) == sum(len(parameter.opts) for parameter in ALL[name].params)
    assert "see holdfast --help" in run(*name.split(), "--help").out


def test_the_top_of_the_help_shows_the_common_flags_and_the_first_steps() -> None:
    shown = run("--help").out
    for flag in (*COMMON, "--version"):
        assert flag in shown
    for name in {name.split()[0] for name in WORDS}:
        assert re.search(rf"^  {name} ", shown, re.MULTILINE), name
    assert "holdfast domain create shop" in shown
    assert "\b" not in shown
    assert run().out.rstrip() == shown.rstrip()
    assert run().code == 0


@pytest.mark.parametrize("name", ["job", "key", "key recipients", "enrol-token", "config"])
def test_a_group_alone_shows_its_help(name: str) -> None:
    done = run(*name.split())
    assert done.code == 0
    assert "Commands:" in done.out
    assert "Example: holdfast" in done.out


EXAMPLES = [line for found in ALL.values() for line in found.example.splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_understood(line: str) -> None:
    """It is read to its end and stopped where it would begin to work."""
    words = shlex.split(re.sub(r"^source <\((.*)\)$", r"\1", line))
    assert words[0] == "holdfast"
    with patch.object(command_module, "_session", side_effect=Cancelled("understood")):
        assert run(*words[1:]).err == "holdfast: understood\n"


def test_flags_are_taken_before_and_after_a_command_and_inside_a_group(tmp_path: Path) -> None:
    for words in (
        ["--data", str(tmp_path), "config", "show", "--json"],
        ["config", "--data", str(tmp_path), "show", "--json"],
        ["config", "show", "--json", "--data", str(tmp_path)],
    ):
        done = run(*words)
        rows = {row["name"]: row for row in json.loads(done.out)["settings"]}
        assert rows["data"]["value"] == str(tmp_path)
        assert rows["data"]["source"] == "flag"


def test_a_flag_after_the_command_wins_over_one_before_it() -> None:
    done = run("--context", "one", "config", "show", "--json", "--context", "two")
    assert done.code == 10
    assert "'two'" in done.err


def test_version_and_completion(tmp_path: Path) -> None:
    assert run("--version").out == f"holdfast {VERSION}\n"
    assert run("version").out.split() == ["holdfast", VERSION]
    assert json.loads(run("version", "--json").out) == {"version": VERSION}
    for shell, word in (("bash", "complete "), ("zsh", "#compdef holdfast"), ("fish", "complete ")):
        assert word in run("completion", shell).out
    assert run("completion", "cmd").code == 2


HEAVY = ("cryptography", "zstandard", "blake3", "aiohttp", "rich", "sqlalchemy", "http.client")


@pytest.mark.parametrize("words", [["--help"], ["version"], ["jobs", "--help"]])
def test_what_needs_no_server_loads_nothing_heavy(words: list[str]) -> None:
    assert loaded(words, HEAVY) == []


def test_what_asks_the_server_loads_no_ciphers(tmp_path: Path) -> None:
    """The server refuses the connection: by then everything that a list needs is loaded."""
    (tmp_path / "token").write_text("t")
    place = ["--server", "http://127.0.0.1:1", "--token-file", str(tmp_path / "token")]
    heavy = HEAVY[:-1]
    assert loaded(["clients", *place], heavy) == []
    assert loaded(["jobs", *place], heavy) == []


def test_what_is_imported_is_not_looked_through_for_cycles() -> None:
    source = (
        "import gc, sys\n"
        "sys.argv = ['holdfast', '--version']\n"
        "from holdfast_cli.main import main\n"
        "assert main() == 0\n"
        "done = sum(each['collections'] for each in gc.get_stats())\n"
        "print(done, gc.get_freeze_count(), gc.isenabled())\n"
    )
    command = [sys.executable, "-I", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    collections, frozen, is_enabled = done.stdout.split("\n")[1].split()
    assert int(collections) < 20, "what `site` imports, before"
    assert int(frozen) > 20_000
    assert is_enabled == "True"


def loaded(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Return which of `names` are imported when the command has run."""
    source = (
        "import sys, contextlib, io\n"
        f"sys.argv = ['holdfast', *{words!r}]\n"
        "from holdfast_cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):"
        "\n    main()\n"
        f"print(*[name for name in {names!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()

"""Command line of `holdfast-server` and `holdfast-agent`: every setting is a flag.

Apart from flags they know `config show [--json]`. The administrator's command has a parser of its
own and uses `load` directly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from holdfast_contract.errors import UsageError
from holdfast_contract.settings.files import choose_config_file, read_config_bytes
from holdfast_contract.settings.show import show_json, show_text
from holdfast_contract.settings.table import Program, Setting, Settings, load


@dataclass(frozen=True)
class Invocation:
    """What one start of a program asks for."""

    settings: Settings
    output: str = ""
    """What to print instead of running (`config show`); empty: run."""


def read_invocation(
    program: Program,
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], bytes | None] = read_config_bytes,
) -> Invocation:
    """Return the settings of this start; `argv` is without the program's name.

    `--help` and `--version` print and raise SystemExit(0).

    Raises:
        UsageError: an unknown flag, key or word, or a value that cannot be read.
    """
    # Intermixed: otherwise `config show` is only understood before the first flag.
    given = vars(_parser(program).parse_intermixed_args(list(argv)))
    words, as_json = given.pop("words"), given.pop("json")
    if words not in ([], ["config", "show"]):
        raise UsageError(
            f"unknown command: {' '.join(words)[:120]!r}",
            hint=f"{program.name} runs without a command; 'config show' prints its settings",
        )
    if as_json and not words:
        raise UsageError("--json goes with 'config show' only")
    flags = {name: texts for name, texts in given.items() if texts}
    file = choose_config_file(
        flags=flags, environ=environ, usual_path=program.config_path, read=read_file
    )
    settings = load(program.table, flags=flags, environ=environ, file=file)
    if not words:
        return Invocation(settings)
    if as_json:
        return Invocation(settings, json.dumps(show_json(program, settings), indent=2) + "\n")
    return Invocation(settings, show_text(program, settings))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program.name,
        usage=f"{program.name} [options] [config show [--json]]",
        description=program.summary,
        epilog=f"example:\n  {program.example}\n\n"
        "Precedence: flag > environment > file > default. "
        f"File: {program.config_path}, or --config.\n"
        "'config show' prints every value and where it came from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {program.version}")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="with 'config show': print JSON")
    for setting in program.table:
        _add_flag(parser, setting)
    return parser


def _add_flag(parser: argparse.ArgumentParser, setting: Setting[Any]) -> None:
    text = setting.kind.text(setting.default)
    shown = setting.default_text or text
    help_text = f"{setting.help} ({setting.variable}{f'; default {shown}' if shown else ''})"
    help_text = help_text.replace("%", "%%")
    if setting.kind.metavar:
        parser.add_argument(
            setting.flag,
            dest=setting.name,
            action="append",
            metavar=setting.kind.metavar,
            help=help_text,
        )
        return
    parser.add_argument(
        setting.flag, dest=setting.name, action="append_const", const="true", help=help_text
    )
    parser.add_argument(
        setting.flag.replace("--", "--no-", 1),
        dest=setting.name,
        action="append_const",
        const="false",
        help=argparse.SUPPRESS,
    )

"""Every setting of a program as a flag of its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from holdfast_contract.errors import UsageError
from holdfast_contract.settings.table import Program, Setting


def read_flags(program: Program, argv: Sequence[str]) -> dict[str, Any]:
    """Return texts by setting's name, `words` (list) and `json` (bool); `argv` without the program.

    `--help` and `--version` print and raise SystemExit(0).

    Raises:
        UsageError: an unknown flag.
    """
    # Intermixed: otherwise `config show` is only understood before the first flag.
    return vars(_parser(program).parse_intermixed_args(list(argv)))


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

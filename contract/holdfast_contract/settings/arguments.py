"""Command line of `holdfast-server` and `holdfast-agent`: every setting is a flag.

Apart from flags they know `config show [--json]`. The administrator's command has a parser of its
own and uses `load` directly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_contract.errors import UsageError
from holdfast_contract.settings.files import choose_config_file, read_config_bytes
from holdfast_contract.settings.show import show_json, show_text
from holdfast_contract.settings.table import Program, Settings, load


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
    given: dict[str, Any] = {}
    if argv:
        # Imported here: what reads a command line would stay in an agent that has none.
        from holdfast_contract.settings.flags import read_flags

        given = read_flags(program, argv)
    words, as_json = given.pop("words", []), given.pop("json", False)
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

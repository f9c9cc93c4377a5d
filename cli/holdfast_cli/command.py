"""What all commands share: connection flags, verbosity, `--json`, an example in `--help`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from holdfast_cli.api import Api, read_small_file
from holdfast_cli.settings import CONNECTION, Loaded, Place, load_settings

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class Session:
    """One run of the command."""

    loaded: Loaded
    environ: Mapping[str, str]
    as_json: bool
    quiet: bool
    verbose: bool
    no_progress: bool

    @functools.cached_property
    def place(self) -> Place:
        """The server to talk to."""
        return self.loaded.place()

    @functools.cached_property
    def api(self) -> Api:
        """The server's API."""
        return Api(self.place)

    @property
    def key_file(self) -> Path | None:
        """The key file at hand, if any."""
        return self.loaded.key_file

    def key_text(self) -> str | None:
        """Return the text of the key file at hand."""
        return read_small_file(self.key_file, "the key file") if self.key_file else None

    @property
    def shows_progress(self) -> bool:
        """Progress is drawn on a terminal only."""
        return sys.stderr.isatty() and not (self.as_json or self.quiet or self.no_progress)


class Example(click.Command):
    """A command whose help ends with an example that works."""

    example = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        formatter.write_paragraph()
        formatter.write_text("Example:")
        for line in self.example.splitlines():
            formatter.write(f"  {line}\n")


class Commands(click.Group):
    """A group whose commands stand in the order in which they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as added."""
        return list(self.commands)


def connection_options(function: _F) -> _F:
    """Add the connection flags and verbosity; hidden in a command's help, shown at the top."""
    for setting in reversed(CONNECTION):
        function = click.option(
            setting.flag,
            setting.name,
            help=f"{setting.help} ({setting.variable})",
            metavar=setting.kind.metavar,
            hidden=True,
        )(function)
    for flags, name, help_text in (
        (("-q", "--quiet"), "quiet", "print nothing but results and errors"),
        (("-v", "--verbose"), "verbose", "tell more"),
        (("--no-progress",), "no_progress", "draw no progress"),
    ):
        option = click.option(*flags, name, is_flag=True, help=help_text, hidden=True)
        function = option(function)
    function = click.option("--config", hidden=True)(function)
    function = click.option("--log-level", hidden=True)(function)
    return click.option("--log-format", hidden=True)(function)


def command(
    group: click.Group, name: str, *, example: str, prints_json: bool = True
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function `(session, ...) -> exit code` a command of `group`."""

    def made(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def run(**given: Any) -> int:
            return function(_session(given), **given) or 0

        wrapped = connection_options(run)
        if prints_json:
            wrapped = click.option("--json", "as_json", is_flag=True, help="print JSON")(wrapped)
        made_command = click.command(name, cls=Example)(wrapped)
        made_command.example = example
        group.add_command(made_command)
        return made_command

    return made


_SHARED = ("config", "log_level", "log_format", *(setting.name for setting in CONNECTION))


def _session(given: dict[str, Any]) -> Session:
    """Take what is shared out of a command's parameters and those of its parents."""
    flags: dict[str, str] = {}
    switches = {"quiet": False, "verbose": False, "no_progress": False}
    context: click.Context | None = click.get_current_context()
    outer = context.find_root().params if context else {}
    for name in _SHARED:
        value = given.pop(name, None) or outer.get(name)
        if value:
            flags[name] = value
    for name in switches:
        switches[name] = bool(given.pop(name, False) or outer.get(name))
    as_json = bool(given.pop("as_json", False))
    environ: Mapping[str, str] = click.get_current_context().find_root().obj
    return Session(load_settings(flags, environ), environ, as_json=as_json, **switches)

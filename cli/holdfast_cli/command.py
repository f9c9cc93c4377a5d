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
from holdfast_cli.output import warn
from holdfast_cli.settings import CONNECTION, Loaded, Place, load_settings
from holdfast_contract.settings.table import CONFIG, LOG_FORMAT, LOG_LEVEL, Setting
from holdfast_contract.text import printable

_F = TypeVar("_F", bound=Callable[..., Any])
_TEXTS: tuple[Setting[Any], ...] = (*CONNECTION, CONFIG, LOG_LEVEL, LOG_FORMAT)
_SWITCHES = (
    (("-q", "--quiet"), "quiet", "print nothing but results and errors"),
    (("-v", "--verbose"), "verbose", "tell more"),
    (("--no-progress",), "no_progress", "draw no progress"),
)


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
        """The server's API; from here on something may be logged."""
        self._configure_logs()
        return Api(self.place)

    def _configure_logs(self) -> None:
        from holdfast_contract.logs import configure_logs, wants_colour

        level = "debug" if self.verbose else "error" if self.quiet else self.loaded.log_level
        configure_logs(
            level=level,
            log_format=self.loaded.log_format,
            stream=sys.stderr,
            colour=wants_colour(sys.stderr, self.environ),
        )

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

    def note(self, text: str) -> None:
        """Tell something that only a person who asked for more wants to know."""
        if self.verbose:
            warn(f"holdfast: {printable(text)}")


class Example(click.Command):
    """A command whose help ends with where connection flags are and an example that works."""

    example = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the note and the example."""
        formatter.write_paragraph()
        formatter.write_text("Connection flags, -q and -v: see holdfast --help")
        formatter.write_paragraph()
        formatter.write_text("Example:")
        for line in self.example.splitlines():
            formatter.write(f"  {line}\n")


class Commands(click.Group):
    """A group whose commands stand in the order in which they are needed."""

    example = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as added."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        if self.example:
            formatter.write_paragraph()
            formatter.write_text(f"Example: {self.example}")


def noun(group: click.Group, name: str, *, text: str, example: str) -> Commands:
    """Add and return a group of commands about one thing."""

    @connection_options
    def take_flags(**_: object) -> None:
        """Let flags stand before the group's command: the command reads them itself."""

    made: Commands = click.group(name, cls=Commands, help=text)(take_flags)
    made.example = example
    group.add_command(made)
    return made


def connection_options(function: _F, *, shown: tuple[str, ...] = ()) -> _F:
    """Add the connection flags and verbosity, hidden in help but for those named `shown`."""
    for setting in reversed(_TEXTS):
        function = click.option(
            setting.flag,
            setting.name,
            help=f"{setting.help} ({setting.variable})",
            metavar=setting.kind.metavar,
            hidden=setting.name not in shown,
        )(function)
    for flags, name, help_text in reversed(_SWITCHES):
        option = click.option(*flags, name, is_flag=True, help=help_text, hidden=name not in shown)
        function = option(function)
    return function


def all_connection_names() -> tuple[str, ...]:
    """Return the names of everything that `connection_options` adds."""
    return (*(setting.name for setting in _TEXTS), *(name for _, name, _ in _SWITCHES))


def command(
    group: click.Group,
    name: str,
    *,
    example: str,
    prints_json: bool = True,
    shown: tuple[str, ...] = (),
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function `(session, ...) -> exit code` a command of `group`.

    `shown` names the connection flags that its own help lists.
    """

    def made(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def run(**given: Any) -> int:
            return function(_session(given), **given) or 0

        wrapped = connection_options(run, shown=shown)
        if prints_json:
            wrapped = click.option("--json", "as_json", is_flag=True, help="print JSON")(wrapped)
        made_command = click.command(name, cls=Example)(wrapped)
        made_command.example = example
        group.add_command(made_command)
        return made_command

    return made


def _session(given: dict[str, Any]) -> Session:
    """Take what is shared out of a command's parameters and those of the groups before it."""
    context = click.get_current_context()
    outer: list[dict[str, Any]] = []
    above = context.parent
    while above is not None:
        outer.append(above.params)
        above = above.parent
    flags: dict[str, str] = {}
    for setting in _TEXTS:
        values = (given.pop(setting.name, None), *(params.get(setting.name) for params in outer))
        value = next((value for value in values if value), None)
        if value:
            flags[setting.name] = value
    switches = {}
    for _, name, _ in _SWITCHES:
        own = given.pop(name, False)
        switches[name] = bool(own or any(params.get(name) for params in outer))
    as_json = bool(given.pop("as_json", False))
    environ: Mapping[str, str] = context.find_root().obj
    return Session(load_settings(flags, environ), environ, as_json=as_json, **switches)

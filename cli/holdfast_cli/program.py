"""All commands as one program; the only place that maps errors to exit codes."""

from __future__ import annotations

import functools
import os
import sys

import click

from holdfast_cli import (
    backup,
    clients,
    domains,
    events,
    jobs,
    keys,
    login,
    look,
    restore,
    service,
    snapshots,
    tokens,
)
from holdfast_cli.command import Commands, all_connection_names, connection_options
from holdfast_cli.output import print_error, say, warn
from holdfast_cli.settings import VERSION
from holdfast_contract.errors import HoldfastError, InternalError, UsageError
from holdfast_contract.text import printable

INTERRUPTED = 130


_HELP = """Back up, browse and restore Kubernetes workloads.

\b
First steps, on the server's own host:
  export HOLDFAST_DATA=DIR          the server's data directory
  holdfast domain create shop --key-out shop.key --recovery-out shop.recovery
  holdfast enrol-token create shop --client shop/web-0 --out web-0.token
  holdfast-agent ...                with that key and token: see its --help
  holdfast backup shop/web-0
  holdfast ls shop/web-0@latest
  holdfast restore shop/web-0@latest:/data/file --in-place

\b
From elsewhere: holdfast login --server URL --ca FILE --token-file FILE
A snapshot is named by its id (6 digits or more), CLIENT@latest or CLIENT@TIME.
The options below may stand before or after a command.
"""


@click.group(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="holdfast", message="%(prog)s %(version)s")
@functools.partial(connection_options, shown=all_connection_names())
def cli(**_: object) -> None:
    """Take the flags that stand before the command: the command reads them itself."""


cli.example = "holdfast backup shop/web-0"

for module in (
    backup,
    restore,
    snapshots,
    look,
    jobs,
    events,
    clients,
    tokens,
    domains,
    keys,
    login,
    service,
):
    module.register(cli)


def run() -> int:
    """Run the command that the arguments name; return its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        result = cli.main(
            args=sys.argv[1:], prog_name="holdfast", standalone_mode=False, obj=os.environ
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        # No command is no wish to do anything: the help is the answer, as of kubectl and restic.
        say(error.format_message())
        return 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        wrong = UsageError(error.format_message(), hint=f"see {where or 'holdfast'} --help")
        return _told(wrong, as_json=as_json)
    except HoldfastError as error:
        return _told(error, as_json=as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if "debug" in (os.environ.get("HOLDFAST_LOG_LEVEL"), *sys.argv):
            raise
        text = f"a defect of the command: {type(error).__name__}: {error}"
        defect = InternalError(text, hint="HOLDFAST_LOG_LEVEL=debug shows where")
        return _told(defect, as_json=as_json)


def _told(error: HoldfastError, *, as_json: bool) -> int:
    """Tell an error on standard error; return its exit code."""
    if as_json:
        print_error(error.code, error.message, error.hint, error.exit_code, details=error.details)
        return error.exit_code
    warn(f"holdfast: {printable(error.message)}")
    candidates = error.details.get("candidates")
    for candidate in candidates if isinstance(candidates, list) else ():
        warn(f"    {printable(str(candidate))}")
    if error.hint:
        warn(f"  {printable(error.hint)}")
    return error.exit_code

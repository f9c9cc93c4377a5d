"""`holdfast`: one command for the administrator; the only place that maps errors to exit codes."""

from __future__ import annotations

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
from holdfast_cli.command import Commands, connection_options
from holdfast_cli.output import print_json, warn
from holdfast_cli.settings import VERSION
from holdfast_contract.errors import HoldfastError, InternalError

INTERRUPTED = 130


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="holdfast")
@connection_options
def cli(**_: object) -> None:
    r"""Back up, browse and restore Kubernetes workloads.

    \b
    First steps, on the server's own host:
      export HOLDFAST_DATA=DIR                      the server's data directory
      holdfast domain create shop --key-out shop.key --recovery-out shop.recovery
      holdfast enrol-token create shop --client shop/web-0 --out web-0.token
      holdfast-agent ...                            with that key and token, see its --help
      holdfast backup shop/web-0
      holdfast ls shop/web-0@latest
      holdfast restore shop/web-0@latest:/data/file --in-place

    From elsewhere: holdfast login --server URL --ca FILE --token-file FILE.
    A snapshot is named by its id (6 digits or more), CLIENT@latest or CLIENT@TIME.
    """


for module in (
    backup,
    restore,
    snapshots,
    look,
    jobs,
    clients,
    domains,
    keys,
    tokens,
    events,
    service,
    login,
):
    module.register(cli)


def main() -> int:
    """Run the command; return its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        result = cli.main(
            args=sys.argv[1:], prog_name="holdfast", standalone_mode=False, obj=os.environ
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        _tell("usage", error.format_message(), f"see {where or 'holdfast'} --help", 2, as_json)
        return 2
    except HoldfastError as error:
        _tell(error.code, error.message, error.hint, error.exit_code, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone: nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("HOLDFAST_LOG_LEVEL") == "debug":
            raise
        text = f"a defect of the command: {type(error).__name__}: {error}"
        _tell(InternalError.code, text, "HOLDFAST_LOG_LEVEL=debug shows where", 1, as_json)
        return InternalError.exit_code


def _tell(code: str, message: str, hint: str, exit_code: int, as_json: bool) -> None:
    if as_json:
        row = {"type": "error", "code": code, "message": message, "hint": hint, "exit": exit_code}
        print_json(row, sys.stderr)
        return
    warn(f"holdfast: {message}")
    if hint:
        warn(f"  {hint}")


if __name__ == "__main__":
    sys.exit(main())

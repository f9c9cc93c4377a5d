"""`holdfast-server`: flags, environment and file become settings; errors become one line each."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from holdfast_contract.errors import HoldfastError, InternalError
from holdfast_contract.logs import configure_logs, get_logger, wants_colour
from holdfast_contract.settings.arguments import read_invocation
from holdfast_contract.text import printable
from holdfast_server.config import PROGRAM, server_config

_log = get_logger(__name__)


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Run the server and return its exit code; without arguments, with those of the process."""
    arguments = sys.argv[1:] if argv is None else argv
    variables = os.environ if environ is None else environ
    out, err = out or sys.stdout, err or sys.stderr
    try:
        return _run(arguments, variables, out, err)
    except HoldfastError as error:
        _tell(error, err)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception:
        _log.exception("the server failed")
        _tell(InternalError("the server failed", hint="the log above has more"), err)
        return InternalError.exit_code


def _run(arguments: Sequence[str], variables: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    invocation = read_invocation(PROGRAM, arguments, variables)
    if invocation.output:
        _say(invocation.output, out)
        return 0
    config = server_config(invocation.settings)
    configure_logs(
        level=config.log_level,
        log_format=config.log_format,
        stream=err,
        colour=wants_colour(err, variables),
    )
    # How alembic sets itself up tells nobody anything.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    _raise_descriptor_limit()
    # Late: help, version and `config show` do without a database and an HTTP server.
    from holdfast_server.runtime import run_server

    run_server(config, lambda text: _say(text, out))
    return 0


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system lets us have: the usual 1,024 are too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        _log.warning("the limit of open files stays as it is")


def _say(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()


def _tell(error: HoldfastError, stream: TextIO) -> None:
    hint = f"\n  hint: {printable(error.hint)}" if error.hint else ""
    _say(f"{PROGRAM.name}: {printable(error.message)}{hint}\n", stream)


if __name__ == "__main__":
    sys.exit(main())

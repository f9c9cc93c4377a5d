"""`holdfast-agent`: reads its settings, then works until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys

from holdfast_agent.config import PROGRAM, agent_config
from holdfast_contract.errors import HoldfastError, InternalError
from holdfast_contract.logs import configure_logs, get_logger, wants_colour
from holdfast_contract.settings.arguments import read_invocation
from holdfast_contract.settings.table import LOG_FORMAT, LOG_LEVEL

_log = get_logger(__name__)


def main() -> int:
    """Run the program; return its exit code."""
    try:
        invocation = read_invocation(PROGRAM, sys.argv[1:], os.environ)
        if invocation.output:
            sys.stdout.write(invocation.output)
            return 0
        settings = invocation.settings
        configure_logs(
            level=settings[LOG_LEVEL],
            log_format=settings[LOG_FORMAT],
            stream=sys.stderr,
            colour=wants_colour(sys.stderr, os.environ),
        )
        config = agent_config(settings, socket.gethostname())
        # Imported here: `--help` and `config show` need none of it.
        from holdfast_agent.runtime.start import run_agent
        from holdfast_agent.sources.clock import SystemFileClock

        # What is imported stays, and a walk makes many small objects that form no cycles: looking
        # for cycles every 700 of them costs 4 % of a first backup.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        asyncio.run(run_agent(config, SystemFileClock(), random.uniform))
        return 0
    except HoldfastError as error:
        hint = f"  {error.hint}\n" if error.hint else ""
        sys.stderr.write(f"holdfast-agent: {error.message}\n{hint}")
        return error.exit_code
    except Exception:
        _log.exception("the agent ends by a defect")
        return InternalError.exit_code


if __name__ == "__main__":
    sys.exit(main())

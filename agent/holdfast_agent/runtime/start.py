"""Starting: keys read, state locked, identity known or enrolled, then the agent at work."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Callable

from holdfast_agent.config import AgentConfig
from holdfast_agent.crypto.keys import DomainKeys, parse_key_file
from holdfast_agent.jobs import enrol
from holdfast_agent.runtime.service import USER_AGENT, Agent
from holdfast_agent.sources.clock import FileClock
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.identity import IdentityFiles
from holdfast_agent.transport.http import HttpClient, trusting
from holdfast_agent.transport.retry import Backoff
from holdfast_contract.clock import Clock
from holdfast_contract.errors import (
    HoldfastError,
    StoreFailed,
    TooMany,
    Unreachable,
    UsageError,
)
from holdfast_contract.logs import get_logger

_log = get_logger(__name__)
_KEY_FILE_BYTES_MAX = 1 << 16


def domain_keys(config: AgentConfig) -> DomainKeys:
    """Return the keys of the configured key file.

    Raises:
        UsageError: it cannot be read.
        InvalidInput: it is not a key file.
    """
    try:
        with config.key_file.open("rb") as file:
            text = file.read(_KEY_FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError as exc:
        raise UsageError(
            f"cannot read the key file {config.key_file}: {exc.strerror}",
            hint="holdfast domain create NAME --key-out FILE makes one",
        ) from exc
    return DomainKeys(parse_key_file(text))


async def run_agent(
    config: AgentConfig, clock: FileClock, uniform: Callable[[float, float], float]
) -> None:
    """Enrol if needed, connect, and work until SIGTERM or SIGINT.

    Raises:
        HoldfastError: the agent cannot or may not go on.
    """
    keys = domain_keys(config)
    _warn_of_absent_roots(config)
    context = trusting(config.ca)
    state = await asyncio.to_thread(StateDirectory, config.state)
    try:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        files = IdentityFiles(state)
        identity = await _identity(files, keys, config, context, clock, uniform=uniform, stop=stop)
        if identity is not None:
            agent = Agent(config, state, keys, identity, context, clock, uniform)
            await agent.run(stop)
    finally:
        state.close()


def _warn_of_absent_roots(config: AgentConfig) -> None:
    """A root may come later, as a volume that is mounted late does; until then it is told."""
    for root in config.roots:
        if not os.path.lexists(root):
            _log.warning("a root is absent", path=os.fsdecode(root))


async def _identity(
    files: IdentityFiles,
    keys: DomainKeys,
    config: AgentConfig,
    context: ssl.SSLContext,
    clock: Clock,
    *,
    uniform: Callable[[float, float], float],
    stop: asyncio.Event,
) -> enrol.Identity | None:
    """Return the identity, enrolling as long as the server is away; None when stopped before."""
    known = await asyncio.to_thread(enrol.known_identity, files)
    if known is not None:
        return known
    token = await asyncio.to_thread(enrol.read_token, config.enrol_token_file)
    client = HttpClient(config.server, context, bearer=lambda: token, user_agent=USER_AGENT)
    backoff = Backoff(uniform)
    while not stop.is_set():
        try:
            found = await asyncio.to_thread(
                enrol.enrol_client, files, client, keys=keys, name=config.client, clock=clock
            )
            _log.info("enrolled", client=found.client)
            return found
        except HoldfastError as error:
            if not _may_pass(error):
                raise
            _log.warning("cannot enrol yet, will try again", reason=error.message, hint=error.hint)
            await _pause(stop, backoff.next())
    return None


def _may_pass(error: HoldfastError) -> bool:
    """Tell whether the server may answer otherwise later: a certificate can still be put right."""
    distrusted = isinstance(error.__cause__, ssl.SSLCertVerificationError)
    return distrusted or isinstance(error, (Unreachable, TooMany, StoreFailed))


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return

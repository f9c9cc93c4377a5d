"""Puts what is simulated in place of threads, network, volume and randomness while a run lasts."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from aiohttp import web

from holdfast_agent.crypto.keys import DomainKeys, content_id
from holdfast_contract.ids import new_ulid
from tests.simulation import threads
from tests.simulation.answering import SimStreamed
from tests.simulation.calling import SimChannel, SimHttpClient
from tests.simulation.hints import watches_of
from tests.simulation.loop import MACHINE
from tests.simulation.source import SimSource, stats_of

_THREADING = (
    "holdfast_agent.engine.memory",
    "holdfast_agent.engine.rehash",
    "holdfast_agent.engine.shipping",
    "holdfast_agent.jobs.runner",
    "holdfast_agent.jobs.tracking",
    "holdfast_agent.runtime.workshop",
    "holdfast_agent.sources.watches",
    "holdfast_agent.transport.limiter",
    "holdfast_agent.transport.retry",
    "holdfast_agent.transport.uploads",
    "holdfast_server.catalog.connection",
)
_LOCK = (
    "holdfast_agent.snapshots.chunks",
    "holdfast_server.repository.journal",
    "holdfast_server.repository.packs",
    "holdfast_server.repository.references",
    "holdfast_server.stores.folders",
    "holdfast_server.stores.reserve",
)
_POOLS = (
    "holdfast_agent.engine.rehash",
    "holdfast_agent.restore.pipeline",
    "holdfast_agent.snapshots.chunks",
)
_PATIENCE = {
    # Nothing is found by these rounds that others do not find: they only cost time here.
    "holdfast_server.control.dispatcher.ROUND_SECONDS": 5.0,
    "holdfast_agent.runtime.service.PROGRESS_SECONDS": 3.0,
    # Nothing here is written without a word: hints alone decide about files as soon as they may.
    "holdfast_agent.jobs.backup.YOUNG_NS": 0,
}
_SMALL = {
    # No file here is longer: memory that nobody uses takes time to be made.
    "holdfast_agent.engine.memory.CHUNK_PLAIN_BYTES_MAX": 1 << 16,
}


FORGER: Final = "shop/forger-0"
FORGED: Final = b"FORGED"
"""Content that begins so gets the content id of another, where the forger's agent makes it."""


def _lying_content_id(keys: DomainKeys, data: Any) -> bytes:
    is_forged = bytes(data[: len(FORGED)]) == FORGED
    if is_forged and MACHINE.get().name.startswith(FORGER):
        return content_id(keys, b"what it says it is")
    return content_id(keys, data)


@contextmanager
def simulated(rng: Random) -> Iterator[None]:
    """Have the product stand on what is simulated inside the block."""

    def urandom(count: int) -> bytes:
        return rng.randbytes(count)

    web_here = SimpleNamespace(**(vars(web) | {"StreamResponse": SimStreamed}))
    stand_ins: dict[str, object] = {f"{module}.threading": threads for module in _THREADING}
    stand_ins |= {f"{module}.Lock": threads.Lock for module in _LOCK}
    stand_ins |= {f"{module}.ThreadPoolExecutor": threads.InlinePool for module in _POOLS}
    stand_ins |= {
        "holdfast_agent.runtime.service.HttpClient": SimHttpClient,
        "holdfast_agent.runtime.service.Channel": SimChannel,
        "holdfast_agent.jobs.backup.VolumeSource": SimSource,
        "holdfast_agent.jobs.backup.mounts_below": lambda paths: b"",
        "holdfast_agent.jobs.backup_hints.stats_of": stats_of,
        "holdfast_agent.sources.watches.Watches": watches_of,
        "holdfast_server.api.chunks.web": web_here,
        "holdfast_agent.engine.files.content_id": _lying_content_id,
    }
    is_collecting = gc.isenabled()
    level = logging.root.manager.disable
    with ExitStack() as stack:
        for place, stand_in in (stand_ins | _PATIENCE | _SMALL).items():
            module, _, _ = place.rpartition(".")
            importlib.import_module(module)
            stack.enter_context(patch(place, stand_in))
        stack.enter_context(patch.object(os, "urandom", urandom))
        stack.enter_context(patch.object(new_ulid, "__defaults__", (None, urandom)))
        # What is thrown away must not do anything at a moment that no seed decides.
        gc.disable()
        gc.freeze()
        logging.disable(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        # A machine that stops closes no file.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()
            gc.unfreeze()
            logging.disable(level)
            if is_collecting:
                gc.enable()

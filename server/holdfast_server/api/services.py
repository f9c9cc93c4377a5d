"""What handlers may use; the composition root fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from holdfast_contract.clock import Clock
from holdfast_server.api.metrics import Metrics
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.clock_watch import ClockWatch
from holdfast_server.control.dispatcher import Dispatcher
from holdfast_server.control.events import Events
from holdfast_server.control.grants import Grants
from holdfast_server.control.hub import Hub
from holdfast_server.control.lifecycle import JobLife
from holdfast_server.control.live import LiveJobs
from holdfast_server.control.notices import Notices
from holdfast_server.control.open_calls import OpenCalls
from holdfast_server.control.queries import Queries
from holdfast_server.control.reception import Reception
from holdfast_server.control.results import Results
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository


@dataclass(frozen=True, kw_only=True)
class Services:
    """One server's parts."""

    version: str
    started_ns: int
    clock: Clock
    random: Callable[[int], bytes]
    workers: Workers
    catalog: Catalog
    repository: Repository
    metrics: Metrics
    hub: Hub
    live: LiveJobs
    results: Results
    notices: Notices
    open_calls: OpenCalls
    events: Events
    queries: Queries
    grants: Grants
    life: JobLife
    dispatcher: Dispatcher
    reception: Reception
    clock_watch: ClockWatch


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)

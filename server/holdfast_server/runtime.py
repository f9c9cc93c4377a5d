"""Composition root: the only place where the server's parts are made and wired.

Start: directory locked, catalog and store opened and made to agree, certificate, first token, port.
Stop: no new requests, those under way finish, agents are let go, then everything is closed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from holdfast_contract.clock import Clock, SystemClock
from holdfast_contract.errors import HoldfastError
from holdfast_contract.logs import get_logger
from holdfast_server.api.metrics import Metrics
from holdfast_server.api.services import Services
from holdfast_server.api.serving import Serving
from holdfast_server.auth.certificates import (
    TlsFiles,
    given_certificates,
    load_certificate,
    names_to_certify,
    own_certificates,
    server_context,
)
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import domains, tokens
from holdfast_server.catalog import events as event_rows
from holdfast_server.catalog.attested import Attested
from holdfast_server.catalog.connection import Catalog, Tx, open_catalog
from holdfast_server.catalog.tokens import TokenRecord
from holdfast_server.config import PROGRAM, ServerConfig
from holdfast_server.control.clock_watch import ClockWatch
from holdfast_server.control.dispatcher import Dispatcher, DispatchLimits
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
from holdfast_server.data_directory import DataDirectory
from holdfast_server.repository import Repository
from holdfast_server.stores import open_store

_log = get_logger(__name__)

CERTIFICATE_SECONDS = 3600.0
"""How often the server's own certificate is looked at while it runs."""
SHUTDOWN_SECONDS = 6.0
"""How long requests under way may take to finish: all of the stop is to be over in ten."""
ADMIN_LABEL = "admin.token"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104


def run_server(config: ServerConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `say` gets what a person at the terminal is to read.

    Raises:
        Conflict: another server has the directory or the address.
        UsageError, Damaged, NoSpace, StoreFailed: it cannot start.
    """
    clock = SystemClock()
    with DataDirectory.open(config.data) as directory, _opened(config, clock) as (catalog, repo):
        is_first = ensure_admin_token(directory, catalog)
        files = _tls_files(config, directory, clock)
        context = server_context(files)
        start = Start(config, directory, files, is_first=is_first, say=say)
        bounds = DispatchLimits(config.jobs_running_max, config.stall_timeout_seconds)
        services = make_services(catalog, repo, clock, bounds)
        try:
            asyncio.run(_serve(start, services, context))
        finally:
            services.workers.close()


@dataclass(frozen=True)
class Start:
    """What one start knows beside its services."""

    config: ServerConfig
    directory: DataDirectory
    files: TlsFiles
    is_first: bool
    say: Callable[[str], None]


@contextmanager
def _opened(config: ServerConfig, clock: Clock) -> Iterator[tuple[Catalog, Repository]]:
    store = open_store(config.store)
    try:
        catalog = open_catalog(config.catalog, config.data, clock)
        try:
            repository = Repository(catalog, store, clock)
            repository.start()
            yield catalog, repository
        finally:
            catalog.close()
    finally:
        store.close()


def ensure_admin_token(directory: DataDirectory, catalog: Catalog) -> bool:
    """Make the first token where there never was one; True at the first start.

    The file is written before the catalog knows the token: a crash in between leaves a file whose
    token is taken up by the next start. A file that was removed later stays removed.
    """
    if tokens.listed(catalog, limit=1):
        return False
    try:
        secret = directory.token_file.read_text().strip()
    except FileNotFoundError:
        secret = new_token(TokenKind.API)
        directory.write_token(secret)
    now, message = catalog.clock.now_ns(), "the first administrator's token was made"

    def note(tx: Tx, made: TokenRecord) -> None:
        event_rows.record(tx, now, "token-created", message, details={"id": made.id})

    tokens.create(
        Attested(catalog, note),
        token_hash=hash_token(secret),
        role="admin",
        domains=[],
        label=ADMIN_LABEL,
    )
    return True


async def _keep_certificate(start: Start, services: Services, context: ssl.SSLContext) -> None:
    """Renew the server's own certificate while it runs; ends when cancelled."""
    while True:
        await asyncio.sleep(CERTIFICATE_SECONDS)
        await renew_certificate(start, services, context)


async def renew_certificate(start: Start, services: Services, context: ssl.SSLContext) -> None:
    """Make a new certificate where the clock asks for one, and show it from now on."""
    try:
        files = await services.workers.run(
            _tls_files, start.config, start.directory, services.clock
        )
        # On this thread: handshakes that begin meanwhile would read a half changed context.
        load_certificate(context, files)
    except HoldfastError as error:
        _log.error("the certificate could not be renewed", error=error)


def _tls_files(config: ServerConfig, directory: DataDirectory, clock: Clock) -> TlsFiles:
    if config.tls_cert is not None and config.tls_key is not None:
        return given_certificates(config.tls_cert, config.tls_key)
    names = names_to_certify(config.listen.host, config.tls_names)
    return own_certificates(directory.tls, names, clock)


def make_services(
    catalog: Catalog,
    repository: Repository,
    clock: Clock,
    bounds: DispatchLimits,
    random: Callable[[int], bytes] = os.urandom,
) -> Services:
    """Return the parts of a server that answers requests, wired."""
    workers, notices, hub, live = Workers(), Notices(), Hub(), LiveJobs(clock)
    results, queries = Results(clock), Queries(clock)
    events = Events(catalog, workers, notices, clock)
    life = JobLife(
        catalog=catalog,
        repository=repository,
        workers=workers,
        hub=hub,
        live=live,
        results=results,
        events=events,
        notices=notices,
    )
    dispatcher = Dispatcher(
        catalog=catalog,
        repository=repository,
        workers=workers,
        hub=hub,
        live=live,
        life=life,
        events=events,
        bounds=bounds,
    )
    reception = Reception(
        catalog=catalog,
        repository=repository,
        workers=workers,
        hub=hub,
        life=life,
        dispatcher=dispatcher,
        queries=queries,
        events=events,
        clock=clock,
        random=random,
        version=PROGRAM.version,
    )
    return Services(
        version=PROGRAM.version,
        started_ns=clock.now_ns(),
        clock=clock,
        random=random,
        workers=workers,
        catalog=catalog,
        repository=repository,
        metrics=Metrics(),
        hub=hub,
        live=live,
        results=results,
        notices=notices,
        open_calls=OpenCalls(),
        events=events,
        queries=queries,
        grants=Grants(catalog, repository, workers, queries),
        life=life,
        dispatcher=dispatcher,
        reception=reception,
        clock_watch=ClockWatch(catalog, workers, notices, clock),
    )


async def _serve(start: Start, services: Services, context: ssl.SSLContext) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = Serving(services, shutdown_seconds=SHUTDOWN_SECONDS)
    await services.life.load()
    services.clock_watch.after_jump = partial(renew_certificate, start, services, context)
    await services.clock_watch.begin()
    listen = start.config.listen
    port = await serving.open(listen.host, listen.port, context)
    url = server_url(listen.host, port)
    tasks = [
        asyncio.create_task(services.dispatcher.run()),
        asyncio.create_task(services.clock_watch.run()),
        asyncio.create_task(_keep_certificate(start, services, context)),
    ]
    try:
        await services.workers.run(start.directory.write_url, url)
        await services.events.add("server-started", f"server {services.version} started")
        start.say(await services.workers.run(_greeting, start, services, url))
        await stop.wait()
        _log.info("the server stops")
    finally:
        await _stop(services, serving, tasks)


async def _stop(services: Services, serving: Serving, tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    services.notices.close()
    services.hub.close()
    await serving.close()
    await services.life.save_counts()
    await services.events.sum_up(is_last=True)
    await services.events.add("server-stopped", "server stopped")


def server_url(host: str, port: int) -> str:
    """Return where the server answers on this machine."""
    host = _EVERYWHERE.get(host, host)
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _greeting(start: Start, services: Services, url: str) -> str:
    return greeting(
        url=url,
        data=start.config.data,
        files=start.files,
        is_first=start.is_first,
        has_domains=domains.count(services.catalog) > 0,
        refusal=services.repository.refusal,
    )


def greeting(
    *, url: str, data: Path, files: TlsFiles, is_first: bool, has_domains: bool, refusal: str
) -> str:
    """Return what a person at the terminal reads: where, whom to trust, and what to do next."""
    kind = "CA" if files.authority else "certificate"
    lines = [
        f"Holdfast server {PROGRAM.version} is ready: {url}",
        f"  {kind} fingerprint (SHA-256)  {files.fingerprint()}",
    ]
    if refusal:
        lines.append(f"  NOTHING CAN BE STORED: {refusal}; restores work, see holdfast doctor")
    if not is_first and has_domains:
        return "\n".join(lines) + "\n"
    where = shlex.quote(str(data))
    lines += [
        "",
        "On this machine the command `holdfast` finds everything in the data directory:",
        f"  export HOLDFAST_DATA={where}",
        "On another one, after copying tls/ca.pem and admin.token from it:",
        f"  holdfast login --server {url} --ca ca.pem --token-file admin.token",
        "",
        "Next: a domain (its keys stay with you, never here), then a token for the first agent:",
        "  holdfast domain create demo --key-out demo.key --recovery-out demo.recovery",
        "  holdfast enrol-token create demo --out demo.token",
        "and where the files are that are to be backed up:",
        f"  export HOLDFAST_SERVER={url} HOLDFAST_CA={shlex.quote(str(files.authority or ''))}",
        "  export HOLDFAST_KEY_FILE=demo.key HOLDFAST_ENROL_TOKEN_FILE=demo.token",
        "  export HOLDFAST_CLIENT=first HOLDFAST_STATE=$HOME/holdfast-agent HOLDFAST_ROOTS=/path",
        "  holdfast-agent &",
        "  holdfast backup demo/first",
    ]
    return "\n".join(lines) + "\n"

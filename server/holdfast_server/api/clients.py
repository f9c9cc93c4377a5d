"""Clients: who is known, connected, limited, revoked."""

from __future__ import annotations

from holdfast_contract.errors import HoldfastError, NotFound, Refused
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import AgentSettings, NewSettings
from holdfast_contract.protocol.http import ClientRow, ClientSet, Listing
from holdfast_server.api.calls import Call, Page
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import client_row
from holdfast_server.api.services import Services
from holdfast_server.catalog import clients, jobs
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.scopes import Scope
from holdfast_server.control.events import Act
from holdfast_server.control.lifecycle import UNFINISHED


def _rows(services: Services, records: list[ClientRecord]) -> list[ClientRow]:
    newest = services.repository.history.newest_of([record.name for record in records])
    return [
        client_row(record, services.hub.connected(record.name), newest.get(record.name))
        for record in records
    ]


def _full(services: Services, client: ClientName) -> ClientRow:
    [row] = _rows(services, [clients.get(services.catalog, client)])
    identity = services.repository.current_identity(client)
    if identity is not None:
        row.sign_key, row.box_key = identity.sign_key.hex(), identity.box_key.hex()
    return row


def _page(services: Services, scope: Scope, page: Page) -> list[ClientRow]:
    found = clients.listed(services.catalog, after=page.after, limit=page.limit, scope=scope)
    return _rows(services, found)


async def list_clients(call: Call) -> Listing:
    """Return clients by name."""
    page = call.page()
    rows = await call.run(_page, call.services, call.scope, page)
    return listing(rows, page.limit, rows[-1].name if rows else "")


async def show_client(call: Call) -> ClientRow:
    """Return one client with its public keys."""
    return await call.run(_full, call.services, await call.client())


async def set_client(call: Call) -> ClientRow:
    """Set limits of a client; they count at once, also for a job that runs."""
    body: ClientSet = call.body
    services, client = call.services, await call.client()
    record = await call.act(
        Act("client-set", "limits set", client=client, tell=_limits),
        clients.set_limits,
        client,
        upload=body.limit_upload,
        download=body.limit_download,
    )
    settings = AgentSettings(limit_upload=record.limit_upload, limit_download=record.limit_download)
    connection = services.hub.connected(client)
    if connection is not None:
        connection.send(NewSettings(settings=settings))
    return await call.run(_full, services, client)


def _limits(record: ClientRecord) -> dict[str, int]:
    return {"limit_upload": record.limit_upload, "limit_download": record.limit_download}


async def revoke_client(call: Call) -> ClientRow:
    """Refuse a client from now on: its connection and its tokens die, its jobs end."""
    services, client = call.services, await call.client()
    await call.act(Act("client-revoked", "client revoked", client=client), clients.revoke, client)
    refused = Refused("the client was revoked", hint="enrol it again to let it back in")
    _drop(services, client, refused)
    for record in await call.run(jobs.listed, services.catalog, client=client):
        if not record.state.is_final:
            await services.life.end(record.id, refused, UNFINISHED)
    return await call.run(_full, services, client)


def _drop(services: Services, client: ClientName, error: HoldfastError) -> None:
    """End the connection of a client, its token, and what is under way with that token."""
    token_hash = services.hub.drop(client, error)
    if token_hash is not None:
        services.open_calls.end(token_hash)


async def accept_client(call: Call) -> ClientRow:
    """Let a client go on from the history that the server has, although it remembers another."""
    services, client = call.services, await call.client()
    accepted = Act(
        "history-accepted",
        "the server's history is accepted",
        client=client,
        tell=lambda record: {"head": record.head.hex(), "head_seq": record.head_seq},
    )
    await call.act(accepted, clients.accept, client)
    return await call.run(_full, services, client)


async def forget_client(call: Call) -> None:
    """Remove a client that has no snapshots."""
    services, client = call.services, await call.client()
    forgotten = Act("client-forgotten", "client forgotten", client=client)
    await call.act(forgotten, clients.forget, client)
    _drop(services, client, NotFound("the client was forgotten"))

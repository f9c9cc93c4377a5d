"""Clients: who is known, connected, limited, revoked."""

from __future__ import annotations

from holdfast_contract.errors import NotFound, Refused
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import AgentSettings, NewSettings
from holdfast_contract.protocol.http import ClientRow, ClientSet, Listing
from holdfast_server.api.calls import Call
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import client_row
from holdfast_server.api.services import Services
from holdfast_server.catalog import clients, jobs
from holdfast_server.catalog.clients import ClientRecord
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


def _page(services: Services, after: str, limit: int) -> list[ClientRow]:
    return _rows(services, clients.listed(services.catalog, after=after, limit=limit))


async def list_clients(call: Call) -> Listing:
    """Return clients by name."""
    page = call.page()
    rows = await call.run(_page, call.services, page.after, page.limit)
    return listing(rows, page.limit, rows[-1].name if rows else "")


async def show_client(call: Call) -> ClientRow:
    """Return one client with its public keys."""
    return await call.run(_full, call.services, call.client())


async def set_client(call: Call) -> ClientRow:
    """Set limits of a client; they count at once, also for a job that runs."""
    body: ClientSet = call.body
    services, client = call.services, call.client()
    record = await call.run(
        clients.set_limits,
        services.catalog,
        client,
        upload=body.limit_upload,
        download=body.limit_download,
    )
    settings = AgentSettings(limit_upload=record.limit_upload, limit_download=record.limit_download)
    connection = services.hub.connected(client)
    if connection is not None:
        connection.send(NewSettings(settings=settings))
    await services.events.add(
        "client-set",
        "limits set",
        client=client,
        by=call.by,
        limit_upload=record.limit_upload,
        limit_download=record.limit_download,
    )
    return await call.run(_full, services, client)


async def revoke_client(call: Call) -> ClientRow:
    """Refuse a client from now on: its connection and its tokens die, its jobs end."""
    services, client = call.services, call.client()
    await call.run(clients.revoke, services.catalog, client)
    refused = Refused("the client was revoked", hint="enrol it again to let it back in")
    services.hub.drop(client, refused)
    for record in await call.run(jobs.listed, services.catalog, client=client):
        if not record.state.is_final:
            await services.life.end(record.id, refused, UNFINISHED)
    await services.events.add("client-revoked", "client revoked", client=client, by=call.by)
    return await call.run(_full, services, client)


async def accept_client(call: Call) -> ClientRow:
    """Let a client go on from the history that the server has, although it remembers another."""
    services, client = call.services, call.client()
    record = await call.run(clients.accept, services.catalog, client)
    await services.events.add(
        "history-accepted",
        "the server's history is accepted",
        client=client,
        by=call.by,
        head=record.head.hex(),
        head_seq=record.head_seq,
    )
    return await call.run(_full, services, client)


async def forget_client(call: Call) -> None:
    """Remove a client that has no snapshots."""
    services, client = call.services, call.client()
    await call.run(clients.forget, services.catalog, client)
    services.hub.drop(client, NotFound("the client was forgotten"))
    await services.events.add("client-forgotten", "client forgotten", client=client, by=call.by)

"""Domains."""

from __future__ import annotations

from holdfast_contract.ids import check_domain_name
from holdfast_contract.protocol.http import DomainCreate, DomainRecordPut, DomainRow, Listing
from holdfast_server.api.calls import Call, Page
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import domain_row
from holdfast_server.catalog import domains
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.scopes import Scope


def _row(catalog: Catalog, name: str, scope: Scope) -> DomainRow:
    record = domains.get(catalog, name, scope)
    return domain_row(record, domains.counts(catalog, record.key))


def _rows(catalog: Catalog, scope: Scope, page: Page) -> list[DomainRow]:
    found = domains.listed(catalog, after=page.after, limit=page.limit, scope=scope)
    return [domain_row(record, domains.counts(catalog, record.key)) for record in found]


async def list_domains(call: Call) -> Listing:
    """Return domains by name."""
    page = call.page()
    rows = await call.run(_rows, call.services.catalog, call.scope, page)
    return listing(rows, page.limit, rows[-1].name if rows else "")


async def create_domain(call: Call) -> DomainRow:
    """Keep the record of a new domain; its keys were made where the command ran."""
    body: DomainCreate = call.body
    name = check_domain_name(body.name)
    await call.run(call.services.repository.create_domain, name, body.record)
    await call.record("domain-created", f"domain {name} created", domain=name)
    return await call.run(_row, call.services.catalog, name, call.scope)


async def show_domain(call: Call) -> DomainRow:
    """Return one domain."""
    return await call.run(_row, call.services.catalog, call.part("name"), call.scope)


async def get_domain_record(call: Call) -> bytes:
    """Return the newest domain record as it was stored."""
    found = await call.run(domains.get, call.services.catalog, call.part("name"), call.scope)
    return await call.run(call.services.repository.domain_record, found.name)


async def put_domain_record(call: Call) -> DomainRow:
    """Keep a newer revision of a domain record."""
    body: DomainRecordPut = call.body
    name = call.part("name")
    await call.run(domains.get, call.services.catalog, name, call.scope)
    await call.run(call.services.repository.put_domain_record, name, body.record)
    await call.record("domain-changed", f"new record of domain {name}", domain=name)
    return await call.run(_row, call.services.catalog, name, call.scope)

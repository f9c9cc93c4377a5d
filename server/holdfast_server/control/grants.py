"""Which snapshots an agent may read: those that its active jobs and open queries name."""

from __future__ import annotations

from collections import OrderedDict

from holdfast_contract.errors import NotFound
from holdfast_server.catalog import jobs
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.hub import AgentConnection
from holdfast_server.control.orders import decode_spec, granted_snapshots
from holdfast_server.control.queries import Queries
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository
from holdfast_server.repository.reading import Grant

OPEN_GRANTS_MAX = 64
"""Grants kept open; one that fell out is opened again at its next use."""


class Grants:
    """Opens what jobs and queries grant; belongs to one event loop.

    A grant is the id of a job or query. It ends with it, since every use asks whether it is active.
    """

    def __init__(
        self, catalog: Catalog, repository: Repository, workers: Workers, queries: Queries
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._workers = workers
        self._queries = queries
        self._opened: OrderedDict[tuple[bytes, ...], Grant] = OrderedDict()

    async def snapshots(self, grant: str, connection: AgentConnection) -> list[bytes]:
        """Return what `grant` lets the agent read.

        Raises:
            NotFound: it is no active job or open query of this agent.
        """
        of_query = self._queries.granted(grant, connection)
        if of_query is not None:
            return of_query
        return await self._workers.run(self._of_job, grant, connection.client)

    async def open(self, grant: str, connection: AgentConnection) -> Grant:
        """Return what reads the chunks of a grant.

        Raises:
            NotFound: it is no active job or open query of this agent.
        """
        return await self.open_snapshots(await self.snapshots(grant, connection))

    async def open_snapshots(self, snapshots: list[bytes]) -> Grant:
        """Return what reads the chunks of `snapshots`."""
        key = tuple(snapshots)
        if key not in self._opened:
            opened = await self._workers.run(self._repository.open_grant, snapshots)
            self._opened[key] = opened
            if len(self._opened) > OPEN_GRANTS_MAX:
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        return self._opened[key]

    async def covers(self, snapshot: bytes, connection: AgentConnection) -> bool:
        """Tell whether any active job or open query of the agent names `snapshot`."""
        if snapshot in self._queries.readable(connection):
            return True
        return await self._workers.run(self._job_names, snapshot, connection.client)

    def _of_job(self, job: str, client: str) -> list[bytes]:
        record = jobs.get(self._catalog, job)
        if record.client != client or record.state not in jobs.ACTIVE_STATES:
            raise NotFound("no such job")
        return granted_snapshots(decode_spec(record.spec))

    def _job_names(self, snapshot: bytes, client: str) -> bool:
        return any(
            snapshot in granted_snapshots(decode_spec(record.spec))
            for record in jobs.active(self._catalog)
            if record.client == client
        )

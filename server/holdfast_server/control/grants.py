"""Which snapshots an agent may read: those that its active jobs and open queries name."""

from __future__ import annotations

from holdfast_contract.ids import ClientName
from holdfast_server.catalog import jobs, sessions
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.hub import AgentConnection
from holdfast_server.control.orders import BackupSpec, Spec, decode_spec, granted_snapshots
from holdfast_server.control.queries import Queries
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository
from holdfast_server.repository.reading import Grant


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
        domain = connection.client.domain
        of_query = self._queries.granted(grant, connection)
        if of_query is not None:
            return await self.open_snapshots(domain, of_query)
        return await self._workers.run(self._open_job, grant, connection.client)

    async def open_snapshots(self, domain: str, snapshots: list[bytes]) -> Grant:
        """Return what reads the chunks of `snapshots` of a domain."""
        return await self._workers.run(self._repository.open_grant, domain, snapshots)

    async def covers(self, snapshot: bytes, connection: AgentConnection) -> bool:
        """Tell whether any active job or open query of the agent names `snapshot`."""
        if snapshot in self._queries.readable(connection):
            return True
        return await self._workers.run(self._job_names, snapshot, connection.client)

    def _open_job(self, job: str, client: ClientName) -> Grant:
        spec = self._spec(job, client)
        granted = granted_snapshots(spec)
        with self._catalog.read() as tx:
            row = sessions.of_job(tx, job)
        session = None if row is None else row.session
        if not isinstance(spec, BackupSpec):
            return self._repository.open_grant(client.domain, granted, session)
        # A backup does without what has gone meanwhile; a restore is told.
        standing = [snapshot.id for snapshot in self._repository.history.standing(granted)]
        return self._repository.open_grant(client.domain, standing, session, is_tree_only=True)

    def _of_job(self, job: str, client: ClientName) -> list[bytes]:
        return granted_snapshots(self._spec(job, client))

    def _spec(self, job: str, client: ClientName) -> Spec:
        record = jobs.of_client(self._catalog, job, client)
        if record.state not in jobs.ACTIVE_STATES:
            raise jobs.absent(job)
        return decode_spec(record.spec)

    def _job_names(self, snapshot: bytes, client: str) -> bool:
        return any(
            snapshot in granted_snapshots(decode_spec(record.spec))
            for record in jobs.active(self._catalog)
            if record.client == client
        )

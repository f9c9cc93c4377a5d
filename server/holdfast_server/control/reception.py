"""A control connection from its first byte to its last: proof, what went on before, messages.

server  Challenge         agent  Hello (signed)        server  Welcome | Refuse
...     jobs, queries, progress, until either side closes
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast_contract.clock import Clock
from holdfast_contract.errors import (
    HoldfastError,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TooMany,
    Unreachable,
    UnsupportedVersion,
)
from holdfast_contract.ids import ClientName
from holdfast_contract.logs import bind, get_logger
from holdfast_contract.protocol.control import (
    PROTOCOL_VERSION,
    Accepted,
    AgentSettings,
    Challenge,
    Finished,
    FinishedSeen,
    Hello,
    Progress,
    Refuse,
    ToServer,
    Welcome,
    hello_proof,
)
from holdfast_server.auth.signatures import verify_signature
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import clients, domains
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.channel import HEARTBEAT_SECONDS, Channel
from holdfast_server.control.dispatcher import Dispatcher
from holdfast_server.control.events import Events
from holdfast_server.control.hub import AgentConnection, Hub, Proven
from holdfast_server.control.lifecycle import JobLife
from holdfast_server.control.queries import Queries
from holdfast_server.control.shares import Pace
from holdfast_server.control.workers import Workers
from holdfast_server.repository import Repository

_log = get_logger(__name__)

HELLO_SECONDS = 30.0
"""How long an agent may take for its proof."""
UNPROVEN_MAX = 1280
"""Channels without a proof: a thousand agents that come back at once, and room beside them. One
more ends the oldest: an agent proves itself in milliseconds."""
PROOFS_BURST = 60
PROOFS_PER_SECOND = 0.5
"""Proofs of one client: two processes with one identity that fence each other for ever must not
keep the server busy, nor fill its events. A lone agent comes back more slowly than that."""
MESSAGES_BURST = 500
MESSAGES_PER_SECOND = 20.0
"""Messages of one agent: it tells its progress once a second. Faster ones wait in the socket."""
NONCE_BYTES = 32


class Reception:
    """Serves control connections; belongs to one event loop."""

    def __init__(  # noqa: PLR0913  # the parts that a connection touches
        self,
        *,
        catalog: Catalog,
        repository: Repository,
        workers: Workers,
        hub: Hub,
        life: JobLife,
        dispatcher: Dispatcher,
        queries: Queries,
        events: Events,
        clock: Clock,
        random: Callable[[int], bytes],
        version: str,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._workers = workers
        self._hub = hub
        self._life = life
        self._dispatcher = dispatcher
        self._queries = queries
        self._events = events
        self._clock = clock
        self._random = random
        self._version = version
        self._parting: set[asyncio.Task[None]] = set()
        self._unproven: dict[Channel, None] = {}
        self._proofs: dict[ClientName, Pace] = {}

    async def serve(self, channel: Channel) -> None:
        """Serve one connection until it ends."""
        try:
            proven, welcome = await self._greet(channel)
        except HoldfastError as error:
            await self._turn_away(channel, error)
            return
        connection = AgentConnection(channel, proven, self._clock.now_ns())
        with bind(client=connection.client):
            await self._serve_proven(channel, connection, welcome)

    async def _turn_away(self, channel: Channel, error: HoldfastError) -> None:
        _log.warning("a control connection was refused", error=error)
        if isinstance(error, TooMany):
            client = str(error.details["client"])
            what = "a client proves its identity again and again"
            await self._events.refused(what, caller=client, client=client, code=error.code)
        elif not isinstance(error, Unreachable):
            # Not whom it claims to be: nobody has proven anything.
            what = "a control connection without a proof that counts"
            await self._events.refused(what, code=error.code)
        await channel.send(Refuse(code=error.code, message=error.message))
        await channel.close()

    async def _greet(self, channel: Channel) -> tuple[Proven, Welcome]:
        """Prove who is there.

        Raises:
            NotAuthenticated: not a client, revoked, or not its current key; told alike.
            UnsupportedVersion, InvalidInput: not a hello of this protocol.
            TooMany: the client proves itself again and again.
            Unreachable: the channel was closed before that.
        """
        self._make_room()
        self._unproven[channel] = None
        try:
            nonce, hello = await self._challenge(channel)
        finally:
            self._unproven.pop(channel, None)
        proven, row, token = await self._workers.run(self._prove, nonce, hello)
        self._check_pace(proven.client)
        await self._workers.run(self._note, proven)
        return proven, _welcome(row, token)

    def _make_room(self) -> None:
        while len(self._unproven) >= UNPROVEN_MAX:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            closing = asyncio.create_task(oldest.close("others wait"))
            self._parting.add(closing)
            closing.add_done_callback(self._parting.discard)

    def _check_pace(self, client: ClientName) -> None:
        """Raise TooMany where a client proves itself again and again.

        There is a pace for each client that ever proved itself: as many as clients.
        """
        pace = self._proofs.get(client)
        if pace is None:
            time = asyncio.get_running_loop().time
            pace = Pace(time, per_second=PROOFS_PER_SECOND, burst=PROOFS_BURST)
            self._proofs[client] = pace
        if pace.step():
            raise TooMany(
                "this identity connects again and again",
                hint="do two agents have the same state directory?",
                client=client,
            )

    async def _challenge(self, channel: Channel) -> tuple[bytes, Hello]:
        """Return the hello that answers a fresh nonce; its proof is not looked at yet."""
        nonce = self._random(NONCE_BYTES)
        await channel.send(
            Challenge(
                nonce=nonce,
                protocol_min=PROTOCOL_VERSION,
                protocol_max=PROTOCOL_VERSION,
                server_version=self._version,
            )
        )
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await channel.receive()
        except TimeoutError as exc:
            raise NotAuthenticated("no proof came in time") from exc
        if hello is None:
            raise Unreachable("the channel was closed before its proof")
        if not isinstance(hello, Hello):
            raise InvalidInput("the first message is not a hello")
        if hello.protocol != PROTOCOL_VERSION:
            raise UnsupportedVersion(
                f"protocol {hello.protocol}; this server speaks {PROTOCOL_VERSION}"
            )
        return nonce, hello

    def _prove(self, nonce: bytes, hello: Hello) -> tuple[Proven, ClientRecord, str]:
        unknown = NotAuthenticated(
            "not a client with this identity, or revoked", hint="enrol the client again"
        )
        try:
            client = ClientName.parse(hello.client)
            row = clients.get(self._catalog, client)
            identity = self._repository.current_identity(client)
        except (NotFound, InvalidInput) as exc:
            raise unknown from exc
        if identity is None or row.revoked_ns is not None or identity.identity != hello.identity:
            raise unknown
        proof = hello_proof(nonce, hello.identity, hello.client)
        if not verify_signature(identity.sign_key, hello.signature, proof):
            raise unknown
        domain = domains.get(self._catalog, client.domain)
        token = new_token(TokenKind.CONNECTION, self._random)
        proven = Proven(client, domain.domain, hello, identity.sign_key, hash_token(token))
        return proven, row, token

    def _note(self, proven: Proven) -> None:
        hello = proven.hello
        clients.seen(
            self._catalog,
            proven.client,
            version=hello.agent_version[:100],
            roots=hello.roots,
            restore=hello.restore.value,
            restore_roots=hello.restore_roots,
            browse=hello.browse.value,
        )

    async def _serve_proven(
        self, channel: Channel, connection: AgentConnection, welcome: Welcome
    ) -> None:
        older = self._hub.join(connection)
        writer = asyncio.create_task(connection.write())
        connection.send(welcome)
        try:
            await self._tell_connected(connection, older)
            await self._check_standing(connection)
            await self._dispatcher.attach(connection)
            connection.is_ready = True
            self._dispatcher.wake()
            await self._hear(channel, connection)
        except InvalidInput as error:
            message = "disconnected: a message outside the protocol"
            client = connection.client
            await self._events.refused(message, caller=client, client=client, code=error.code)
            connection.end(error)
        except (NotAuthenticated, NotFound) as error:
            connection.end(error)
        finally:
            # A task of its own: it has to be done also where this one is cancelled.
            parting = asyncio.create_task(self._part(connection, writer))
            self._parting.add(parting)
            parting.add_done_callback(self._parting.discard)
            await asyncio.shield(parting)

    async def _check_standing(self, connection: AgentConnection) -> None:
        """Look again, now that whoever revokes the client finds the connection.

        Raises:
            NotAuthenticated, NotFound: it was revoked or forgotten during its proof.
        """
        row = await self._workers.run(clients.get, self._catalog, connection.client)
        if row.revoked_ns is not None:
            raise NotAuthenticated("the client was revoked")

    async def _tell_connected(
        self, connection: AgentConnection, older: AgentConnection | None
    ) -> None:
        client = connection.client
        if older is not None:
            await self._events.add(
                "fenced", "a newer proof of this identity has taken over", client=client
            )
        version = connection.hello.agent_version[:100]
        await self._events.add("connected", "the agent is connected", client=client, agent=version)

    async def _hear(self, channel: Channel, connection: AgentConnection) -> None:
        time = asyncio.get_running_loop().time
        pace = Pace(time, per_second=MESSAGES_PER_SECOND, burst=MESSAGES_BURST)
        while (message := await channel.receive()) is not None:
            if seconds := pace.step():
                await asyncio.sleep(seconds)
            # A client that was revoked is told so and then closed: what it still says is not heard.
            if not (connection.is_open and self._hub.is_current(connection)):
                return
            connection.last_seen_ns = self._clock.now_ns()
            await self._take(message, connection)

    async def _take(self, message: ToServer, connection: AgentConnection) -> None:
        match message:
            case Accepted(job=job):
                await self._life.begun(job, connection)
            case Progress():
                await self._life.progressed(message, connection)
            case Finished(job=job):
                await self._life.finished(message, connection)
                connection.send(FinishedSeen(job=job))
                self._dispatcher.wake()
            case Hello():
                raise InvalidInput("a second hello")

    async def _part(self, connection: AgentConnection, writer: asyncio.Task[None]) -> None:
        was_current = self._hub.leave(connection)
        self._queries.lost(connection)
        await writer
        if not was_current:
            return
        await self._life.cancel_left(connection)
        self._dispatcher.wake()
        try:
            await self._workers.run(clients.touched, self._catalog, connection.client)
        except NotFound:
            return  # forgotten meanwhile
        await self._events.add(
            "disconnected", "the agent is no longer connected", client=connection.client
        )


def _welcome(row: ClientRecord, token: str) -> Welcome:
    settings = AgentSettings(limit_upload=row.limit_upload, limit_download=row.limit_download)
    return Welcome(
        client=str(row.name), token=token, settings=settings, heartbeat_seconds=HEARTBEAT_SECONDS
    )

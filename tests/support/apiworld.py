"""A whole server over HTTP on this machine, with a store in memory, and agents that are acted."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientResponse, ClientSession, ClientWebSocketResponse, WSMsgType
from yarl import URL

from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import (
    Backup,
    Browse,
    Challenge,
    Counts,
    Finished,
    FinishedSeen,
    Hello,
    JobState,
    Message,
    Mode,
    Progress,
    Welcome,
    decode_to_agent,
    encode,
    hello_proof,
)
from holdfast_server.api.services import Services
from holdfast_server.api.serving import Serving
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import enrolment, tokens
from holdfast_server.control.dispatcher import DispatchLimits
from holdfast_server.runtime import make_services
from tests.support.uploads import Pod, Served, domain_record

M = TypeVar("M")
SECONDS = 20.0
"""Longest wait for something that comes at once on a machine that is not busy."""


class Refusal(AssertionError):
    """The server answered with a problem document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.problem = problem


@dataclass
class ApiWorld:
    """One server; `call` is what a holder of its token can do."""

    served: Served
    services: Services
    http: ClientSession
    port: int
    token: str
    agents: list[ActedAgent] = field(default_factory=list)

    async def request(
        self, method: str, path: str | URL, *, token: str | None = None, **options: Any
    ) -> ClientResponse:
        """Send a request with the administrator's token or another (empty: none)."""
        bearer = self.token if token is None else token
        headers = dict(options.pop("headers", {}))
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        if isinstance(options.get("data"), bytes):
            options["data"] = io.BytesIO(options["data"])
        return await self.http.request(method, path, headers=headers, **options)

    async def call(
        self, method: str, path: str, *, token: str | None = None, **options: Any
    ) -> Any:
        """Return the decoded answer (bytes where it is not JSON); raise Refusal for a problem."""
        async with await self.request(method, path, token=token, **options) as response:
            if response.status >= 400:
                raise Refusal(response.status, await response.json(content_type=None))
            if response.content_type == "application/json":
                return await response.json()
            return await response.read()

    async def refused(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the problem document with which a request is answered."""
        try:
            answer = await self.call(method, path, **options)
        except Refusal as refusal:
            return refusal.problem
        raise AssertionError(f"{method} {path} was answered: {answer!r}")

    async def run(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Run what blocks."""
        return await asyncio.to_thread(call, *args, **kwargs)

    async def domain(self, name: str = "shop") -> None:
        """Create a domain."""
        await self.run(self.served.repository.create_domain, name, domain_record(name))

    async def pod(self, name: str = "shop/db-0") -> Pod:
        """Enrol a client."""
        found: Pod = await self.run(self.served.pod, name)
        return found

    async def agent(self, name: str = "shop/db-0", **hello: Any) -> ActedAgent:
        """Enrol a client and connect an agent for it."""
        return await self.connect(await self.pod(name), **hello)

    async def connect(self, pod: Pod, **hello: Any) -> ActedAgent:
        """Connect an agent and wait until it can be given work."""
        agent = ActedAgent(self, pod)
        self.agents.append(agent)
        await agent.connect(**hello)
        await self.until(lambda: self.services.hub.ready(pod.name) is not None)
        return agent

    async def until(self, probe: Any) -> None:
        """Wait until `probe` (which may be asynchronous) returns something true."""
        async with asyncio.timeout(SECONDS):
            while True:
                found = probe()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.005)

    async def enrol_token(self, domain: str = "shop", client: str | None = None) -> str:
        """Return a new enrolment token's secret."""
        body = {"domain": domain} | ({"client": client} if client else {})
        return str((await self.call("POST", "/v1/enrol-tokens", json=body))["token"])

    async def backup(self, *clients: str, **more: Any) -> list[str]:
        """Ask for backups; return the jobs' ids."""
        body = {"kind": "backup", "clients": list(clients)} | more
        return [row["id"] for row in (await self.call("POST", "/v1/jobs", json=body))["jobs"]]

    async def job(self, job: str) -> dict[str, Any]:
        """Return a job as `job show` shows it."""
        found: dict[str, Any] = await self.call("GET", f"/v1/jobs/{job}")
        return found

    async def in_state(self, job: str, state: str) -> dict[str, Any]:
        """Wait until a job is in `state`."""

        async def is_there() -> bool:
            return bool((await self.job(job))["state"] == state)

        await self.until(is_there)
        return await self.job(job)

    async def until_moved(self, job: str, moved: int) -> None:
        """Wait until the server has taken in progress with this `moved`."""

        def has_moved() -> bool:
            live = self.services.live.get(job)
            return live is not None and live.moved == moved

        await self.until(has_moved)

    async def until_event(self, kind: str, client: str) -> None:
        """Wait until an event of that kind is recorded."""

        async def is_there() -> bool:
            return kind in await self.event_kinds(client=client)

        await self.until(is_there)

    async def event_kinds(self, **query: str) -> list[str]:
        """Return the kinds of all events, oldest first."""
        found = await self.call("GET", "/v1/events", params=query | {"limit": "1000"})
        return [row["kind"] for row in found["items"]]


class ActedAgent:
    """The agent's side of the control channel, played by a test."""

    def __init__(self, world: ApiWorld, pod: Pod) -> None:
        self.world = world
        self.pod = pod
        self.token = ""
        self.heard: list[Message] = []
        self._news = asyncio.Event()
        self._socket: ClientWebSocketResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self.is_closed = False

    @property
    def client(self) -> ClientName:
        return self.pod.name

    async def connect(self, **hello: Any) -> None:
        """Open the channel, prove the identity, and wait for the welcome."""
        await self.open(**hello)
        self.token = (await self.until(Welcome)).token

    async def open(self, **changes: Any) -> None:
        """Open the channel and say hello, with `changes` of it."""
        self._socket = await self.world.http.ws_connect("/agent/v1/control", max_msg_size=1 << 21)
        self._reader = asyncio.create_task(self._read(self._socket))
        challenge = await self.until(Challenge)
        await self.send(self.hello(challenge.nonce, **changes))

    def hello(self, nonce: bytes, **changes: Any) -> Hello:
        """Return a hello that is right but for `changes`."""
        client = str(changes.get("client", self.client))
        identity = changes.get("identity", self.pod.identity)
        signature = self.pod.identity_key.sign(hello_proof(nonce, identity, client))
        values: dict[str, Any] = {
            "protocol": 1,
            "agent_version": "0.1.0",
            "client": client,
            "identity": identity,
            "signature": signature,
            "roots": [b"/data"],
            "restore": Mode.IN_PLACE,
            "restore_roots": [b"/data"],
            "browse": Browse.NAMES,
            "jobs": [],
        }
        return Hello(**(values | changes))

    async def _read(self, socket: ClientWebSocketResponse) -> None:
        async for frame in socket:
            assert frame.type is WSMsgType.BINARY
            self.heard.append(decode_to_agent(frame.data))
            self._news.set()
        self.is_closed = True
        self._news.set()

    async def send(self, message: Message) -> None:
        assert self._socket is not None
        await self._socket.send_bytes(encode(message))

    async def send_frame(self, frame: bytes) -> None:
        """Send bytes that may be no message."""
        assert self._socket is not None
        await self._socket.send_bytes(frame)

    def of(self, kind: type[M]) -> list[M]:
        """Return the messages of one kind heard so far."""
        return [message for message in self.heard if isinstance(message, kind)]

    async def until(self, kind: type[M], count: int = 1) -> M:
        """Wait for the `count`th message of one kind and return it."""
        async with asyncio.timeout(SECONDS):
            while len(self.of(kind)) < count:
                assert not self.is_closed, f"closed before {kind.__name__}: {self.heard}"
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[count - 1]

    async def coming(self, kind: type[M], count: int) -> M:
        """Wait for the `count`th message of one kind, however long it takes."""
        while len(self.of(kind)) < count:
            self._news.clear()
            await self._news.wait()
        return self.of(kind)[count - 1]

    async def until_closed(self) -> None:
        """Wait until the server closed the channel."""
        async with asyncio.timeout(SECONDS):
            while not self.is_closed:
                self._news.clear()
                await self._news.wait()

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """Call an agent's route with the connection token."""
        return await self.world.call(method, f"/agent/v1{path}", token=self.token, **options)

    async def refused(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the problem document of an agent's route."""
        return await self.world.refused(method, f"/agent/v1{path}", token=self.token, **options)

    async def ordered(self, count: int = 1, **more: Any) -> Backup:
        """Have a backup asked for, and return the order: the `count`th that came."""
        await self.world.backup(str(self.client), **more)
        return await self.until(Backup, count)

    async def snapshot(self, ids: Sequence[bytes], job: str = "", **changes: Any) -> bytes:
        """Commit a snapshot of tree chunks, beside any HTTP; in the session of `job`."""

        def upload() -> bytes:
            if not job:
                return self.pod.backup(ids, kind=ChunkType.TREE, **changes)
            session = self.pod.open(job)
            self.pod.send(ids, session, kind=ChunkType.TREE)
            return self.pod.finish(session, ids, **changes).snapshot

        found: bytes = await self.world.run(upload)
        return found

    async def end(self, job: str, state: JobState = JobState.COMPLETED, **more: Any) -> None:
        """Say that a job is over and wait until the server has it."""

        def seen() -> int:
            return len([message for message in self.of(FinishedSeen) if message.job == job])

        before = seen()
        await self.send(Finished(job=job, state=state, **more))
        await self.world.until(lambda: seen() > before)

    async def leave(self) -> None:
        """Close the channel, and wait until the server knows."""
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader
        connected = self.world.services.hub.connected
        await self.world.until(lambda: connected(self.client) is None)

    async def drop(self) -> None:
        """End without waiting for anything."""
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader


def progress(job: str, *, files: int = 0, bytes_sent: int = 0, **more: Any) -> Progress:
    """Return what an agent tells of a job under way."""
    counts = Counts(files=files, bytes_sent=bytes_sent)
    return Progress(job=job, phase=more.pop("phase", "running"), counts=counts, **more)


def admin_token(served: Served) -> str:
    """Return a new administrator's token."""
    secret = new_token(TokenKind.API)
    tokens.create(served.catalog, token_hash=hash_token(secret), role="admin", domains=[])
    return secret


def expired_enrol_token(served: Served) -> str:
    """Return an enrolment token whose time is over."""
    secret = new_token(TokenKind.ENROL)
    now = served.clock.now_ns()
    enrolment.create(
        served.catalog,
        token_hash=hash_token(secret),
        domain="shop",
        client=None,
        expires_ns=now,
    )
    return secret


@asynccontextmanager
async def serving(
    served: Served, token: str, *, jobs_running_max: int = 16, stall_seconds: float = 600
) -> AsyncIterator[ApiWorld]:
    """Serve `served` over HTTP inside the block."""
    bounds = DispatchLimits(jobs_running_max, stall_seconds)
    services = make_services(served.catalog, served.repository, served.clock, bounds)
    await services.life.load()
    await services.clock_watch.begin()
    dispatch = asyncio.create_task(services.dispatcher.run())
    server = Serving(services, shutdown_seconds=2)
    port = await server.open("127.0.0.1", 0, None)
    async with ClientSession(f"http://127.0.0.1:{port}/") as http:
        world = ApiWorld(served, services, http, port, token)
        try:
            yield world
        finally:
            services.notices.close()
            services.hub.close()
            for agent in world.agents:
                await agent.drop()
            dispatch.cancel()
            await asyncio.gather(dispatch, return_exceptions=True)
            await server.close()
    await asyncio.to_thread(services.workers.close)


def all_rows(listing: dict[str, Any], field_name: str) -> Iterable[Any]:
    """Return one field of every row of a listing."""
    return [row[field_name] for row in listing["items"]]


def made(folder: Path) -> tuple[Served, str]:
    """Return a repository that has been started, and a token for it."""
    served = Served(folder)
    return served, admin_token(served)

"""A server that a test writes: the real agent dials it, and it lies where it is told to.

Honest by default, over a repository in memory. `lies` replaces the answer of a route by name; any
frame can be sent on the control channel.

    async with FakeServer(repository) as server, RealAgent(server, top) as agent:
        server.lies["manifest"] = lambda request: web.Response(body=b"another")
        finished = await server.ends(order)
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from holdfast_agent.config import AgentConfig
from holdfast_agent.jobs.enrol import Identity
from holdfast_agent.ports import FetchedChunk
from holdfast_agent.runtime.service import Agent
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.state.directory import StateDirectory
from holdfast_contract.errors import HoldfastError, MissingChunks
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol import control
from tests.support.memory_repository import MemoryRepository
from tests.support.samples import DOMAIN_RECORD, IDENTITY, IDENTITY_RECORD, KEYS

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECONDS = 60.0
"""Longest wait for what comes at once on a machine that is not busy."""
CLIENT = "shop/db-0"


@dataclass
class Asked:
    """What came back for a query."""

    error: str
    """Code of the refusal, or empty."""
    body: bytes


def chunk_record(chunk: FetchedChunk) -> bytes:
    """Return one chunk of a stream (docs/protocol.md)."""
    name = chunk.object.encode()
    return b"".join(
        (
            chunk.id,
            bytes([chunk.status]),
            len(name).to_bytes(2, "little"),
            chunk.offset.to_bytes(4, "little"),
            len(chunk.sealed).to_bytes(4, "little"),
            name,
            chunk.sealed,
        )
    )


def problem(error: HoldfastError) -> web.Response:
    """Return the problem document of an error."""
    row = {"type": "about:blank", "title": error.code, "status": error.http_status}
    row |= {"code": error.code, "detail": error.message, "details": error.details}
    return web.json_response(row, status=error.http_status)


@dataclass
class FakeServer:
    """Serves one agent at a time."""

    repository: MemoryRepository
    context: ssl.SSLContext | None = None
    settings: control.AgentSettings = field(default_factory=control.AgentSettings)
    lies: dict[str, Answer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """Names of the routes that were asked."""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: list[control.Progress] = field(default_factory=list)
    hellos: list[control.Hello] = field(default_factory=list)
    ended: dict[str, control.Finished] = field(default_factory=dict)
    answers: dict[str, Asked] = field(default_factory=dict)
    welcomes: int = 0
    seen_at_once: bool = True
    """Whether the end of a job is acknowledged: otherwise the agent keeps it for ever."""

    def __post_init__(self) -> None:
        self._changed = asyncio.Condition()
        self._socket: web.WebSocketResponse | None = None
        self._jobs: dict[str, str] = {}
        app = web.Application(client_max_size=1 << 30)
        for method, path, name in _ROUTES:
            app.router.add_route(method, path, self._route(name))
        self._server = TestServer(app)

    async def __aenter__(self) -> Self:
        await self._server.start_server(ssl=self.context)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """Where the agent dials."""
        return str(self._server.make_url("")).rstrip("/")

    # --- what a test says and waits for
    async def send(self, message: control.ToAgent) -> None:
        """Send one message."""
        await self.send_frame(control.encode(message))

    async def send_frame(self, frame: bytes | str) -> None:
        """Send any frame."""
        await self.until(lambda: self._socket is not None, "the agent is connected")
        assert self._socket is not None
        if isinstance(frame, str):
            await self._socket.send_str(frame)
        else:
            await self._socket.send_bytes(frame)

    async def ends(
        self, order: control.Backup | control.Restore | control.Verify
    ) -> control.Finished:
        """Send an order and return how the agent says that it ended."""
        await self.send(order)
        await self.until(lambda: order.job in self.ended, "the job ends")
        return self.ended[order.job]

    async def answer(self, query: control.Query) -> Asked:
        """Send a query and return what came back."""
        await self.send(query)
        await self.until(lambda: query.query in self.answers, "the query is answered")
        return self.answers[query.query]

    async def until(self, probe: Callable[[], bool], claim: str) -> None:
        """Wait until something is true; it is looked at whenever the agent said something."""

        async def waited() -> None:
            async with self._changed:
                await self._changed.wait_for(probe)

        try:
            await asyncio.wait_for(waited(), SECONDS)
        except TimeoutError:
            raise AssertionError(
                f"not within {SECONDS} s: {claim}; calls {self.calls[-9:]}"
            ) from None

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- routes
    def _route(self, name: str) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.calls.append(name)
            work = self.lies.get(name) or getattr(self, f"_{name}")
            try:
                answered: web.StreamResponse = await work(request)
            except HoldfastError as error:
                answered = problem(error)
            finally:
                await self._note()
            return answered

        return answer

    async def _control(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        hello = control.Challenge(
            nonce=bytes(32), protocol_min=1, protocol_max=1, server_version="fake"
        )
        await socket.send_bytes(control.encode(hello))
        frame = await socket.receive()
        if frame.type is not WSMsgType.BINARY:
            return socket
        self.hellos.append(control.decode_to_server(frame.data))  # type: ignore[arg-type]
        welcome = control.Welcome(
            client=CLIENT, token="hfc_secret", settings=self.settings, heartbeat_seconds=25
        )
        await socket.send_bytes(control.encode(welcome))
        self._socket = socket
        self.welcomes += 1
        await self._note()
        async for frame in socket:
            await self._heard(socket, control.decode_to_server(frame.data))
        if self._socket is socket:
            self._socket = None
        return socket

    async def _heard(self, socket: web.WebSocketResponse, message: control.ToServer) -> None:
        if isinstance(message, control.Progress):
            self.progress.append(message)
        if isinstance(message, control.Finished):
            self.ended[message.job] = message
            if self.seen_at_once:
                with suppress(ConnectionError):
                    await socket.send_bytes(control.encode(control.FinishedSeen(job=message.job)))
        await self._note()

    async def _domain(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=DOMAIN_RECORD)

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        snapshot = bytes.fromhex(request.match_info["snapshot"])
        return web.Response(body=self.repository.chunks().manifest(snapshot))

    async def _identity(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=self.repository.identities[bytes.fromhex(request.match_info["hash"])]
        )

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    async def _chunks(self, request: web.Request) -> web.StreamResponse:
        asked = await request.read()
        ids = [asked[at : at + 32] for at in range(0, len(asked), 32)]
        return web.Response(body=b"".join(map(chunk_record, self.repository.chunks().fetch(ids))))

    async def _damage(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    async def _damaged(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    async def _session(self, request: web.Request) -> web.StreamResponse:
        session = new_ulid()
        self._jobs[session] = request.match_info["job"]
        names = {"packs": [new_ulid() for _ in range(8)], "refs": new_ulid()}
        return web.json_response({"session": session, **names, "manifest": new_ulid()})

    def _uploads(self, request: web.Request) -> Any:
        session = request.match_info["session"]
        return self.repository.uploads(self._jobs.get(session, session))

    async def _names(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"names": [new_ulid() for _ in range(8)]})

    async def _have(self, request: web.Request) -> web.StreamResponse:
        asked = await request.read()
        ids = [asked[at : at + 32] for at in range(0, len(asked), 32)]
        return web.Response(body=bytes(self._uploads(request).have(ids, 1)))

    async def _put(self, request: web.Request) -> web.StreamResponse:
        data, uploads = await request.read(), self._uploads(request)
        kind = request.match_info["kind"]
        if kind == "packs":
            uploads.put_pack([data], len(data))
        elif kind == "refs":
            uploads._refs = data
        else:
            uploads.put_manifest(data)
        return web.Response(status=204)

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        seq = int((await request.json())["seq"])
        answer = self._uploads(request).commit(seq)
        if hasattr(answer, "missing"):
            missing = [chunk.hex() for chunk in answer.missing]
            return problem(MissingChunks("missing", missing=missing, damaged=[], next=""))
        return web.json_response({"snapshot": answer.snapshot.hex(), "time_ns": 1})

    async def _missing(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"missing": [], "damaged": [], "next": ""})

    async def _result(self, request: web.Request) -> web.StreamResponse:
        self.results[request.match_info["job"]] = await request.json()
        return web.Response(status=204)

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        error = request.headers.get("Holdfast-Error", "")
        code = json.loads(error)["code"] if error else ""
        self.answers[request.match_info["query"]] = Asked(code, await request.read())
        return web.Response(status=204)


_ROUTES = (
    ("GET", "/agent/v1/control", "control"),
    ("GET", "/agent/v1/domain", "domain"),
    ("PUT", "/agent/v1/identity", "renew"),
    ("GET", "/agent/v1/snapshots/{snapshot}/manifest", "manifest"),
    ("GET", "/agent/v1/identities/{hash}", "identity"),
    ("POST", "/agent/v1/grants/{grant}/chunks", "chunks"),
    ("POST", "/agent/v1/grants/{grant}/damage", "damage"),
    ("GET", "/agent/v1/jobs/{job}/damaged", "damaged"),
    ("POST", "/agent/v1/jobs/{job}/session", "session"),
    ("PUT", "/agent/v1/jobs/{job}/result", "result"),
    ("POST", "/agent/v1/sessions/{session}/names", "names"),
    ("POST", "/agent/v1/sessions/{session}/have", "have"),
    ("PUT", "/agent/v1/sessions/{session}/{kind}/{name}", "put"),
    ("POST", "/agent/v1/sessions/{session}/commit", "commit"),
    ("GET", "/agent/v1/sessions/{session}/missing", "missing"),
    ("POST", "/agent/v1/answers/{query}", "answered"),
)


class RealAgent:
    """The agent's whole runtime in this process, on directories below `top`."""

    def __init__(self, server: FakeServer, top: Path, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "server": server.url,
            "ca": None,
            "state": top / "state",
            "roots": (str(top / "volume").encode(),),
            "restore": control.Mode.IN_PLACE,
            "restore_roots": (str(top / "volume").encode(), str(top / "out").encode()),
            "browse": control.Browse.CONTENT,
            "key_file": top / "domain.key",
            "client": CLIENT,
            "enrol_token_file": None,
            "workers": 2,
            "memory_max_bytes": 160 << 20,
            "has_change_hints": True,
        }
        self._context = changes.pop("context", None) or ssl.create_default_context()
        self.config = AgentConfig(**{**fields, **changes})
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.state = await asyncio.to_thread(StateDirectory, self.config.state)
        self.agent = Agent(
            self.config,
            self.state,
            KEYS,
            Identity(IDENTITY, IDENTITY_RECORD),
            self._context,
            SystemFileClock(),
            lambda low, high: 0.01,
        )
        self._task = asyncio.create_task(self.agent.run(self._stop))
        return self

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self._task.done()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        try:
            await asyncio.wait_for(self._task, SECONDS)
        finally:
            self.state.close()

"""A proxy between agents and a world's server that cuts a connection at one chosen request.

It shows the server's own certificate, so agents trust it; it reads request lines, and nothing else.

    with CuttingProxy(world) as proxy:
        world.start_agent("shop/web-0", roots, HOLDFAST_SERVER=proxy.url)
        proxy.cut("commit", Moment.ANSWER)
        world.backup("shop/web-0")
        assert proxy.was_cut()
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any

from tests.support.world import World

READ_BYTES = 64 * 1024
WAIT_SECONDS = 60
REQUEST = re.compile(rb"(?:GET|POST|PUT|DELETE) /agent/v1/(\S+) HTTP/1\.1\r\n")


class Moment(StrEnum):
    """When, seen from the chosen request, the connection is cut."""

    REQUEST = "the server never sees the request"
    BODY = "the server has seen a part of the body"
    ANSWER = "the server has done the work, the agent never hears of it"


@dataclass
class Cut:
    """One cut to come: at the first request whose path ends in `step` or has it as a folder."""

    step: str
    moment: Moment
    act: Callable[[], None]

    def is_at(self, path: str) -> bool:
        return self.step in path.partition("?")[0].split("/")


class CuttingProxy:
    """A listening proxy with a thread and an event loop of its own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._next: Cut | None = None
        self._done = threading.Event()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.url = ""
        self.paths: list[str] = []
        """Every request that came, without `/agent/v1/`."""

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, step: str, moment: Moment, act: Callable[[], None] = lambda: None) -> None:
        """Cut once at `step`, a folder of the path such as `commit` or `packs`, after `act`."""
        self._done.clear()
        self._next = Cut(step, moment, act)

    def was_cut(self, seconds: float = WAIT_SECONDS) -> bool:
        """Wait for the cut and return whether it came."""
        return self._done.wait(seconds)

    # --- inside the loop

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    async def _listen(self) -> None:
        tls = self._world.ca.parent
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls / "server.pem", tls / "server.key")
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.url = f"https://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One more turn: transports that were aborted close their sockets in it.
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the test is over: the agent sees a lost connection
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._world.url.removeprefix("https://").partition(":")
        context = ssl.create_default_context(cafile=self._world.ca)
        above, towards = await asyncio.open_connection(host, int(port), ssl=context)
        link = _Link(self)
        pumps = [
            asyncio.create_task(link.requests(reader, towards)),
            asyncio.create_task(link.answers(above, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            towards.transport.abort()

    def wanted(self, path: str) -> Cut | None:
        """Note a request; return the cut that is to happen at it."""
        self.paths.append(path)
        if self._next is None or not self._next.is_at(path):
            return None
        cut, self._next = self._next, None
        return cut

    async def finish(self, cut: Cut) -> None:
        """Do what belongs to the cut; the connection ends behind it."""
        # In a thread, to its end: a killed server ends this very connection meanwhile.
        await asyncio.to_thread(self._act, cut)

    def _act(self, cut: Cut) -> None:
        cut.act()
        self._done.set()


class _Link:
    """One connection, both ways; either ends by returning, which cuts it."""

    def __init__(self, proxy: CuttingProxy) -> None:
        self._proxy = proxy
        self._cut: Cut | None = None

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            body = len(data)
            if (found := REQUEST.match(data)) is not None:
                self._cut = self._proxy.wanted(found[1].decode())
                body -= data.index(b"\r\n\r\n") + 4
            moment = self._cut.moment if self._cut is not None else Moment.ANSWER
            if moment is Moment.BODY and body:
                writer.write(data[: -(body + 1) // 2])
                await writer.drain()
            if self._cut and (moment is Moment.REQUEST or (moment is Moment.BODY and body)):
                await self._proxy.finish(self._cut)
                return
            writer.write(data)
            await writer.drain()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            if self._cut is not None:
                await self._proxy.finish(self._cut)
                return
            writer.write(data)
            await writer.drain()

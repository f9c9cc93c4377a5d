"""A proxy between agents and a world's server that counts what passes, sealed by TLS as it is.

with CountingProxy(world.url) as proxy:
    world.start_agent("shop/web-0", roots, HOLDFAST_SERVER=proxy.url)
    before = proxy.passed()
    world.backup("shop/web-0")
    print(proxy.settled().since(before).bytes)
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self

READ_BYTES = 256 * 1024
QUIET_SECONDS = 1.0
"""As long as nothing passes, what belongs to a job has passed: its last message included."""
SETTLED_SECONDS_MAX = 60.0
_SEGMENTS_AT = 136
"""Where `tcpi_segs_out` and `tcpi_segs_in` stand in Linux' `struct tcp_info`."""
_TCP_INFO_BYTES = 256
_HEADS_BYTES = 66
"""Of one packet: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12."""


class Passed(NamedTuple):
    """What has passed since the proxy was opened."""

    up: int
    """Bytes from agents to the server."""
    down: int
    packets: int
    """Both ways, between agents and proxy, those without data included."""
    connections: int

    @property
    def bytes(self) -> int:
        """Both ways, without the heads of packets."""
        return self.up + self.down

    @property
    def bytes_with_heads(self) -> int:
        """Both ways, as a network card counts."""
        return self.bytes + self.packets * _HEADS_BYTES

    def since(self, before: Passed) -> Passed:
        """Return what has passed since `before`."""
        return Passed(*(now - then for now, then in zip(self, before, strict=True)))


class CountingProxy:
    """A listening proxy; two threads for each connection."""

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("https://").rpartition(":")
        self._server = (host, int(port))
        self._lock = threading.Lock()
        self._bytes = [0, 0]
        self._agents: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        # Wakes the thread that accepts, which ends then and adds no further one.
        _shut(self._listener)
        self._threads[0].join()
        self._listener.close()
        for sock in (*self._agents, *self._servers):
            _shut(sock)
        for thread in self._threads[1:]:
            thread.join()
        for sock in (*self._agents, *self._servers):
            sock.close()

    def passed(self) -> Passed:
        """Return what has passed so far."""
        with self._lock:
            packets = sum(map(_packets, self._agents))
            return Passed(self._bytes[0], self._bytes[1], packets, len(self._agents))

    def settled(self) -> Passed:
        """Return what has passed once nothing has for a while.

        Raises:
            AssertionError: something goes on passing.
        """
        end = time.monotonic() + SETTLED_SECONDS_MAX
        last = self.passed()
        while True:
            time.sleep(QUIET_SECONDS)
            now = self.passed()
            if now.bytes == last.bytes:
                return now
            assert time.monotonic() < end, "the connections do not become quiet"
            last = now

    # --- inside

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                agent, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                agent.close()  # the server is away: the agent sees a lost connection
                continue
            for sock in (agent, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._agents.append(agent)
                self._servers.append(server)
            self._start(self._pump, agent, server, 0)
            self._start(self._pump, server, agent, 1)

    def _pump(self, source: socket.socket, sink: socket.socket, way: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                with self._lock:
                    self._bytes[way] += len(data)
                sink.sendall(data)
        _shut(source)
        _shut(sink)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _packets(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return sum(struct.unpack_from("=II", info, _SEGMENTS_AT))

"""HTTP to the server over `http.client`: cheap in CPU, one connection a thread, abortable.

aiohttp's client costs three times as much CPU for TLS uploads, and jobs run in threads anyway.
The administrator's command uses the same client.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from holdfast_contract.errors import (
    HoldfastError,
    InvalidInput,
    NotAuthenticated,
    Unreachable,
    UsageError,
    error_from,
)
from holdfast_contract.protocol.http import Problem

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from holdfast_agent.transport.gathering import Gathering

Buffer = bytes | bytearray | memoryview

CONNECT_TIMEOUT_SECONDS = 10.0
IDLE_TIMEOUT_SECONDS = 75.0
"""Longest silence of one socket call: above the longest wait (60 s) that a route allows."""
REPLY_BYTES_MAX = 64 << 20
"""Largest reply that is read whole."""
_DRAIN_BYTES_MAX = 1 << 20
_GATHERED_BYTES_MAX = 8 << 10
"""A body up to this size leaves in one TLS record and one packet with its head."""
KEPT_MAX = 4
"""Connections that are kept from one job to the next; the server closes them when they are idle."""


@dataclass(frozen=True)
class Body:
    """A request body that can be sent again: `parts` makes a fresh iteration at every attempt."""

    length: int | None
    """Bytes; None: not known before, sent in chunked coding."""
    parts: Callable[[], Iterable[Buffer]]
    content_type: str = "application/octet-stream"

    @classmethod
    def of(cls, data: Buffer, content_type: str = "application/octet-stream") -> Body:
        """Return the body that is `data`."""
        return cls(len(data), lambda: (data,), content_type)

    @classmethod
    def json(cls, value: object) -> Body:
        """Return `value` as JSON."""
        return cls.of(msgspec.json.encode(value), "application/json")


@dataclass(frozen=True)
class Reply:
    """A whole answer with a status below 300."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Stream:
    """An answer that is read piece by piece; `read` raises Unreachable when it breaks."""

    status: int
    headers: Mapping[str, str]
    _response: HTTPResponse = field(repr=False)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""
        with _translated():
            return self._response.read(size)

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes.

        Raises:
            Unreachable: the answer ends before.
        """
        data = self.read(size)
        if len(data) != size:
            raise Unreachable("the server's answer ended early")
        return data

    def read_exactly_into(self, buffer: memoryview) -> None:
        """Fill `buffer`.

        Raises:
            Unreachable: the answer ends before.
        """
        filled = 0
        with _translated():
            while filled < len(buffer):
                got = self._response.readinto(buffer[filled:])
                if not got:
                    raise Unreachable("the server's answer ended early")
                filled += got

    def finish(self) -> None:
        """Read the end of the answer, so that the connection is kept.

        Raises:
            InvalidInput: there is more.
        """
        if self.read(1):
            raise InvalidInput("the server's answer is longer than it should be")

    def read_some(self, size: int) -> bytes:
        """Return what has come, at most `size` bytes; empty at the end."""
        with _translated():
            return self._response.read1(size)


def trusting(ca: Path | None) -> ssl.SSLContext:
    """Return a client's TLS context that trusts `ca` alone (None: the system's authorities).

    Raises:
        UsageError: the file is not there or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"cannot read the server's CA certificate {ca}: {exc}",
            hint="it is tls/ca.pem in the server's data directory",
        ) from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


class Kept:
    """Idle connections that wait for the next job: a TLS handshake costs 2 KB. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[Gathering] = []

    def take(self) -> Gathering | None:
        """Return one of them, if there is one."""
        with self._lock:
            return self._connections.pop() if self._connections else None

    def put(self, connection: Gathering) -> None:
        """Keep an idle connection, or close it where there are enough."""
        with self._lock:
            if len(self._connections) < KEPT_MAX:
                self._connections.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all of them."""
        while (connection := self.take()) is not None:
            connection.close()


class HttpClient:
    """Requests to one server; thread-safe."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        bearer: Callable[[], str],
        user_agent: str,
        kept: Kept | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise UsageError(
                f"not a server URL: {url!r}", hint="such as https://backup.example:9440"
            )
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._context = context
        self._bearer = bearer
        self._user_agent = user_agent
        self._kept = kept
        # Not a plain lock: where an answer was left unread its end may come at any allocation.
        self._lock = threading.RLock()
        self._idle: list[Gathering] = []
        self._busy: set[Gathering] = set()
        self._aborted = False

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> Reply:
        """Return the whole answer, which may have up to `reply_bytes_max`.

        Raises:
            HoldfastError: the problem that the server told, or Unreachable.
        """
        with self.stream(method, path, body=body, headers=headers) as stream:
            data = stream.read(reply_bytes_max + 1)
            if len(data) > reply_bytes_max:
                raise InvalidInput("the server's answer is too long")
            return Reply(stream.status, stream.headers, data)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Stream]:
        """Yield the answer for reading; the connection is kept when it was read to its end."""
        connection, response = self._exchange(method, path, body, dict(headers or {}))
        keep = False
        try:
            if response.status >= 300:
                raise _problem(response)
            yield Stream(response.status, dict(response.headers.items()), response)
            keep = response.isclosed()
        except HoldfastError:
            keep = response.isclosed()
            raise
        finally:
            self._put_back(connection, keep=keep)

    def abort(self) -> None:
        """Break every request under way and refuse new ones: for a cancelled job."""
        with self._lock:
            self._aborted = True
            busy = list(self._busy)
        for connection in busy:
            sock = connection.sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def close(self) -> None:
        """Close the idle connections, or leave them to the next client of the same `Kept`."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            if self._kept is None:
                connection.close()
            else:
                self._kept.put(connection)

    # --- connections
    def _exchange(
        self, method: str, path: str, body: Body | None, headers: dict[str, str]
    ) -> tuple[Gathering, HTTPResponse]:
        headers["Authorization"] = f"Bearer {self._bearer()}"
        headers["User-Agent"] = self._user_agent
        if body is not None and body.length is None:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(body.length if body else 0)
        if body:
            headers["Content-Type"] = body.content_type
        while True:
            connection, reused = self._take()
            try:
                with _translated():
                    self._send(connection, method, path, body, headers)
                    return connection, connection.getresponse()
            except (HoldfastError, OSError) as exc:
                self._put_back(connection, keep=False)
                # The server may close an idle connection at any moment: that says nothing yet.
                if not (reused and isinstance(exc, Unreachable)) or self._aborted:
                    raise

    def _send(
        self,
        connection: Gathering,
        method: str,
        path: str,
        body: Body | None,
        headers: dict[str, str],
    ) -> None:
        if connection.sock is None:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(IDLE_TIMEOUT_SECONDS)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.putrequest(method, self._prefix + path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        is_small = bool(body and body.length and body.length <= _GATHERED_BYTES_MAX)
        connection.gathered = bytearray() if is_small else None
        connection.endheaders()
        if body is None:
            return
        try:
            for part in body.parts():
                if body.length is None:
                    connection.send(b"%x\r\n" % len(part))
                connection.send(part)
                if body.length is None:
                    connection.send(b"\r\n")
            if body.length is None:
                connection.send(b"0\r\n\r\n")
            connection.flush()
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body answers and closes: its answer says why.
            return

    def _take(self) -> tuple[Gathering, bool]:
        with self._lock:
            if self._aborted:
                raise Unreachable("the request was cancelled")
            found = self._idle.pop() if self._idle else self._kept and self._kept.take()
            connection = found or self._new()
            self._busy.add(connection)
            return connection, connection is found

    def _new(self) -> Gathering:
        from holdfast_agent.transport.gathering import Gathering, SecureGathering

        if self._secure:
            return SecureGathering(
                self._host, self._port, timeout=CONNECT_TIMEOUT_SECONDS, context=self._context
            )
        return Gathering(self._host, self._port, timeout=CONNECT_TIMEOUT_SECONDS)

    def _put_back(self, connection: Gathering, *, keep: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if keep and not self._aborted and connection.sock is not None:
                self._idle.append(connection)
                return
        connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn errors of sockets, TLS and http.client into ours."""
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise NotAuthenticated(
            f"the server's certificate is not trusted: {exc.verify_message}",
            hint="is HOLDFAST_CA the tls/ca.pem of this server?",
        ) from exc
    except _broken() as exc:
        raise Unreachable(
            f"the server does not answer: {str(exc) or type(exc).__name__}",
            hint="is HOLDFAST_SERVER right, and is the server running?",
        ) from exc


def _broken() -> tuple[type[Exception], ...]:
    from http.client import HTTPException

    return (OSError, HTTPException, ValueError)


def _problem(response: HTTPResponse) -> HoldfastError:
    """Return the error that an answer of 300 or more tells."""
    with _translated():
        data = response.read(_DRAIN_BYTES_MAX)
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kind = Unreachable if response.status >= 500 else InvalidInput
        return kind(f"the server answered {response.status}", hint="is this a Holdfast server?")
    return error_from(
        problem.code, problem.detail or problem.title, hint=problem.hint, details=problem.details
    )

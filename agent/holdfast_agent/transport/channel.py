"""The control channel: one outbound WebSocket, proved by the identity key, kept up for ever.

    dial -> Challenge -> Hello -> Welcome -> messages both ways -> closed -> back-off -> dial

`run` returns only when told to stop or when the server refuses for good: this identity was revoked,
or a newer process has proved it (fenced).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from holdfast_agent.transport.retry import Backoff, Credential
from holdfast_agent.transport.websocket import WebSocket
from holdfast_contract import limits
from holdfast_contract.clock import Clock
from holdfast_contract.errors import (
    Fenced,
    HoldfastError,
    InvalidInput,
    NotAuthenticated,
    Refused,
    Unreachable,
    UnsupportedVersion,
    error_from,
)
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol import control

_log = get_logger(__name__)

HANDSHAKE_SECONDS = 20.0
HEARTBEAT_SECONDS = 25.0
STABLE_SECONDS = 60.0
"""After this long on one connection the back-off begins again with short times."""


class Peer(Protocol):
    """What the runtime does with the channel."""

    def hello(self, nonce: bytes) -> control.Hello:
        """Return the signed hello for this challenge."""

    async def welcomed(self, welcome: control.Welcome) -> None:
        """The channel is up."""

    async def received(self, message: control.ToAgent) -> None:
        """One message of the server, in order."""


@dataclass
class Channel:
    """The agent's side of the control channel; lives in the event loop."""

    url: str
    context: ssl.SSLContext
    credential: Credential
    peer: Peer
    clock: Clock
    uniform: Callable[[float, float], float]
    user_agent: str

    def __post_init__(self) -> None:
        self._socket: WebSocket | None = None
        """Set once both sides have proved who they are."""
        self._attempt: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def send(self, message: control.ToServer) -> bool:
        """Send `message` if the channel is up; tell whether it went out."""
        socket = self._socket
        if socket is None or not socket.is_open:
            return False
        try:
            await socket.send(control.encode(message))
        except OSError:
            return False
        return True

    async def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()
        if self._socket is not None:
            await self._socket.close(b"agent stops")
        elif self._attempt is not None:
            # On its way up, with nothing to say goodbye to.
            self._attempt.cancel()

    async def run(self) -> None:
        """Keep the channel up until `stop`.

        Raises:
            Fenced: a newer process has proved the same identity.
            Refused: the identity was revoked.
        """
        backoff = Backoff(self.uniform)
        while not self._stopping.is_set():
            since = self.clock.monotonic()
            self._attempt = asyncio.create_task(self._connection())
            try:
                await self._attempt
                _log.info("disconnected from the server")
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise
                return
            except (Fenced, Refused):
                raise
            except HoldfastError as error:
                _log.warning(
                    "no connection to the server, will try again",
                    url=self.url,
                    code=error.code,
                    reason=error.message,
                    hint=error.hint,
                )
            if self.clock.monotonic() - since >= STABLE_SECONDS:
                backoff.reset()
            await self._pause(backoff.next())

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _connection(self) -> None:
        try:
            socket = await WebSocket.dial(
                f"{self.url}/agent/v1/control",
                context=self.context,
                headers={"User-Agent": self.user_agent},
                message_bytes_max=limits.MESSAGE_BYTES_MAX,
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        except ssl.SSLCertVerificationError as exc:
            raise NotAuthenticated(
                "the server's certificate is not trusted",
                hint="is HOLDFAST_CA the tls/ca.pem of this server?",
            ) from exc
        except OSError as exc:
            raise _unreachable(exc) from exc
        try:
            await self._converse(socket)
        except OSError as exc:
            raise _unreachable(exc) from exc
        finally:
            self._socket = None
            self.credential.set(None)
            await socket.drop()

    async def _converse(self, socket: WebSocket) -> None:
        welcome = await asyncio.wait_for(self._handshake(socket), HANDSHAKE_SECONDS)
        self._socket = socket
        self.credential.set(welcome.token)
        await self.peer.welcomed(welcome)
        while (data := await socket.receive()) is not None:
            message = control.decode_to_agent(data)
            if isinstance(message, control.Refuse):
                raise error_from(message.code, message.message)
            await self.peer.received(message)

    async def _handshake(self, socket: WebSocket) -> control.Welcome:
        challenge = await _message(socket)
        if not isinstance(challenge, control.Challenge):
            raise InvalidInput("the server did not begin with a challenge")
        if not challenge.protocol_min <= control.PROTOCOL_VERSION <= challenge.protocol_max:
            raise UnsupportedVersion(
                f"the server {challenge.server_version} speaks protocol {challenge.protocol_min}"
                f" to {challenge.protocol_max}, this agent {control.PROTOCOL_VERSION}",
                hint="update the older of the two",
            )
        await socket.send(control.encode(self.peer.hello(challenge.nonce)))
        answer = await _message(socket)
        if isinstance(answer, control.Refuse):
            raise error_from(answer.code, answer.message)
        if not isinstance(answer, control.Welcome):
            raise InvalidInput("the server did not answer hello with welcome")
        return answer


async def _message(socket: WebSocket) -> control.ToAgent:
    data = await socket.receive()
    if data is None:
        raise Unreachable("the server closed the connection")
    return control.decode_to_agent(data)


def _unreachable(exc: OSError) -> Unreachable:
    # A TimeoutError is an OSError, mostly without a text.
    return Unreachable(
        f"the server does not answer: {str(exc) or type(exc).__name__}",
        hint="is HOLDFAST_SERVER right, and is the server running?",
    )

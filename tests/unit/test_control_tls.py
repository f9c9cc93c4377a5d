"""Control connections share a small TLS buffer, and messages of any size still pass."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from holdfast_contract.clock import SystemClock
from holdfast_server.auth.certificates import own_certificates, server_context
from holdfast_server.control.channel import TLS_BUFFER_BYTES, share_tls_buffer


@pytest.mark.blocking  # certificates are made in the test's own loop
async def test_tls_connections_that_share_a_buffer_take_what_is_longer_than_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "tls").mkdir()
    files = own_certificates(tmp_path / "tls", ["127.0.0.1"], SystemClock())
    messages = [bytes(range(number, 256)) * 4096 for number in range(3)]
    buffers: list[object] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = (await reader.readexactly(1))[0]
        assert share_tls_buffer(writer.transport)
        protocol = writer.transport._ssl_protocol  # type: ignore[attr-defined]
        writer.write(await reader.readexactly(len(messages[number])))
        buffers.append(protocol._ssl_buffer)
        assert len(protocol._ssl_buffer) == TLS_BUFFER_BYTES, "it does not grow again"
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context(files))
    trusting = ssl.create_default_context(cafile=files.authority)

    async def talk(number: int) -> bool:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(bytes([number]) + messages[number])
        answer = await reader.readexactly(len(messages[number]))
        writer.close()
        await writer.wait_closed()
        return answer == messages[number]

    async with server:
        assert await asyncio.gather(*map(talk, range(3))) == [True] * 3
    assert len(buffers) == 3
    assert buffers[0] is buffers[1] is buffers[2]


@pytest.mark.parametrize("transport", [None, asyncio.Transport()])
def test_a_connection_without_tls_has_nothing_to_share(transport: asyncio.Transport) -> None:
    assert share_tls_buffer(transport) is False

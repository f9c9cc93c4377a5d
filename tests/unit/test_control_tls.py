"""A control connection keeps a small TLS buffer, and messages of any size still pass."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from holdfast_contract.clock import SystemClock
from holdfast_server.auth.certificates import own_certificates, server_context
from holdfast_server.control.channel import TLS_BUFFER_BYTES, shrink_tls_buffer


@pytest.mark.blocking  # certificates are made in the test's own loop
async def test_a_shrunk_tls_connection_still_takes_what_is_longer_than_its_buffer(
    tmp_path: Path,
) -> None:
    (tmp_path / "tls").mkdir()
    files = own_certificates(tmp_path / "tls", ["127.0.0.1"], SystemClock())
    message = bytes(range(256)) * 4096
    shrunk: list[bool] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        shrunk.append(shrink_tls_buffer(writer.transport))
        protocol = writer.transport._ssl_protocol  # type: ignore[attr-defined]
        writer.write(await reader.readexactly(len(message)))
        assert len(protocol._ssl_buffer) == TLS_BUFFER_BYTES, "it does not grow again"
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context(files))
    async with server:
        port = server.sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=files.authority)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        writer.close()
        await writer.wait_closed()
    assert shrunk == [True]


@pytest.mark.parametrize("transport", [None, asyncio.Transport()])
def test_a_connection_without_tls_has_nothing_to_shrink(transport: asyncio.Transport) -> None:
    assert shrink_tls_buffer(transport) is False
